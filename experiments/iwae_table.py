"""Do more samples train a better model? Table 1 of Burda, Grosse and Salakhutdinov (2016) (claims C4, C5, C18).

Dynamically binarised MNIST, the paper's networks with one and two stochastic layers, trained by the ELBO and by the
importance-weighted bound with k samples, all for the same number of epochs, with three seeds; the negative
log-likelihood of test images by 5,000 importance samples. One more VAE with k = 1 trains for as long as it takes to see
what the small budget hides.

Expected: the importance-weighted bound gets better with k (1 > 5 > 50 in NLL), in one and in two layers; the ELBO with
k samples gains less (its gradient is less noisy, no more). In the paper two layers overtake one. After the
paper's 3,280 epochs (k = 1, 5, 50): one layer, VAE 86.76, 86.47, 86.35 and IWAE 86.76, 85.54, 84.78; two layers, VAE
85.33, 85.01, 84.78 and IWAE 85.33, 83.89, 82.90. The table here is of a few epochs and its numbers are higher; the
long training reaches 88.9 or less.

Run: python -m experiments.iwae_table [--small]; 57 minutes on two cores, one training on each.
The paper's own protocol, days on a GPU, into a folder of its own:
python -c "from pathlib import Path; from experiments.iwae_table import *; STUDY.run(PAPER, Path('results-paper'))"
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import ceil
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import ppl_vae as pv
from experiments.common.images import images
from experiments.common.statistics import mean, paired
from experiments.common.study import Findings, Study
from experiments.common.training import Score, score, trained
from experiments.common.workers import over_cores
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet
from ppl_vae.schedules import Cosine, Schedule, Step

# Negative log-likelihoods of table 1 of the paper, in nats: (layers, objective, k).
PUBLISHED = {
    (1, "VAE", 1): 86.76,
    (1, "VAE", 5): 86.47,
    (1, "VAE", 50): 86.35,
    (1, "IWAE", 5): 85.54,
    (1, "IWAE", 50): 84.78,
    (2, "VAE", 1): 85.33,
    (2, "VAE", 5): 85.01,
    (2, "VAE", 50): 84.78,
    (2, "IWAE", 5): 83.89,
    (2, "IWAE", 50): 82.90,
}


@dataclass(frozen=True)
class Config:
    """Full form."""

    data: str = "mnist"
    num_train: int | None = None
    num_test: int = 1000
    hidden: tuple[tuple[int, ...], tuple[int, ...]] = ((200, 200), (100, 100))
    latent_dims: tuple[tuple[int, ...], tuple[int, ...]] = ((50,), (100, 50))  # with one layer, with two
    particles: tuple[int, ...] = (1, 5, 50)
    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 2e-3
    decay: Literal["cosine", "paper"] = "cosine"
    long_epochs: int = 500
    long_learning_rate: float = 1e-3
    num_samples: int = 5000
    seeds: tuple[int, ...] = (0, 1, 2)
    compile: bool = True
    num_processes: int = 2


PAPER = Config(
    num_test=10_000,
    epochs=3280,
    long_epochs=0,
    batch_size=20,
    learning_rate=1e-3,
    decay="paper",
    seeds=(0,),
    num_processes=1,
)
"""The protocol of the paper: 3,280 epochs in batches of 20, the learning rate falling in eight stages."""


class Cell(NamedTuple):
    """One training of the table."""

    layers: int
    """Stochastic layers."""
    objective: str
    """VAE or IWAE."""
    k: int
    """Samples."""


def cells(config: Config) -> list[Cell]:
    """The trainings of the table; with one sample both objectives are the same."""
    return [
        Cell(layers, objective, k)
        for layers in (1, 2)
        for objective in ("VAE", "IWAE")
        for k in config.particles
        if not (objective == "IWAE" and k == 1)
    ]


class Training(NamedTuple):
    """One model to train."""

    cell: Cell
    """Its place in the table."""
    seed: int
    """Of parameters, order and noise."""
    epochs: int
    """Passes over the data."""
    learning_rate: float
    """At the start."""


class Trained(NamedTuple):
    """What became of it."""

    score: Score
    """On the test images."""
    minutes: float
    """Of training, scoring apart."""


def measure(config: Config) -> Findings:
    """Every cell and seed, its differences to the VAE with one sample on the same images, and the long training."""
    table = [
        Training(cell, seed, config.epochs, config.learning_rate)
        for cell in sorted(cells(config), key=lambda cell: (-cell.k, -cell.layers))
        for seed in config.seeds
    ]
    long = Training(Cell(1, "VAE", 1), config.seeds[0], config.long_epochs, config.long_learning_rate)
    work = [long, *table] if config.long_epochs else table
    found = dict(zip(work, over_cores(partial(result, config), work, "trainings", config.num_processes), strict=True))
    rows = [row(training, found) for training in sorted(table, key=lambda t: (t.seed, t.cell))]
    lengths = {"epochs": config.epochs, "long_epochs": config.long_epochs}
    last = row(long, found) if config.long_epochs else {}
    return Findings({"rows": rows, "long": last, "published": published(config.data), **lengths})


def result(config: Config, training: Training) -> Trained:
    """Trains a pair and scores it."""
    parts = images(config.data, config.num_train, config.num_test)
    cell, epochs, per_epoch = training.cell, training.epochs, ceil(len(parts.train) / config.batch_size)
    start = time.perf_counter()
    pair, _ = trained(
        partial(make, config, cell.layers, parts.train),
        parts.train,
        training.seed,
        objective=pv.IWAE(cell.k) if cell.objective == "IWAE" else pv.ELBO(cell.k),
        epochs=epochs,
        batch_size=config.batch_size,
        learning_rate=training.learning_rate,
        optimizer=partial(torch.optim.Adam, eps=1e-4) if config.decay == "paper" else None,
        schedule=schedule(config.decay, epochs, per_epoch),
        binarize="dynamic",
        compile="auto" if config.compile else False,
    )
    minutes = (time.perf_counter() - start) / 60
    return Trained(score(pair, pv.data.binarize(parts.test, seed=0), config.num_samples), minutes)


def make(config: Config, layers: int, train: Tensor) -> pv.VAE | pv.HierarchicalVAE:
    """The paper's network with so many stochastic layers, its pixels started at their means."""
    size, widths, dims = train.shape[1], config.hidden, config.latent_dims[layers - 1]
    if layers == 2:
        vae: pv.VAE | pv.HierarchicalVAE = pv.HierarchicalVAE.burda(size, widths, dims)
    else:
        decoder = pv.decoders.Bernoulli.mlp(dims[0], widths[0], size)
        encoder = pv.encoders.DiagonalNormal.mlp(size, widths[0], dims[0])
        vae = pv.VAE(pv.priors.StandardNormal(dims[0]), decoder, encoder)
    assert isinstance(vae.decoder, pv.decoders.Bernoulli)
    vae.decoder.start_at(train)
    return vae


