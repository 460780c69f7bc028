"""Which estimator of the gradient for the guide is the best, and what does it cost? (claims C9, C10).

One small VAE on images, early and late in its training; every estimator of the gradient of the ELBO and of the
importance-weighted bound gets the same K draws of the same data. Bias is measured along a reference gradient of many
thousand draws; signal-to-noise is the norm of the gradient over the root of its total variance.

Expected: no estimator is biased, where its noise lets that be seen: score functions without a baseline, or with one of
other data or earlier steps, are so noisy that eight hundred gradients do not show a bias of a tenth of the gradient.
(All estimators share draws, and those of one bound a reference, so that their errors move together.) The score function
without a baseline is noisier than the pathwise gradient by orders of magnitude; baselines win back a part (the other
draws of the same datum most, other data or earlier steps less), and VIMCO is to the bound what they are to the ELBO.
The closed-form KL lowers the variance of the pathwise gradient early, STL late, where guide and posterior are close.
With more particles, the signal-to-noise of the guide's pathwise gradient of the importance-weighted bound falls as
1 / sqrt(K) (Rainforth et al. 2018) and that of DReG rises as sqrt(K) (Tucker et al. 2019), where the weights have
moments: on the linear Gaussian of the first paper, whose guide is wider than the posterior. The weights of trained VAEs
have heavy tails, and neither law is reached at K = 1000; DReG stays ahead.

Run: python -m experiments.gradient_estimators [--small]; 19 minutes on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import ppl_vae as pv
from experiments.common.estimators import STAGES, Reference, bias_in_words, compared, draw_estimators, summary
from experiments.common.gradients import Timed, draw_gradients, timed
from experiments.common.images import images
from experiments.common.linear_gaussian import LinearGaussian
from experiments.common.progress import steps
from experiments.common.statistics import Mean, mean
from experiments.common.study import Findings, Study
from experiments.common.training import trained
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet
from ppl_vae.objectives import Objective

LINEAR_GAUSSIAN = "linear Gaussian"
_NUM_TIMED = 128  # images in a gradient whose time is taken: a usual batch


@dataclass(frozen=True)
class Config:
    """What is compared, at which size."""

    data: str = "mnist"
    latent_dim: int = 5
    hidden: int = 100
    steps: tuple[int, int] = (100, 6000)  # early, late
    seeds: tuple[int, ...] = (0, 1, 2)
    num_data: int = 16
    num_particles: int = 8
    num_gradients: int = 800
    num_references: int = 150  # each with `repeats` times as many draws
    repeats: int = 100
    particle_counts: tuple[int, ...] = (1, 3, 10, 30, 100, 300, 1000)
    snr_data: tuple[str, ...] = (LINEAR_GAUSSIAN, "mnist", "digits")
    gaussian_dim: int = 20
    num_snr_data: int = 4
    num_snr_gradients: int = 400
    num_timings: int = 50
    compile: bool = True


def estimators(k: int) -> dict[str, Objective]:
    """All estimators with K = k draws."""
    return {
        "pathwise, closed-form KL": pv.ELBO(k),
        "pathwise, sampled KL": pv.ELBO(k, kl="sampled"),
        "STL": pv.ELBO(k, gradient="stl"),
        "score, leave one out": pv.ELBO(k, gradient="score", kl="sampled", baseline="leave_one_out"),
        "score, other data": pv.ELBO(k, gradient="score", kl="sampled", baseline="batch"),
        "score, running mean": pv.ELBO(k, gradient="score", kl="sampled", baseline="running"),
        "score, no baseline": pv.ELBO(k, gradient="score", kl="sampled", baseline="none"),
        "IWAE pathwise": pv.IWAE(k),
        "IWAE DReG": pv.IWAE(k, gradient="dreg"),
        "IWAE VIMCO": pv.IWAE(k, gradient="vimco"),
        "IWAE score": pv.IWAE(k, gradient="score"),
    }


def references(k: int) -> dict[str, Objective]:
    """The estimator of little variance whose many draws are the reference of each family."""
    return {"ELBO": pv.ELBO(k), "IWAE": pv.IWAE(k, gradient="dreg")}


def measure(config: Config) -> Findings:
    """Bias, variance, signal-to-noise and time of every estimator; signal-to-noise against K."""
    parts = images(config.data, num_test=max(config.num_data, _NUM_TIMED))
    x = pv.data.binarize(parts.test[: config.num_data], seed=0)
    rows: list[dict[str, Any]] = []
    against_k: list[dict[str, Any]] = []
    for seed in steps(config.seeds, "seeds"):
        for stage, num_steps in zip(STAGES, config.steps, strict=True):
            vae = trained_vae(config, parts.train, num_steps, seed)
            rows += [row | {"stage": stage} for row in compared_here(config, vae, x, seed)]
        for data in config.snr_data:
            against_k += by_particles(config, data, seed)
    times = timed_estimators(config, vae, pv.data.binarize(parts.test[:_NUM_TIMED], seed=0))
    return Findings(
        {
            "estimators": [summary(name, rows) | timed._asdict() for name, timed in times.items()],
            "particles": against_k,
            "slopes": {name: slope._asdict() for name, slope in slopes(against_k).items()},
            "num_particles": config.num_particles,
            "num_data": config.num_data,
            "num_timed": _NUM_TIMED,
        }
    )


def timed_estimators(config: Config, vae: pv.VAE, x: Tensor) -> dict[str, Timed]:
    """What a gradient of each estimator costs, compiled if that is asked for."""
    guide = list(vae.encoder.parameters())
    return {
        name: timed(vae, objective, x, guide, config.num_timings, config.compile)
        for name, objective in estimators(config.num_particles).items()
    }


def trained_vae(config: Config, train: Tensor, num_steps: int, seed: int) -> pv.VAE:
    """The same VAE after so many steps."""

    def make() -> pv.VAE:
        return pv.VAE(
            pv.priors.StandardNormal(config.latent_dim),
            pv.decoders.Bernoulli.mlp(config.latent_dim, [config.hidden], train.shape[1]),
            pv.encoders.DiagonalNormal.mlp(train.shape[1], [config.hidden], config.latent_dim),
        )

    compile = "auto" if config.compile else False
    return trained(make, train, seed, steps=num_steps, epochs=10_000, binarize="dynamic", compile=compile)[0]


def compared_here(config: Config, vae: pv.VAE, x: Tensor, seed: int) -> list[dict[str, Any]]:
    """Every estimator on the same data, against the reference gradient of its family."""
    guide, many = list(vae.encoder.parameters()), x.repeat(config.repeats, 1)
    truth = {
        family: draw_gradients(vae, objective, many, guide, config.num_references, seed=1_000 + seed)
        for family, objective in references(config.num_particles).items()
    }
    objectives = estimators(config.num_particles)
    against = {name: Reference.of(truth[family_of(name)], config.num_references) for name in objectives}
    return compared(vae, objectives, against, x, guide, config.num_gradients, seed)


def by_particles(config: Config, data: str, seed: int) -> list[dict[str, Any]]:
    """Signal-to-noise of the guide's gradient of the importance-weighted bound for each K, on some images."""
    pair, x, guide = subject(config, data, seed)
    rows = []
    for k in config.particle_counts:
        dreg, pathwise = (
            draw_gradients(pair, pv.IWAE(k, gradient=how), x, guide, config.num_snr_gradients, own_seed)
            for how, own_seed in (("dreg", 2 * seed), ("pathwise", 2 * seed + 1))
        )
        size = max(dreg.squared_norm, 0.0)  # the same expectation, and DReG's is the better known
        for name, found in (("DReG", dreg), ("pathwise", pathwise)):
            snr = float(np.sqrt(size / found.variance))
            rows.append({"estimator": name, "data": data, "seed": seed, "K": k, "snr": snr})
    return rows


