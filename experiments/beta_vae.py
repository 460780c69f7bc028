"""What does beta trade, and what does it do to log p(x), to samples and to the latents? (claim C16).

The 784-200-200-50 VAE on MNIST, dynamic binarisation, trained with beta from 0.01 to 10; three seeds. Distortion and
rate of training and test data, log p(x) of test data, active units; sharpness of samples (means of p(x given z)), and
Fréchet distance, density and coverage of binary draws of them. log p(x) is that of the model, not of its guide: the
guide is trained on at beta = 1 with the decoder held fixed, and chains are annealed from it; beside it stand the
estimates that importance sampling makes of the same images with either guide. At two betas beta is also annealed from 0
in training: linearly over the first half, and in four cycles.

Expected: distortion falls with the rate along a convex front whose slope between neighbours lies between their betas
(each model minimises its own distortion + beta rate), on training data exactly, on test data where the model does not
overfit (beta near 1 and above). The ELBO is best at beta = 1, log p(x) at or just below. As beta falls reconstructions
gain detail; samples come nearer to data at first, and at the smallest betas, where the codes leave the prior as those
of an autoencoder do, they stop being digits. As it grows both blur and units fall silent. Annealing changes log p(x) by
less than a nat.

Found otherwise: annealing gains seven nats of log p(x) at beta = 4, where five to seven units more are active. Between
0.03 and 0.1 the slope of the front is 0.16, after twenty epochs.

Run: python -m experiments.beta_vae [--small]; half an hour on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import ppl_vae as pv
from experiments.common.annealing import annealing, schedule
from experiments.common.codes import coding, posterior_means
from experiments.common.curves import curve_over
from experiments.common.features import classifier
from experiments.common.front import front
from experiments.common.images import Images, images
from experiments.common.statistics import mean
from experiments.common.study import Findings, Study
from experiments.common.training import score, trained
from experiments.common.workers import over_cores
from ppl_vae.figures import show_rows
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet
from ppl_vae.latents import active_units
from ppl_vae.quality import density_coverage, frechet_distance, sharpness
from ppl_vae.recipes import bernoulli_vae
from ppl_vae.rng import key

_SHOWN = 8  # pictures of a kind


@dataclass(frozen=True)
class Config:
    """Full form."""

    data: str = "mnist"
    betas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 10.0)
    annealed: tuple[float, ...] = (1.0, 4.0)
    shown: tuple[float, ...] = (0.01, 0.1, 1.0, 4.0, 10.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    latent_dim: int = 50
    hidden: tuple[int, ...] = (200, 200)
    learning_rate: float = 1e-3
    epochs: int = 20
    guide_epochs: int = 5
    num_samples: int = 2000
    num_scored: int = 128
    num_chains: int = 4
    num_temperatures: int = 150
    num_leapfrog: int = 8
    num_images: int = 5000
    num_processes: int = 2


class Judge(NamedTuple):
    """What all models of the study are held against."""

    binary: Tensor
    """Test data, binarised once (N, D)."""
    seen: Tensor
    """As many training data, binarised once (N, D)."""
    grey: np.ndarray
    """The same test data in grey (N, H, W)."""
    features: Callable[[Tensor], np.ndarray]
    """Images to features."""
    real: np.ndarray
    """Features of the binary test data."""

    def row(self, vae: pv.VAE, config: Config, seed: int) -> dict[str, Any]:
        """All numbers of a model."""
        samples = vae.sample(len(self.grey), seed, mean=True)
        copies = vae.reconstruct(self.binary)[0]
        fake = self.features(pv.data.binarize(samples, key(seed, 2)))  # means of few contrast are no draws of a model
        held = coding(vae, self.binary)
        seen = coding(vae, self.seen)
        spread = density_coverage(self.real, fake)
        return {
            "distortion": held.distortion,
            "rate": held.rate,
            "seen_distortion": seen.distortion,
            "seen_rate": seen.rate,
            "active": int(active_units(posterior_means(vae, self.binary)).sum()),
            "frechet": frechet_distance(self.real, fake),
            "density": spread.density,
            "coverage": spread.coverage,
            "sharpness": sharpness(samples.reshape(self.grey.shape), self.grey),
            "copy_sharpness": sharpness(copies.reshape(self.grey.shape), self.grey),
        }


@cache
def judge(config: Config) -> tuple[Images, Judge, dict[str, float]]:
    """The data, the judge, and what there is to know of it; every process has its own."""
    data = images(config.data)
    test = data.test[: config.num_images]
    binary, seen = pv.data.binarize(test, 0), pv.data.binarize(data.train[: len(test)], 1)
    features = classifier(pv.data.binarize(data.train[:20_000], 2), data.train_labels[:20_000], data.shape)
    grey = test.reshape(-1, *data.shape[1:]).numpy()
    real = features(binary)
    floor = frechet_distance(real, features(pv.data.binarize(data.train[-len(test) :], 3)))
    facts = {"classifier_accuracy": features.accuracy, "frechet_of_training_data": floor}
    return data, Judge(binary, seen, grey, features, real), facts


class Cell(NamedTuple):
    """One training."""

    seed: int
    how: str
    """Whether beta is constant, or how it is annealed."""
    beta: float


class Found(NamedTuple):
    """What there is to say of a cell."""

    row: dict[str, Any]
    """Its numbers."""
    values: np.ndarray
    """log p(x) of each datum, annealed (N,), nats."""
    pictures: dict[str, np.ndarray]
    """Reconstructions and samples, where they are shown."""


def found_of(config: Config, cell: Cell) -> Found:
    """Trains one model, judges it, and anneals for its log p(x)."""
    data, examiner, _ = judge(config)
    num_steps = config.epochs * -(-len(data.train) // 128)
    vae, _ = trained(
        lambda: bernoulli_vae(data.train, config.latent_dim, config.hidden),
        data.train,
        cell.seed,
        objective=pv.ELBO(beta=schedule(cell.how, cell.beta, num_steps)),
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        binarize="dynamic",
    )
    row = {"how": cell.how, "beta": cell.beta, "seed": cell.seed, **examiner.row(vae, config, cell.seed)}
    pictures = {}
    if cell.how == "constant" and cell.seed == config.seeds[0] and cell.beta in config.shown:
        copies, samples = vae.reconstruct(examiner.binary[:_SHOWN])[0], vae.sample(_SHOWN, cell.seed, mean=True)
        for kind, x in (("copies", copies), ("samples", samples)):
            pictures[f"{kind} {cell.beta:g}"] = x.reshape(-1, *data.shape[1:]).numpy()
    scored = examiner.binary[: config.num_scored]
    row["guide_as_trained"] = score(vae, scored, config.num_samples).numbers()
    retrain_guide(vae, data.train, config, cell.seed)
    row["guide_trained_on"] = score(vae, scored, config.num_samples).numbers()
    annealed = annealed_from_guide(vae, scored, config, cell.seed)
    row |= {"log_likelihood": annealed.mean, "monte_carlo_error": annealed.mean_stderr}
    return Found(row, annealed.value, pictures)


def measure(config: Config) -> Findings:
    """Every beta and way of annealing, every seed; the front in numbers; pictures of the first seed."""
    _, examiner, facts = judge(config)
    ways = [("constant", beta) for beta in config.betas]
    ways += [(how, beta) for how in ("linear", "cyclical") for beta in config.annealed]
    cells = [Cell(seed, how, beta) for seed, (how, beta) in product(config.seeds, ways)]
    found = dict(
        zip(cells, over_cores(partial(found_of, config), cells, "trainings", config.num_processes), strict=True)
    )
    rows, pictures = [], {"data": examiner.grey[: 2 * _SHOWN]}
    for cell, one in found.items():
        at_one = found[Cell(cell.seed, "constant", 1.0)]
        rows.append(one.row | {"above_beta_one": float(np.mean(one.values - at_one.values))})
        pictures |= one.pictures
    constant = [row for row in rows if row["how"] == "constant"]
    fronts = {part: front(constant, f"{prefix}rate", f"{prefix}distortion") for part, prefix in _PARTS.items()}
    return Findings({**facts, "rows": rows, "front": fronts, "annealing": annealing(rows)}, pictures)


_PARTS = {"training": "seen_", "test": ""}  # prefix of the names of distortion and rate


def retrain_guide(vae: pv.VAE, train: Tensor, config: Config, seed: int) -> None:
    """The guide alone is trained on, at beta = 1: the model stays what it is."""
    vae.decoder.requires_grad_(False)
    options = {"epochs": config.guide_epochs, "learning_rate": config.learning_rate, "binarize": "dynamic"}
    pv.fit(vae, train, seed=key(seed, 1), progress=False, **options)


def annealed_from_guide(vae: pv.VAE, x: Tensor, config: Config, seed: int) -> pv.AnnealedLogLikelihood:
    """log p(x) by chains from the guide to the posterior: a lower bound in mean, nearer than any guide's own."""
    annealing = pv.Annealing(config.num_chains, config.num_temperatures, config.num_leapfrog)
    return pv.annealed_importance_sampling(vae, x, annealing, seed, compare_starts=False, progress=False)