def schedule(decay: str, epochs: int, per_epoch: int) -> Schedule:
    """Half a cosine; or the paper's stages, 10^(-i/7) for 3^i epochs."""
    if decay == "cosine":
        return Cosine(1.0, 0.01, epochs * per_epoch)
    ends = accumulate(3**i for i in range(7))
    return Step(tuple(end * per_epoch for end in ends), 10 ** (-1 / 7))


def row(training: Training, found: dict[Training, Trained]) -> dict[str, Any]:
    """Numbers of one training; its gain is over the VAE with one sample, on the same images and with the same seed."""
    cell, (own, minutes) = training.cell, found[training]
    base = training._replace(cell=Cell(cell.layers, "VAE", 1))
    gain = paired(own.values, found[base].score.values)
    return {
        **cell._asdict(),
        "seed": training.seed,
        "nll": -own.log_likelihood,
        "monte_carlo_error": own.stderr,
        "untrusted": own.untrusted,
        "elbo": own.elbo,
        "gain": gain.mean,
        "gain_stderr": gain.stderr,
        "minutes": minutes,
    }


def published(data: str) -> list[dict[str, Any]]:
    """Table 1 of the paper, for the data that it is about."""
    return [{**Cell(*key)._asdict(), "nll": nll} for key, nll in PUBLISHED.items() if data == "mnist"]


