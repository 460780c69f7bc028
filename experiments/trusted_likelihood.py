"""Does the verdict know which estimates of log p(x) to trust, and does precision come without bias? (claims C1, C4).

log p(x) is known for probabilistic PCA, whose guide is the posterior s times as wide, and by quadrature for a VAE with
two latents on digits, whose guide misses a part of many posteriors. A VAE with fifty latents shows what precision that
is asked for costs, on a thousand images.

Expected: 95 % intervals of `reliable` data cover 93 to 97 %, on PPCA more than symmetric ones where weights are askew,
and of the VAE's too, where value ± 1.96 errors of the data that k-hat is content with cover 87 %; what is escalated
covers too. As many samples as each datum
needs bias no mean by more than its error tells. A standard error of the mean of 0.01 nats takes at most a quarter of
the samples of K = 5000.

Run: python -m experiments.trusted_likelihood [--small]; 10 minutes on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import ppl_vae as pv
from experiments.common.images import images
from experiments.common.progress import steps
from experiments.common.study import Findings, Study
from experiments.common.training import trained
from experiments.importance_sampling import widened
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet
from ppl_vae.pareto import khat_threshold

VERDICTS = ("reliable", "noisy", "unreliable")
_FARTHEST = 5.0  # standard errors: what is farther is drawn there, with its number


@dataclass(frozen=True)
class Config:
    """Pairs, and numbers of samples and data."""

    widths: tuple[float, ...] = (0.9, 1.1, 1.3, 1.5)
    latent_dims: tuple[int, ...] = (2, 10, 20, 50)
    num_repetitions: int = 1000
    num_samples: int = 1000
    target: float = 0.05
    vae_epochs: int = 200
    vae_num_samples: tuple[int, ...] = (256, 1024, 4096)
    num_known: int = 360
    num_seeds: int = 3
    data: str = "mnist"
    epochs: int = 20
    hidden: int = 200
    latent_dim: int = 50
    num_test: int = 1000
    cap: int = 5000
    targets: tuple[float, ...] = (0.2, 0.3, 0.5, 1.0)
    seed: int = 0


def measure(config: Config) -> Findings:
    """Coverage by verdict on PPCA and a neural VAE, before and after escalation; bias and cost of precision."""
    settings = [(s, d) for s in config.widths for d in config.latent_dims]
    ppca = [_of_ppca(config, s, d) for s, d in steps(settings, "PPCA")]
    return Findings({"ppca": ppca, "vae": _of_vae(config), "images": _of_images(config)})


def _of_ppca(config: Config, s: float, d: int) -> dict[str, Any]:
    """Repetitions of one width and dimension: all data have weights of one law."""
    generator = torch.Generator().manual_seed(d)
    ppca = pv.PPCA(torch.randn(d + 2, d, generator=generator, dtype=torch.float64), torch.zeros(d + 2), 0.5)
    x = ppca.sample(config.num_repetitions, config.seed)
    exact, pair = ppca.log_prob(x).numpy(), widened(ppca, s)
    k = config.num_samples
    fixed = pv.log_likelihood(pair, x, k, config.seed, num_draws=0, progress=False)
    asked = pv.log_likelihood(pair, x, k, config.seed, target_stderr=config.target, num_draws=0, progress=False)
    reliable = fixed.verdict == "reliable"
    symmetric = np.abs(fixed.value - exact) <= 1.96 * fixed.stderr + 1e-9
    return {
        "s": s,
        "d": d,
        "reliable": float(reliable.mean()),
        "coverage_reliable": _mean(_covered(fixed, exact)[reliable]),
        "coverage": float(_covered(fixed, exact).mean()),
        "coverage_symmetric": float(symmetric.mean()),
        "z_fixed": _z(fixed, exact),
        "z_asked": _z(asked, exact),
        "coverage_asked": _mean(_covered(asked, exact)[asked.verdict == "reliable"]),
        "samples_asked": float((asked.num_drawn + asked.num_pilot).mean() / k),
    }


def _covered(ll: Any, exact: np.ndarray) -> np.ndarray:
    low, high = ll.intervals()
    return (low <= exact + 1e-9) & (exact <= high + 1e-9)


def _z(ll: pv.LogLikelihood, exact: np.ndarray) -> float:
    """Error of the mean, without the bias that its interval allows for, in standard errors."""
    error = ll.mean + float(np.square(ll.stderr).mean()) / 2 - float(exact.mean())
    return error / ll.mean_stderr if ll.mean_stderr > 0 else 0.0


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _of_vae(config: Config) -> list[dict[str, Any]]:
    """Coverage of a VAE with two latents on binary digits, by verdict, by k-hat alone, and after escalation."""
    digits = images("digits", num_test=config.num_known)
    x, x_test = (pv.data.binarize(part, seed) for seed, part in enumerate((digits.train, digits.test)))

    def make() -> pv.VAE:
        decoder = pv.decoders.Bernoulli.mlp(2, [64], x.shape[1])
        return pv.VAE(pv.priors.StandardNormal(2), decoder, pv.encoders.FullCovarianceNormal.mlp(x.shape[1], [64], 2))

    vae, _ = trained(make, x, config.seed, epochs=config.vae_epochs, learning_rate=3e-3)
    vae, x_test = vae.double(), x_test.double()
    exact = pv.log_evidence(vae, x_test, progress=False)
    return [_of_samples(config, vae, x_test, exact, k) for k in steps(config.vae_num_samples, "VAE")]


def _of_samples(config: Config, vae: pv.VAE, x: Tensor, exact: np.ndarray, k: int) -> dict[str, Any]:
    runs = [pv.log_likelihood(vae, x, k, seed, num_draws=0, progress=False) for seed in range(config.num_seeds)]
    after = [pv.escalate(ll, vae, x, until="reliable", seed=i, progress=False) for i, ll in enumerate(runs)]
    covered = np.stack([_covered(ll, exact) for ll in runs])
    symmetric = np.stack([np.abs(ll.value - exact) <= 1.96 * ll.stderr for ll in runs])
    said = np.stack([ll.verdict for ll in runs])
    content = np.stack([ll.khat < khat_threshold(k) for ll in runs])
    return {
        "K": k,
        "share": {word: float((said == word).mean()) for word in VERDICTS},
        "coverage": {word: _mean(covered[said == word]) for word in VERDICTS},
        "coverage_khat_alone": _mean(symmetric[content]),
        "coverage_escalated": float(np.mean([_covered(ll, exact) for ll in after])),
        "error": float(np.sqrt(np.mean([(ll.value - exact) ** 2 for ll in runs]))),
        "error_escalated": float(np.sqrt(np.mean([(ll.value - exact) ** 2 for ll in after]))),
        "methods": {m: int(np.mean([sum(e.counts()[m].values()) for e in after])) for m in after[0].counts()},
    }


def _of_images(config: Config) -> list[dict[str, Any]]:
    """Precision that is asked for against a fixed K, on images."""
    found = images(config.data, num_test=config.num_test)
    size, h = found.train.shape[1], config.hidden

    def make() -> pv.VAE:
        decoder = pv.decoders.Bernoulli.mlp(config.latent_dim, [h, h], size)
        encoder = pv.encoders.DiagonalNormal.mlp(size, [h, h], config.latent_dim)
        return pv.VAE(pv.priors.StandardNormal(config.latent_dim), decoder, encoder)

    vae, _ = trained(make, found.train, config.seed, epochs=config.epochs, binarize="dynamic")
    x = pv.data.binarize(found.test, config.seed)
    rows = []
    for target in steps((None, *config.targets), "precision"):
        ll = pv.log_likelihood(vae, x, config.cap, config.seed, target_stderr=target, num_draws=0, progress=False)
        rows.append(
            {
                "target": target or 0.0,
                "mean": ll.mean,
                "mean_stderr": ll.mean_stderr,
                "samples": float((ll.num_drawn + ll.num_pilot).mean() / config.cap),
                "unreliable": float((ll.verdict == "unreliable").mean()),
            }
        )
    return rows


def draw(found: Findings) -> Figure:
    """Coverage on PPCA and on the VAE, bias of asking for precision, and what it costs."""
    figure = new_figure(10.5, 8)
    ppca, vae, bias, cost = figure.subplots(2, 2).flat
    _draw_ppca(ppca, found.numbers["ppca"])
    _draw_vae(vae, found.numbers["vae"])
    _draw_bias(bias, found.numbers["ppca"])
    _draw_cost(cost, found.numbers["images"])
    for axes in (ppca, vae, bias, cost):
        quiet(axes)
        axes.legend(frameon=False, fontsize="small")
    return figure


def _draw_ppca(axes: Axes, rows: list[dict[str, Any]]) -> None:
    axes.axhspan(93, 97, color="0.9", zorder=0, label="93 to 97 %")
    for what, colour, style, label in (
        ("coverage_symmetric", LIGHT, "s", "value ± 1.96 errors, all data"),
        ("coverage", MIDDLE, "^", "intervals, all data"),
        ("coverage_reliable", DARK, "o", "intervals, where reliable"),
    ):
        told = [i for i, r in enumerate(rows) if r[what] is not None]
        axes.plot(told, [100 * rows[i][what] for i in told], style, color=colour, label=label)
    axes.set_xticks(range(len(rows)), [f"{r['s']}, {r['d']}" for r in rows], rotation=90, fontsize="small")
    axes.set(
        xlabel="PPCA: width of the guide, latent dimension", ylabel="intervals that hold log p(x) (%)", ylim=(50, 101)
    )
    axes.set_title("Where the verdict is reliable, intervals cover")


def _draw_vae(axes: Axes, rows: list[dict[str, Any]]) -> None:
    k = [r["K"] for r in rows]
    axes.axhspan(93, 97, color="0.9", zorder=0)
    for word, colour, style in zip(VERDICTS, (DARK, MIDDLE, LIGHT), ("o-", "^-", "s-"), strict=True):
        share = f"{100 * rows[-1]['share'][word]:.0f} % of data at K = {k[-1]}"
        told = [(r["K"], 100 * r["coverage"][word]) for r in rows if r["coverage"][word] is not None]
        axes.plot(*zip(*told, strict=True) if told else ([], []), style, color=colour, label=f"{word} ({share})")
    axes.plot(
        k,
        [100 * (r["coverage_khat_alone"] or np.nan) for r in rows],
        "k:",
        label="value ± 1.96 errors where k-hat is content",
    )
    axes.plot(k, [100 * r["coverage_escalated"] for r in rows], "D--", color="0.4", label="all data, escalated")
    axes.set(xscale="log", xlabel="samples K", ylabel="intervals that hold log p(x) (%)", ylim=(70, 101))
    axes.set_xticks(k, map(str, k))
    axes.minorticks_off()
    least = 100 * min(share for r in rows for share in r["coverage"].values() if share is not None)
    axes.set_title(f"VAE, two latents: intervals hold {least:.0f} % or more,\nwhatever the verdict")


def _draw_bias(axes: Axes, rows: list[dict[str, Any]]) -> None:
    axes.axhspan(-2, 2, color="0.9", zorder=0, label="± 2 standard errors")
    for what, colour, style, label in (
        ("z_fixed", LIGHT, "s", "fixed K"),
        ("z_asked", DARK, "o", "target of each datum"),
    ):
        z = [r[what] for r in rows]
        axes.plot(range(len(rows)), np.clip(z, -_FARTHEST, _FARTHEST), style, color=colour, label=label)
        for i in np.flatnonzero(np.abs(z) > _FARTHEST):
            place = (-8, 8 if what == "z_fixed" else -2)
            axes.annotate(f"{z[i]:.0f}", (i, np.sign(z[i]) * _FARTHEST), place, textcoords="offset points", ha="right")
    for i, r in enumerate(rows):
        share = f"{100 * r['samples_asked']:.0f}"
        axes.annotate(share, (i, 0.02), xycoords=("data", "axes fraction"), ha="center", fontsize="x-small")
    axes.set_xticks(range(len(rows)), [f"{r['s']}, {r['d']}" for r in rows], rotation=90, fontsize="small")
    axes.set(xlabel="PPCA: width, dimension (above: samples taken, % of fixed K)", ylim=(-7.5, 6))
    axes.set_ylabel("error of the mean (standard errors)")
    axes.set_title("PPCA: asking for precision adds no bias to that of fixed K")


def _draw_cost(axes: Axes, rows: list[dict[str, Any]]) -> None:
    fixed, *asked = rows
    samples = [100 * r["samples"] for r in rows]
    axes.plot(samples, [r["mean_stderr"] for r in rows], "o", color=DARK, label="standard error of the mean")
    lower = [fixed["mean"] - r["mean"] for r in asked]
    axes.plot(samples[1:], lower, "s", color=LIGHT, label="mean lower than that of fixed K by")
    for r, s, below in zip(asked, samples[1:], lower, strict=True):
        place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"target {r['target']:g}", (s, max(below, r["mean_stderr"])), **place)
    axes.axhline(0.01, color=MIDDLE, linestyle="--", label="0.01 nats")
    axes.axvline(25, color="0.6", linestyle=":", label="a quarter of the samples")
    top = 8 * max(*lower, *(r["mean_stderr"] for r in rows))
    axes.set(xlabel="samples taken (% of fixed K)", ylabel="nats per datum", yscale="log", ylim=(0.005, top))
    axes.set_xlim(0, 118)
    axes.set_title(f"MNIST VAE, {100 * fixed['unreliable']:.1f} % of the data unreliable:\nfewer samples cost bias")


STUDY = Study(
    "trusted_likelihood",
    measure,
    draw,
    full=Config(),
    small=Config(
        widths=(0.9, 1.5),
        latent_dims=(2, 10),
        num_repetitions=100,
        num_samples=400,
        vae_epochs=8,
        vae_num_samples=(64, 256),
        num_known=24,
        num_seeds=1,
        data="digits",
        epochs=3,
        hidden=16,
        latent_dim=4,
        num_test=40,
        cap=1000,
        targets=(0.3, 0.5),
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