def draw(found: Findings) -> Figure:
    """The front, log p(x), samples and units over beta, and pictures along the curve."""
    rows = [row for row in found.numbers["rows"] if row["how"] == "constant"]
    figure = new_figure(14, 12)
    panels = figure.subplot_mosaic(
        [[*"AABBCC"], [*"DDHHEE"], [*"FFFGGG"]], height_ratios=[1, 1, 1.3], gridspec_kw={"hspace": 0.05}
    )
    _draw_front(panels["A"], found)
    _draw_likelihood(panels["B"], rows)
    _draw_sharpness(panels["C"], rows)
    _draw_frechet(panels["D"], rows, found.numbers["frechet_of_training_data"])
    _draw_coverage(panels["H"], rows)
    units = _curve(panels["E"], rows, "active", "active units", DARK, "o-")
    low, high = min(units), max(units)
    title = f"Active units: {units[low]:.0f} at beta = {low:g}, {units[high]:.0f} at {high:g}"
    panels["E"].set(title=title, ylabel="units whose mean varies", ylim=(0, None))
    for name in "BCDEH":
        panels[name].set(xscale="log", xlabel="beta")
    for name in "BCDH":
        panels[name].legend(frameon=False, fontsize="small")
    copies, samples = (
        {f"beta = {name.split()[1]}": x for name, x in found.pictures.items() if name.startswith(kind)}
        for kind in ("copies", "samples")
    )
    data, others = np.split(found.pictures["data"], 2)
    show_rows(panels["F"], {"data": data} | copies, "Data and their reconstructions")
    show_rows(panels["G"], {"data": others} | samples, "Data and samples: means of p(x given z), z from the prior")
    return figure