def draw(found: Findings) -> Figure:
    """NLL against k with the paper's, and what more samples gain on the same images."""
    numbers = found.numbers
    figure = new_figure(12, 4.8)
    left, right = figure.subplots(1, 2)
    draw_gains(left, numbers["rows"])
    draw_levels(right, numbers)
    for axes in (left, right):
        ks = sorted({r["k"] for r in numbers["rows"]})
        axes.set(xscale="log", xlabel="k samples in training", xticks=ks, xticklabels=ks)
        axes.minorticks_off()
        quiet(axes)
    return figure


def draw_gains(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Gain over the VAE with one sample, the same layers and the same seed."""
    for layers, line in ((1, "-"), (2, "--")):
        for objective, colour, marker in (("IWAE", DARK, "o"), ("VAE", LIGHT, "s")):
            ks, gains, errors = series(rows, layers, objective)
            label = f"{objective}, {layers} layer{'s' if layers > 1 else ''}"
            apart = np.array(ks) * (1.04 if layers == 2 else 1.0)
            axes.errorbar(apart, gains, 2 * errors, fmt=line, marker=marker, color=colour, capsize=3, label=label)
    axes.axhline(0, color="0.5", zorder=0)
    seeds = len({r["seed"] for r in rows})
    axes.set_ylabel(f"log p(x) above the VAE with k = 1, nats per image\n(bars: 2 standard errors over {seeds} seeds)")
    axes.set_title(title_of(rows))
    axes.legend(frameon=False)


def title_of(rows: list[dict[str, Any]]) -> str:
    """What the largest k gains by either objective, in one layer."""
    k = max(r["k"] for r in rows)
    by_bound, by_elbo = (series(rows, 1, objective)[1][-1] for objective in ("IWAE", "VAE"))
    gains = f"{by_bound:.2f} nats under the\nimportance-weighted bound, {by_elbo:.2f} under the ELBO"
    return f"In one layer k = {k} samples gain {gains}"


def series(rows: list[dict[str, Any]], layers: int, objective: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Gains with their errors by k, k = 1 being common to both objectives."""
    own = [r for r in rows if r["layers"] == layers and (r["objective"] == objective or r["k"] == 1)]
    ks = sorted({r["k"] for r in own})
    gains = [mean([r["gain"] for r in own if r["k"] == k]) for k in ks]
    return ks, np.array([gain.mean for gain in gains]), np.array([gain.stderr for gain in gains])


def draw_levels(axes: Axes, numbers: dict[str, Any]) -> None:
    """NLL of this budget, of the long training and of the paper."""
    here, there = f"{numbers['epochs']} epochs", "paper, 3280 epochs"
    for name, rows, colour in ((here, numbers["rows"], DARK), (there, numbers["published"], MIDDLE)):
        for layers, line, marker in ((1, "-", "o"), (2, "--", "^")):
            own = [r for r in rows if r["layers"] == layers and (r["objective"] == "IWAE" or r["k"] == 1)]
            ks = sorted({r["k"] for r in own})
            nll = [np.mean([r["nll"] for r in own if r["k"] == k]) for k in ks]
            label = f"{layers} layer{'s' if layers > 1 else ''}, {name}"
            if ks:
                axes.plot(ks, nll, line, marker=marker, color=colour, label=label)
    if numbers["long"]:
        label = f"VAE, 1 layer, {numbers['long_epochs']} epochs: {numbers['long']['nll']:.2f}"
        axes.plot([1], [numbers["long"]["nll"]], "*", color=LIGHT, markersize=13, label=label)
    axes.set_ylabel("NLL of test images, nats per image")
    axes.set_title("NLL of models trained by the importance-weighted\nbound with k samples (k = 1 is the VAE)")
    axes.legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1, 0.55))


STUDY = Study(
    "iwae_table",
    measure,
    draw,
    full=Config(),
    small=Config(
        data="digits",
        num_train=200,
        num_test=20,
        hidden=((10, 10), (8, 8)),
        latent_dims=((3,), (4, 2)),
        particles=(1, 3),
        epochs=3,
        batch_size=50,
        long_epochs=6,
        num_samples=50,
        seeds=(0, 1),
        compile=False,
        num_processes=1,
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
