"""Which likelihood suits which data? (claim C7).

(a) The same images, in L grey levels, under every decoder that can score them, with the same networks, steps and seeds,
in bits per dimension of the levels: categorical, discretised logistic, a mixture of five of them; and, on data
dequantised to [0, 1], Gaussian with one learned scale, Gaussian with sigma(z), and continuous Bernoulli. These three
give densities, which bound the probability of the levels (`ppl_vae.data.levels_log_prob`): their bits are upper bounds.
The baseline takes pixels for independent and knows the frequencies of their levels.
(b) Counts, under Poisson and negative binomial decoders: generated ones, over-dispersed, whose true likelihood is known
by quadrature over their one latent; and the digits, whose pixels count ink from 0 to 16.

Expected: tbd
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import ppl_vae as pv
from experiments.common.images import images
from experiments.common.levels import independent_pixels, pooled_levels
from experiments.common.pictures import image_rows
from experiments.common.progress import steps
from experiments.common.statistics import mean, paired
from experiments.common.study import Findings, Study
from experiments.common.training import score, trained
from ppl_vae import decoders
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet
from ppl_vae.report import bits_per_dimension

DATA, BASELINE = "data", "independent pixels"
COPIES = 10  # of the training data with other noise, so that a density cannot learn the noise by heart


@dataclass(frozen=True)
class Config:
    """Full form: 15 minutes on two cores."""

    data: str = "fashion-mnist"
    pool: int = 2  # images are averaged over blocks of so many pixels a side
    num_levels: int = 16
    num_train: int | None = 30_000
    num_test: int = 500
    latent_dim: int = 20
    hidden: tuple[int, ...] = (200, 200)
    num_steps: int = 4000
    num_samples: int = 500
    count_dim: int = 20
    num_counts: int = 20_000
    count_steps: int = 4000
    dispersion: float = 0.5
    num_shown: int = 7
    seeds: tuple[int, ...] = (0, 1, 2)


def measure(config: Config) -> Findings:
    """Bits per dimension of each decoder and seed, samples of the first seed; nats of counts."""
    rows, pictures = levels(config)
    counts = [*generated(config), *ink(config)]
    return Findings({"levels": rows, "num_levels": config.num_levels, "counts": counts}, pictures)


# (a) Levels


def likelihoods(config: Config, dim: int) -> dict[str, tuple[bool, Callable[[], nn.Module]]]:
    """Decoders by name; whether each gives a density, and how it is made."""
    sizes, num_levels = (config.latent_dim, config.hidden, dim), config.num_levels
    return {
        "categorical": (False, partial(decoders.Categorical.mlp, *sizes, num_levels)),
        "mixture of 5 logistics": (False, partial(decoders.DiscretizedLogisticMixture.mlp, *sizes, num_levels)),
        "discretised logistic": (False, partial(decoders.DiscretizedLogistic.mlp, *sizes, num_levels)),
        "Gaussian, σ(z)": (True, partial(decoders.Gaussian.mlp, *sizes, "per_latent", 1e-3)),
        "continuous Bernoulli": (True, partial(decoders.ContinuousBernoulli.mlp, *sizes)),
        "Gaussian, one σ": (True, partial(decoders.Gaussian.mlp, *sizes, "learned", 1e-3)),
    }


def levels(config: Config) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Bits per dimension of the same test levels under each decoder."""
    found = images(config.data, config.num_train, config.num_test)
    side = found.shape[-1] // config.pool
    train, test = (pooled_levels(x, found.shape, config.pool, config.num_levels) for x in (found.train, found.test))
    dim, top = train.shape[1], config.num_levels - 1
    dense_train = torch.cat([pv.data.dequantize(train / top, config.num_levels, seed) for seed in range(COPIES)])
    dense_test = pv.data.dequantize(test / top, config.num_levels, COPIES)

    log_probs = {BASELINE: [independent_pixels(train, test, config.num_levels)]}
    pictures = {DATA: (test[: config.num_shown] / top).numpy()}
    for name, (dense, decoder) in steps(list(likelihoods(config, dim).items()), "decoders"):
        log_probs[name] = []
        for seed in config.seeds:
            x, held_out = (dense_train, dense_test) if dense else (train, test)
            vae, _ = trained(lambda d=decoder, x=x: autoencoder(d(), x, config), x, seed, steps=config.num_steps)
            values = score(vae, held_out, config.num_samples, seed).values
            log_probs[name].append(pv.data.levels_log_prob(values, dim, config.num_levels) if dense else values)
            if seed == config.seeds[0]:
                white = 1 if dense else top
                for kind, is_mean in (("draws", False), ("means", True)):
                    pictures[f"{name}, {kind}"] = (vae.sample(config.num_shown, mean=is_mean) / white).numpy()
    return (
        [row_of(name, values, dim, log_probs["categorical"]) for name, values in log_probs.items()],
        {name: np.clip(x, 0, 1).reshape(-1, side, side) for name, x in pictures.items()},
    )