def _draw_likelihood(axes: Axes, rows: list[dict[str, Any]]) -> None:
    guides = ("guide_trained_on", "guide_as_trained")
    flat = [row | {f"{guide} {name}": row[guide][name] for guide in guides for name in row[guide]} for row in rows]
    curve = _curve(axes, flat, "log_likelihood", "log p(x), annealed", DARK, "o-")
    _curve(axes, flat, "guide_trained_on log_likelihood", "importance sampling, guide trained on", MIDDLE, "^:")
    _curve(axes, flat, "guide_as_trained log_likelihood", "importance sampling, guide as trained", MIDDLE, "v--")
    bound = _curve(axes, flat, "guide_as_trained elbo", "ELBO as trained", LIGHT, "s--")
    best, best_bound = max(curve, key=curve.__getitem__), max(bound, key=bound.__getitem__)
    axes.set(
        title=f"log p(x) is best at beta = {best:g}, the ELBO at {best_bound:g}",
        ylabel="test data, nats per datum",
    )


def _draw_sharpness(axes: Axes, rows: list[dict[str, Any]]) -> None:
    copies = _curve(axes, rows, "copy_sharpness", "reconstructions", DARK, "o-")
    _curve(axes, rows, "sharpness", "samples", LIGHT, "s--")
    axes.axhline(1.0, color="0.5", linestyle=":", label="data")
    first, last = copies[min(copies)], copies[max(copies)]
    axes.set(title=f"Detail of reconstructions: {first:.0%} down to {last:.0%}", ylim=(0, None))
    axes.set_ylabel("power of fine detail / that of data")