def subject(config: Config, data: str, seed: int) -> tuple[Any, Tensor, list[nn.Parameter]]:
    """A pair, some data, and the parameters of the guide."""
    if data == LINEAR_GAUSSIAN:
        pair = LinearGaussian(config.gaussian_dim, seed)
        return pair, pair.sample(config.num_snr_data, seed), list(pair.parameters())
    parts = images(data, num_test=config.num_snr_data)
    vae = trained_vae(config, parts.train, config.steps[1], seed)
    return vae, pv.data.binarize(parts.test, seed=0), list(vae.encoder.parameters())


def slopes(rows: list[dict[str, Any]]) -> dict[str, Mean]:
    """d log SNR / d log K over the larger half of the particle counts, for each estimator and data set, over seeds."""
    counts = sorted({r["K"] for r in rows})
    large = [r for r in rows if r["K"] in counts[len(counts) // 2 :] and (r["snr"] or 0) > 0]
    found: dict[tuple[str, str], list[float]] = {}
    for name, data, seed in dict.fromkeys((r["estimator"], r["data"], r["seed"]) for r in large):
        own = [r for r in large if (r["estimator"], r["data"], r["seed"]) == (name, data, seed)]
        if len(own) > 1:
            slope = float(np.polyfit(*np.log([[r["K"], r["snr"]] for r in own]).T, 1)[0])
            found.setdefault((name, data), []).append(slope)
    return {f"{name}, {data}": mean(values) for (name, data), values in found.items()}


def family_of(name: str) -> str:
    """Which bound an estimator is for."""
    return "IWAE" if name.startswith("IWAE") else "ELBO"


def draw(found: Findings) -> Figure:
    """Signal-to-noise and bias of each estimator, and signal-to-noise against K."""
    numbers = found.numbers
    figure = new_figure(15, 5.8)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.1, 0.9, 1.1])
    rows = numbers["estimators"][::-1]
    draw_estimators(left, middle, rows)
    left.set_xlabel(
        f"signal-to-noise of one gradient ({numbers['num_data']} images, K = {numbers['num_particles']})\n"
        f"ms: one gradient of {numbers.get('num_timed', numbers['num_data'])} images, {how_run(rows)}"
    )
    ratio = signal(rows, "pathwise, closed-form KL") / signal(rows, "score, no baseline")
    left.set_title(
        f"Late in training, pathwise has {ratio:.0f} times\nthe signal of a score without baseline", fontsize="medium"
    )
    middle.set_title(bias_in_words(rows), fontsize="medium")
    draw_particles(right, numbers["particles"], slopes(numbers["particles"]))
    for axes in (left, middle, right):
        quiet(axes)
    return figure