def autoencoder(decoder: nn.Module, x: Tensor, config: Config) -> pv.VAE:
    """The decoder with an encoder that sees standardised data."""
    network = pv.networks.MLP(x.shape[1], config.hidden, 2 * config.latent_dim)
    encoder = nn.Sequential(pv.networks.Standardize(x.mean(), x.std()), network)
    prior = pv.priors.StandardNormal(config.latent_dim)
    return pv.VAE(prior, decoder, pv.encoders.DiagonalNormal(encoder, config.latent_dim))


def row_of(name: str, log_probs: list[np.ndarray], dim: int, reference: list[np.ndarray]) -> dict[str, Any]:
    """Bits per dimension over seeds, and the difference to the reference over test data, seeds averaged."""
    bits = [bits_per_dimension(float(values.mean()), dim) for values in log_probs]
    own, other = (np.mean(values, 0) / (-dim * np.log(2)) for values in (log_probs, reference))
    excess = paired(own, other)
    return {
        "decoder": name,
        "bits": mean(bits).mean,
        "bits_stderr": mean(bits).stderr,
        "more_than_categorical": excess.mean,
        "more_stderr": excess.stderr,
    }


# (b) Counts


def generated(config: Config) -> list[dict[str, Any]]:
    """Test log-likelihood of generated counts under both decoders, less the true one."""
    generator = torch.Generator().manual_seed(0)
    slope, level = torch.randn(2, config.count_dim, generator=generator)

    def p(z: Tensor) -> pv.distributions.NegativeBinomial:
        return pv.distributions.NegativeBinomial(
            (0.5 * z[:, None] * slope + level + 1).exp(), torch.tensor(config.dispersion)
        )

    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = p(torch.randn(config.num_counts + 2 * config.num_test)).sample()
    sizes = [config.num_counts, config.num_test, config.num_test]
    train, validation, test = x.split(sizes)
    grid = torch.linspace(-8, 8, 401)
    given = p(grid).log_prob(test[:, None]).sum(-1)
    truth = torch.logsumexp(given - grid.square() / 2 - np.log(np.sqrt(2 * np.pi)) + np.log(16 / 400), 1).numpy()
    return count_rows("generated, over-dispersed", (train, validation, test), truth, config)


def ink(config: Config) -> list[dict[str, Any]]:
    """Test log-likelihood of the digits' pixels as counts 0..16, less that of Poisson."""
    found = images("digits", None, config.num_test)
    parts = [pv.data.quantize(x, 17) for x in (found.train, found.validation, found.test)]
    return count_rows("ink of digits", parts, None, config)


def count_rows(name: str, parts: Sequence[Tensor], truth: np.ndarray | None, config: Config) -> list[dict[str, Any]]:
    """Nats per datum of both decoders; differences to the truth or, without one, to Poisson, over test data."""
    train, validation, test = parts
    sizes = (config.latent_dim, config.hidden, train.shape[1])
    values = {}
    for kind, decoder in (("Poisson", decoders.Poisson), ("negative binomial", decoders.NegativeBinomial)):
        own = []
        for seed in config.seeds:
            vae, _ = trained(
                lambda d=decoder: autoencoder(started(d.mlp(*sizes), train), train, config),
                train,
                seed,
                steps=config.count_steps,
                learning_rate=3e-3,
                validation=validation,
            )
            own.append(score(vae, test, config.num_samples, seed).values)
        values[kind] = own
    reference = np.mean(values["Poisson"], 0) if truth is None else truth
    rows = []
    for kind, own in values.items():
        difference = paired(np.mean(own, 0), reference)
        nats = mean([float(v.mean()) for v in own])
        rows.append(
            {
                "data": name,
                "decoder": kind,
                "nats": nats.mean,
                "nats_stderr": nats.stderr,
                "difference": difference.mean,
                "difference_stderr": difference.stderr,
                "truth": None if truth is None else float(truth.mean()),
            }
        )
    return rows