def _draw_frechet(axes: Axes, rows: list[dict[str, Any]], floor: float) -> None:
    curve = _curve(axes, rows, "frechet", "binary draws", DARK, "o-")
    axes.axhline(floor, color="0.5", linestyle=":", label="training data")
    best = min(curve, key=curve.__getitem__)
    axes.set(title=f"Draws are nearest to data at beta = {best:g}", yscale="log")
    axes.set_ylabel("Fréchet distance to binary test data")


def _draw_coverage(axes: Axes, rows: list[dict[str, Any]]) -> None:
    coverage = _curve(axes, rows, "coverage", "coverage: data with a draw near them", DARK, "o-")
    density = _curve(axes, rows, "density", "density: draws near data", LIGHT, "s--")
    axes.axhline(1.0, color="0.5", linestyle=":", label="about that of data")
    best, best_density = max(coverage, key=coverage.__getitem__), max(density, key=density.__getitem__)
    axes.set(title=f"Coverage is best at beta = {best:g}, density at {best_density:g}", ylim=(0, 1.25))
    axes.set_ylabel("share of data; relative number of data")


def _curve(axes: Axes, rows: list[dict[str, Any]], what: str, label: str, *look: str) -> dict[float, float]:
    return curve_over(axes, rows, "beta", what, label, *look)


def _draw_front(axes: Axes, found: Findings) -> None:
    """Distortion against rate: training and test data, each beta named, annealed models beside."""
    rows = found.numbers["rows"]
    for prefix, label, colour, style in (("seen_", "training data", LIGHT, "s--"), ("", "test data", DARK, "o-")):
        constant = [row for row in rows if row["how"] == "constant"]
        points = [
            [mean([row[prefix + what] for row in constant if row["beta"] == beta]).mean for what in _AXES]
            for beta in sorted({row["beta"] for row in constant})
        ]
        axes.plot(*np.array(points).T, style, color=colour, label=label)
    for beta, (rate, distortion) in zip(sorted({row["beta"] for row in constant}), points, strict=True):
        axes.annotate(f"{beta:g}", (rate, distortion), (6, 6), textcoords="offset points")
    for how, marker in (("linear", "^"), ("cyclical", "v")):
        own = [row for row in rows if row["how"] == how]
        axes.plot(
            *([r[what] for r in own] for what in _AXES), marker, color=MIDDLE, mfc="none", label=f"{how}, test data"
        )
        for beta in sorted({row["beta"] for row in own}) if how == "linear" else ():
            centre = [mean([row[what] for row in own if row["beta"] == beta]).mean for what in _AXES]
            axes.annotate(f"({beta:g})", centre, (-20, -16), textcoords="offset points", color=MIDDLE)
    judged = found.numbers["front"]["training"]
    words = "Distortion falls with the rate" if judged["monotone"]["mean"] > 0 else "Not monotone"
    words += ", along a convex front" if judged["convex"]["mean"] > 0 else ", along a curve that is not convex"
    axes.set(title=words, xlabel="rate, nats per datum", ylabel="distortion, nats per datum")
    axes.legend(frameon=False, title="numbers: beta (annealed)")
    quiet(axes)


_AXES = ("rate", "distortion")

STUDY = Study(
    "beta_vae",
    measure,
    draw,
    full=Config(),
    small=Config(
        data="digits",
        betas=(0.1, 1.0, 10.0),
        annealed=(1.0,),
        shown=(0.1, 1.0, 10.0),
        seeds=(0, 1),
        latent_dim=4,
        hidden=(32,),
        learning_rate=1e-2,
        epochs=2,
        guide_epochs=1,
        num_samples=20,
        num_scored=50,
        num_chains=2,
        num_temperatures=3,
        num_leapfrog=2,
        num_images=360,
        num_processes=1,
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
