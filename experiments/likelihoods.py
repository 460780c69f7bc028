"""Which likelihood suits which data? (claim C7).

(a) The same images, in L grey levels, under every decoder that can score them, with the same networks, steps and seeds,
in bits per dimension of the levels: categorical, discretised logistic, a mixture of five of them; and, on data
dequantised to [0, 1], Gaussian with one learned scale, Gaussian with sigma(z), and continuous Bernoulli. These three
give densities, which bound the probability of the levels (`ppl_vae.data.levels_log_prob`): their bits are upper bounds.
The baseline takes pixels for independent and knows the frequencies of their levels.
(b) Counts, under Poisson and negative binomial decoders: generated ones, over-dispersed, whose true likelihood is known
by quadrature over their one latent; and the digits, whose pixels count ink from 0 to 16.

Expected: (a) decoders of levels beat the baseline by most of a bit, the mixture first: bins that take the tails let a
logistic put its mass on black, a mixture also on black and grey at once. A categorical has more to learn, since it does
not know that levels are ordered, and comes close with many data and steps. Densities lose half a bit or more: black
pixels fill a sixteenth of [0, 1] evenly, with an edge that no Gaussian has; sigma(z) does better than one scale for all
pixels, which may lose to the baseline. (b) The negative binomial comes within a tenth of a nat of the truth, Poisson
lies several nats below. Ink is not over-dispersed once the latents are known: on digits the negative binomial falls
back on Poisson, within a nat, and a discretised logistic, which can be narrower, gains many nats over both.

Run: python -m experiments.likelihoods [--small]; 12 minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from experiments.common.progress import steps
from experiments.common.statistics import mean, paired
from experiments.common.study import Findings, Study
from experiments.common.training import score, trained
from ppl_vae import decoders
from ppl_vae.figures import show_rows
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet
from ppl_vae.report import bits_per_dimension
from ppl_vae.rng import seeded

DATA, BASELINE = "data", "independent pixels"
COPIES = 10  # of the training data with other noise, so that a density cannot learn the noise by heart


@dataclass(frozen=True)
class Config:
    """Data, networks and their training."""

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
    num_shown: int = 4
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
    data = images(config.data, config.num_train, config.num_test)
    side = data.shape[-1] // config.pool
    train, test = (pooled_levels(x, data.shape, config.pool, config.num_levels) for x in (data.train, data.test))
    dim, top = train.shape[1], config.num_levels - 1
    dense_train = torch.cat([pv.data.dequantize(train / top, config.num_levels, seed) for seed in range(COPIES)])
    dense_test = pv.data.dequantize(test / top, config.num_levels, COPIES)

    log_probs, untrusted = {BASELINE: [independent_pixels(train, test, config.num_levels)]}, {BASELINE: [0.0]}
    pictures = {DATA: (test[: 2 * config.num_shown] / top).numpy()}
    for name, (dense, decoder) in steps(list(likelihoods(config, dim).items()), "decoders"):
        log_probs[name], untrusted[name] = [], []
        for seed in config.seeds:
            x, held_out = (dense_train, dense_test) if dense else (train, test)
            vae, _ = trained(lambda d=decoder, x=x: autoencoder(d(), x, config), x, seed, steps=config.num_steps)
            found = score(vae, held_out, config.num_samples, seed)
            untrusted[name].append(found.untrusted)
            bound = pv.data.levels_log_prob(found.values, dim, config.num_levels)
            log_probs[name].append(bound if dense else found.values)
            if seed == config.seeds[0]:
                white = 1 if dense else top
                for kind, is_mean in (("draws", False), ("means", True)):
                    pictures[f"{name}, {kind}"] = (vae.sample(config.num_shown, mean=is_mean) / white).numpy()
    return (
        [row_of(name, dim, log_probs, mean(untrusted[name]).mean) for name in log_probs],
        {name: np.clip(x, 0, 1).reshape(-1, side, side) for name, x in pictures.items()},
    )


def autoencoder(decoder: Any, x: Tensor, config: Config) -> pv.VAE:
    """The decoder, started at the pixels' means or frequencies if it can be, with an encoder of standardised data."""
    if hasattr(decoder, "start_at"):
        decoder.start_at(x)
    network = pv.networks.MLP(x.shape[1], config.hidden, 2 * config.latent_dim)
    encoder = nn.Sequential(pv.networks.Standardize(x.mean(), x.std()), network)
    prior = pv.priors.StandardNormal(config.latent_dim)
    return pv.VAE(prior, decoder, pv.encoders.DiagonalNormal(encoder, config.latent_dim))


def row_of(name: str, dim: int, log_probs: dict[str, list[np.ndarray]], untrusted: float) -> dict[str, Any]:
    """Bits per dimension over seeds, and how many more than others on the same test data, seeds averaged."""
    bits = [bits_per_dimension(float(values.mean()), dim) for values in log_probs[name]]
    of_data = {n: np.mean(values, 0) / (-dim * np.log(2)) for n, values in log_probs.items()}
    best = min(of_data.values(), key=np.mean)
    excess, behind = paired(of_data[name], of_data["categorical"]), paired(of_data[name], best)
    return {
        "decoder": name,
        "bits": mean(bits).mean,
        "bits_stderr": mean(bits).stderr,
        "more_than_categorical": excess.mean,
        "more_stderr": excess.stderr,
        "more_than_best": behind._asdict(),
        "untrusted": untrusted,
    }


# (b) Counts