def how_run(rows: list[dict[str, Any]]) -> str:
    """Whether the gradients whose time was taken were compiled; an older record has no word on it: they were not."""
    compiled = sum(bool(r.get("compiled")) for r in rows)
    return {0: "not compiled", len(rows): "compiled"}.get(compiled, f"{compiled} of {len(rows)} compiled")


def signal(rows: list[dict[str, Any]], name: str) -> float:
    """Signal-to-noise of an estimator late in training."""
    return float(next(r for r in rows if r["estimator"] == name)["late"]["snr"])


def draw_particles(axes: Axes, rows: list[dict[str, Any]], slope: dict[str, Mean]) -> None:
    """Signal-to-noise against K, and the two laws."""
    counts = np.array(sorted({r["K"] for r in rows}))
    styles = zip(dict.fromkeys(r["data"] for r in rows), (("-", "o"), ("--", "s"), (":", "^")), strict=False)
    for data, (line, marker) in styles:
        for name, colour in (("DReG", LIGHT), ("pathwise", DARK)):
            own = [r for r in rows if (r["estimator"], r["data"]) == (name, data) and r["snr"]]
            ks = [k for k in counts if any(r["K"] == k for r in own)]
            snr = [np.exp(np.mean(np.log([r["snr"] for r in own if r["K"] == k]))) for k in ks]
            found = slope[f"{name}, {data}"]
            label = f"{name}, {data}: slope {found.mean:+.2f} ± {2 * found.stderr:.2f}"
            axes.plot(ks, snr, line, marker=marker, color=colour, label=label)
    data = rows[0]["data"]
    for name, power, label in (("DReG", 0.5, "laws: +1/2 and -1/2"), ("pathwise", -0.5, None)):
        own = [r["snr"] for r in rows if (r["K"], r["estimator"], r["data"]) == (counts[-1], name, data) and r["snr"]]
        end = np.exp(np.mean(np.log(own)))
        axes.plot(counts, end * (counts / counts[-1]) ** power, color=MIDDLE, linewidth=0.8, label=label)
    axes.set(xscale="log", yscale="log", xlabel="K particles", ylabel="signal-to-noise of the guide's gradient")
    dreg = [found.mean for name, found in slope.items() if name.startswith("DReG")]
    rising = f"{sum(m > 0 for m in dreg)} of {len(dreg)} data sets"
    axes.set_title(f"IWAE bound: more particles raise the\nsignal of DReG on {rising}", fontsize="medium")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


STUDY = Study(
    "gradient_estimators",
    measure,
    draw,
    full=Config(),
    small=Config(
        data="digits",
        latent_dim=2,
        hidden=10,
        steps=(5, 60),
        seeds=(0,),
        num_data=4,
        num_particles=2,
        num_gradients=25,
        num_references=10,
        repeats=10,
        particle_counts=(1, 4, 16),
        snr_data=(LINEAR_GAUSSIAN, "digits"),
        gaussian_dim=3,
        num_snr_data=2,
        num_snr_gradients=25,
        num_timings=2,
        compile=False,
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