def started(decoder: Any, x: Tensor) -> nn.Module:
    """The decoder with training started at the means of x."""
    decoder.start_at(x)
    return decoder


# The figure


def draw(found: Findings) -> Figure:
    """Bits per dimension and nats of counts on the left, draws and means of each decoder on the right."""
    figure = new_figure(13, 7)
    parts = figure.add_gridspec(2, 2, width_ratios=[1, 1.15], height_ratios=[1.5, 1])
    draw_levels(figure.add_subplot(parts[0, 0]), found.numbers["levels"], found.numbers["num_levels"])
    draw_counts(figure.add_subplot(parts[1, 0]), found.numbers["counts"])
    draw_samples(figure.add_subplot(parts[:, 1]), found)
    return figure


def draw_levels(axes: Axes, rows: list[dict[str, Any]], num_levels: int) -> None:
    """Bits per dimension; upper bounds are hollow."""
    rows = sorted(rows, key=lambda r: -r["bits"])
    bounds = [is_density(r["decoder"]) for r in rows]
    for y, (row, bound) in enumerate(zip(rows, bounds, strict=True)):
        color = "0.5" if row["decoder"] == BASELINE else DARK
        face = "white" if bound else color
        error = 2 * (row["bits_stderr"] or 0.0)
        axes.errorbar(row["bits"], y, xerr=error, fmt="o", color=color, mfc=face, ms=8, capsize=3)
        axes.annotate(f"{row['bits']:.2f}", (row["bits"], y), (0, 7), textcoords="offset points", ha="center", size=8)
    axes.plot([], [], "o", color=DARK, ms=8, label="probability of the levels")
    axes.plot([], [], "o", color=DARK, mfc="white", ms=8, label="upper bound, by a density of dequantised data")
    axes.set_yticks(range(len(rows)), [r["decoder"] for r in rows])
    axes.set(xlabel=f"bits per dimension of the same {num_levels} levels, test data; fewer is better")
    axes.set_ylim(-0.6, len(rows) + 0.9)
    axes.set_title(f"Fewest bits: {rows[-1]['decoder']}", loc="left")
    axes.legend(frameon=False, loc="upper right", fontsize=8)
    quiet(axes)


def draw_counts(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Nats per datum by which a decoder is better or worse than the truth, or than Poisson."""
    names = [f"{r['data']}:\n{r['decoder']}" for r in rows]
    for y, row in enumerate(rows):
        color = LIGHT if row["decoder"] == "Poisson" else MIDDLE
        axes.barh(y, row["difference"], color=color, xerr=2 * row["difference_stderr"], capsize=3, height=0.6)
        text = f"{row['difference']:+.2f}" if row["difference"] else "0"
        end = row["difference"] + 2 * row["difference_stderr"] * np.sign(row["difference"])
        side = -1 if end < 0 else 1
        axes.annotate(
            text,
            (end, y),
            (5 * side, 0),
            textcoords="offset points",
            va="center",
            ha="left" if side > 0 else "right",
            size=8,
        )
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set(xlabel="nats per datum less the truth (generated) or less Poisson (ink), test data")
    axes.set_title("Counts: the negative binomial finds the dispersion, Poisson cannot", loc="left")
    quiet(axes)


def draw_samples(axes: Axes, found: Findings) -> None:
    """A row for each decoder: draws of x, then means of x, of the same latents."""
    names = [r["decoder"] for r in sorted(found.numbers["levels"], key=lambda r: r["bits"])]
    kinds = ("draws", "means")
    rows = {"test data": [found.pictures[DATA]]} | {
        name: [found.pictures[f"{name}, {kind}"] for kind in kinds] for name in names if name != BASELINE
    }
    image_rows(axes, rows, ["draws of x, z ~ N(0, I)", "E[x | z], the same z"])


def is_density(name: str) -> bool:
    """Whether a decoder, by its name, gives a density."""
    return likelihoods(STUDY.full, 1).get(name, (False, None))[0]


STUDY = Study(
    "likelihoods",
    measure,
    draw,
    full=Config(),
    small=Config(
        data="digits",
        pool=1,
        num_levels=17,
        num_train=500,
        num_test=50,
        latent_dim=4,
        hidden=(32,),
        num_steps=60,
        num_samples=20,
        num_counts=500,
        count_steps=60,
        seeds=(0, 1),
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