def generated(config: Config) -> list[dict[str, Any]]:
    """Test log-likelihood of generated counts under both decoders, less the true one."""
    generator = torch.Generator().manual_seed(0)
    slope, level = torch.randn(2, config.count_dim, generator=generator)
    dispersion = torch.tensor(config.dispersion)

    def given(z: Tensor) -> pv.distributions.NegativeBinomial:
        return pv.distributions.NegativeBinomial((0.5 * z[:, None] * slope + level + 1).exp(), dispersion)

    sizes = [config.num_counts, config.num_test, config.num_test]
    with seeded(0):
        parts = given(torch.randn(sum(sizes))).sample().split(sizes)
    z = torch.linspace(-8, 8, 401)
    log_joint = given(z).log_prob(parts[-1][:, None]).sum(-1) + torch.distributions.Normal(0, 1).log_prob(z)
    truth = torch.logsumexp(log_joint, 1) + (z[1] - z[0]).log()
    kinds = {"Poisson": decoders.Poisson.mlp, "negative binomial": decoders.NegativeBinomial.mlp}
    return count_rows("generated", kinds, parts, truth.numpy(), replace(config, latent_dim=2))


def ink(config: Config) -> list[dict[str, Any]]:
    """Test log-likelihood of the digits' pixels as counts 0..16, less that of Poisson."""
    found = images("digits", None, config.num_test)
    parts = [pv.data.quantize(x, 17) for x in (found.train, found.validation, found.test)]
    kinds = {
        "Poisson": decoders.Poisson.mlp,
        "negative binomial": decoders.NegativeBinomial.mlp,
        "discretised logistic": partial(decoders.DiscretizedLogistic.mlp, num_levels=17),
    }
    return count_rows("digits", kinds, parts, None, config)


def count_rows(
    name: str,
    kinds: dict[str, Callable[..., nn.Module]],
    parts: Sequence[Tensor],
    truth: np.ndarray | None,
    config: Config,
) -> list[dict[str, Any]]:
    """Nats per datum of each decoder; differences to the truth or, without one, to Poisson, over test data."""
    train, validation, test = parts
    options = {"steps": config.count_steps, "learning_rate": 3e-3, "validation": validation}
    rows: list[dict[str, Any]] = []
    reference = truth
    for kind, mlp in kinds.items():
        decoder = partial(mlp, config.latent_dim, config.hidden, train.shape[1])
        pairs = [trained(lambda d=decoder: autoencoder(d(), train, config), train, s, **options) for s in config.seeds]
        scores = [score(vae, test, config.num_samples, s) for s, (vae, _) in zip(config.seeds, pairs, strict=True)]
        own = np.mean([s.values for s in scores], 0)
        reference = own if reference is None else reference
        nats, difference = mean([s.log_likelihood for s in scores]), paired(own, reference)
        row = {"data": name, "decoder": kind, "untrusted": mean([s.untrusted for s in scores]).mean}
        row |= {"nats": nats.mean, "nats_stderr": nats.stderr}
        rows.append(row | {"difference": difference.mean, "difference_stderr": difference.stderr})
    return rows


# The figure


def draw(found: Findings) -> Figure:
    """Bits per dimension and nats of counts on the left, draws and means of each decoder on the right."""
    figure = new_figure(14, 6.6)
    parts = figure.add_gridspec(2, 3, width_ratios=[1, 0.7, 0.7], height_ratios=[1.4, 1])
    draw_levels(figure.add_subplot(parts[0, 0]), found.numbers["levels"], found.numbers["num_levels"])
    draw_counts(figure.add_subplot(parts[1, 0]), found.numbers["counts"])
    draw_samples(figure.add_subplot(parts[:, 1]), figure.add_subplot(parts[:, 2]), found)
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
    axes.set_title(f"The same levels cost the fewest bits by: {rows[-1]['decoder']}", loc="left", size=10)
    axes.legend(frameon=False, loc="upper right", fontsize=8)
    quiet(axes)


def draw_counts(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Nats per datum by which a decoder is better or worse than the truth, or than Poisson."""
    rows = [r for r in rows if r["difference"]]
    for y, row in enumerate(rows):
        value, error = row["difference"], 2 * row["difference_stderr"]
        axes.barh(y, value, xerr=error, color=LIGHT if row["data"] == "generated" else MIDDLE, capsize=3, height=0.6)
        side, place = (1, "left") if value > 0 else (-1, "right"), {"textcoords": "offset points", "va": "center"}
        axes.annotate(f"{value:+.2f}", (value + side[0] * error, y), (5 * side[0], 0), ha=side[1], size=8, **place)
    axes.axvline(0, color="0.3", lw=1)
    against = {"generated": "truth", "digits": "Poisson"}
    labels = [f"{r['data']}: {r['decoder']}\nless {against[r['data']]}" for r in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("difference of log p(x), nats per datum of test data, ± 2 standard errors")
    off = ", ".join(f"{r['decoder']} {r['difference']:+.2f}" for r in rows if r["data"] == "generated")
    axes.set_title(f"Over-dispersed counts, nats from the truth:\n{off}", loc="left", size=10)
    quiet(axes)


def draw_samples(left: Axes, right: Axes, found: Findings) -> None:
    """A row for each decoder: draws of x, and beside them means of x, of the same latents."""
    names = [r["decoder"] for r in sorted(found.numbers["levels"], key=lambda r: r["bits"]) if r["decoder"] != BASELINE]
    titles = {"draws": "draws of x, z ~ N(0, I)", "means": "E[x | z], the same z"}
    for axes, kind, data in zip((left, right), titles, np.split(found.pictures[DATA], 2), strict=True):
        show_rows(axes, {"test data": data} | {n: found.pictures[f"{n}, {kind}"] for n in names}, titles[kind])
        axes.set_anchor("N")
    right.set_yticks([])


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
        num_steps=10,
        num_samples=20,
        num_counts=500,
        count_steps=10,
        seeds=(0, 1),
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
