"""How much of the gap between ELBO and log p(x) does a more expressive posterior close? (claim C17).

Five families of q(z given x) on one network of x: diagonal, low-rank and full covariance, inverse autoregressive flow,
neural spline flow. First with one generative model: it is trained with a diagonal guide, then fixed, and each family's
guide, which starts at that diagonal one, is trained on it for fifteen epochs more with a learning rate that falls to
zero, the diagonal one too; with the first seed full covariance and spline once more for twice as long. All are held
against one estimate of log p(x), and `gap_decomposition` says how much of each gap is amortisation; of a flow at least
how much, for its search frees place and width of each image's q and leaves the flow as it is. Then each family is
trained together with a model of its own, whose log p(x) its own guide estimates.

Expected: on the fixed model gap = log p - ELBO falls from diagonal over low rank and full covariance to the flows;
the model was trained to please diagonal guides, so that the gap is a few nats and a part of it, the error of the
amortisation, stays whatever the family. Trained together, ELBOs order the same way; log p differs by less.

Run: python -m experiments.expressive_posterior [--small]; half an hour on two cores, where nothing else runs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn

import ppl_vae as pv
from experiments.common.images import images
from experiments.common.statistics import mean, paired
from experiments.common.study import Findings, Study
from experiments.common.training import Score, score, trained
from experiments.common.workers import over_cores
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet

FLOWS = ("inverse autoregressive", "neural spline")
LONGER = ("full covariance", "neural spline")  # trained once more for twice as long


@dataclass(frozen=True)
class Config:
    """A third of the time of the full form goes to the neural splines."""

    data: str = "mnist"
    num_train: int | None = None
    num_test: int = 250
    latent_dim: int = 10
    hidden: tuple[int, ...] = (200, 200)
    rank: int = 2
    context_dim: int = 100
    flow_hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 128
    epochs: int = 12
    guide_epochs: int = 15
    num_samples: int = 5000
    elbo_samples: int = 500
    search_steps: int = 300
    search_particles: int = 4
    flow_rounds: int = 2
    """Most rounds of the search for a flow, whose steps cost the most; a normal family has four."""
    seeds: tuple[int, ...] = (0, 1, 2)
    num_processes: int = 2


def families(config: Config, num_pixels: int) -> dict[str, Callable[[], nn.Module]]:
    """Encoders from the plainest to the richest; the first features of each network are mu(x) and sigma(x)."""
    encoders, plain = pv.encoders, (num_pixels, config.hidden, config.latent_dim)
    flow = {"context_dim": config.context_dim, "flow_hidden": config.flow_hidden}
    return {
        "diagonal": lambda: encoders.DiagonalNormal.mlp(*plain),
        "low rank": lambda: encoders.LowRankNormal.mlp(*plain, config.rank),
        "full covariance": lambda: encoders.FullCovarianceNormal.mlp(*plain),
        "inverse autoregressive": lambda: encoders.InverseAutoregressive.mlp(*plain, **flow),
        "neural spline": lambda: encoders.NeuralSpline.mlp(*plain, **flow),
    }


def vae(config: Config, encoder: nn.Module, decoder: nn.Module) -> pv.VAE:
    """A VAE with a standard normal prior."""
    return pv.VAE(pv.priors.StandardNormal(config.latent_dim), decoder, encoder)


@torch.no_grad()
def start_at(encoder: Any, diagonal: Any) -> None:
    """Give an encoder the network of the diagonal one; features that only it has start small."""
    for own, known in zip(encoder.network.parameters(), diagonal.network.parameters(), strict=True):
        own[len(known) :] *= 0.1
        own[: len(known)] = known


def data_of(config: Config) -> tuple[Tensor, Tensor]:
    """Grey training data, and test data binarised once."""
    found = images(config.data, config.num_train, config.num_test)
    return found.train, pv.data.binarize(found.test)


def fitted(config: Config, x: Tensor, make: Callable[[], pv.VAE], epochs: int, seed: int) -> pv.VAE:
    """A VAE trained with a learning rate that falls to zero."""
    total = epochs * math.ceil(len(x) / config.batch_size)
    falling = pv.schedules.Cosine(1.0, 0.0, total)
    options = {"batch_size": config.batch_size, "binarize": "dynamic", "schedule": falling}
    return trained(make, x, seed, epochs=epochs, **options)[0]


class Together(NamedTuple):
    """Model and guide of one family, trained together."""

    pair: pv.VAE
    score: dict[str, float]
    """ELBO and log p(x) of test data."""


def trained_together(config: Config, cell: tuple[int, str]) -> Together:
    """Train the model and guide of a seed and family."""
    seed, family = cell
    x, test = data_of(config)

    def both() -> pv.VAE:
        decoder = pv.decoders.Bernoulli.mlp(config.latent_dim, config.hidden, x.shape[1])
        decoder.start_at(x)
        return vae(config, families(config, x.shape[1])[family](), decoder)

    pair = fitted(config, x, both, config.epochs, seed)
    return Together(pair, score(pair, test, config.num_samples).numbers())


class Known(NamedTuple):
    """A guide to train on a model that stays as it is."""

    seed: int
    family: str
    pair: pv.VAE
    """The VAE whose model it is, with the diagonal guide where this one starts."""


def trained_on(config: Config, known: Known, times: int = 1) -> pv.VAE:
    """Train the guide, `times` as long as others."""
    x, _ = data_of(config)

    def guide() -> pv.VAE:
        start_at(encoder := families(config, x.shape[1])[known.family](), known.pair.encoder)
        return vae(config, encoder, copy.deepcopy(known.pair.decoder).requires_grad_(False))

    return fitted(config, x, guide, times * config.guide_epochs, known.seed)


def longer(config: Config, known: Known) -> np.ndarray:
    """ELBO of each datum (N,), nats, of a guide that trains for twice as long."""
    pair = trained_on(config, known, times=2)
    options = {"seed": known.seed, "num_draws": 0, "progress": False}
    return pv.log_likelihood(pair, data_of(config)[1], config.elbo_samples, **options).elbo


class Guided(NamedTuple):
    """A guide on a model that is fixed."""

    pair: pv.VAE
    parts: pv.GapDecomposition
    """Its ELBO, and what the best q of each datum wins back."""


def guided(config: Config, known: Known) -> Guided:
    """Train the guide and search for the best q of each datum."""
    pair = trained_on(config, known)
    search = pv.LocalSearch(config.search_steps, num_particles=config.search_particles)
    if known.family in FLOWS:
        search = replace(search, max_rounds=config.flow_rounds)
    options = {"seed": known.seed, "search": search, "richer": False, "progress": False}
    parts = pv.gap_decomposition(pair, data_of(config)[1], num_samples=config.elbo_samples, **options)
    return Guided(pair, parts)


def judged(config: Config, pair: pv.VAE) -> Score:
    """The estimate of log p(x) that all guides of a model are held against."""
    return score(pair, data_of(config)[1], config.num_samples)


class Fixed(NamedTuple):
    """What guides of each family are worth on one model."""

    gaps: np.ndarray
    """log p(x) - ELBO of each family and datum (F, N), nats."""
    amortisation: np.ndarray
    """The part of it that the best q of each datum wins back (F, N), nats."""
    searches: list[dict[str, float]]
    """How far the search for that q came in each family."""
    judge: dict[str, Any]
    """The evaluation that all are held against."""
    log_p: np.ndarray
    """Its value of each datum (N,), nats."""


def best_of(guides: dict[str, Guided]) -> str:
    """The family with the best ELBO."""
    return max(guides, key=lambda name: guides[name].parts.elbo.mean())


def fixed_model(guides: dict[str, Guided], judge: Score) -> Fixed:
    """Gap of each family and datum on one model."""
    parts = [guide.parts for guide in guides.values()]
    return Fixed(
        np.stack([judge.values - part.elbo for part in parts]),
        np.stack([part.amortisation for part in parts]),
        [searched(part) for part in parts],
        {"judge": best_of(guides), **judge.numbers()},
        judge.values,
    )


def searched(part: pv.GapDecomposition) -> dict[str, float]:
    """Whether the search can reach every q of its family, the share of data where it converged, its last gain."""
    return {
        "is_supremum": float(part.is_supremum),
        "converged": float(part.converged.mean()),
        "late_gain": float(part.late_gain.mean()),
    }


def measure(config: Config) -> Findings:
    """Gaps of each family on a model that is fixed; ELBO and log p where each is trained with its own model."""
    x = data_of(config)[1]
    names = list(families(config, x.shape[1]))
    cells = [(seed, name) for name in reversed(names) for seed in config.seeds]  # the longest first
    cores = partial(over_cores, num_processes=config.num_processes)
    together = dict(zip(cells, cores(partial(trained_together, config), cells, "models"), strict=True))
    known = {cell: Known(*cell, together[cell[0], "diagonal"].pair) for cell in cells}
    twice = [known[config.seeds[0], name] for name in LONGER]
    elbos = cores(partial(longer, config), twice, "longer trainings")
    found = dict(zip(cells, cores(partial(guided, config), list(known.values()), "guides"), strict=True))
    guides = [{name: found[seed, name] for name in names} for seed in config.seeds]
    judges = cores(partial(judged, config), [g[best_of(g)].pair for g in guides], "estimates of log p(x)")
    fixed = [fixed_model(*one) for one in zip(guides, judges, strict=True)]
    gaps, amortisation = (np.stack([getattr(f, part) for f in fixed]) for part in ("gaps", "amortisation"))
    rows = [gap_row(gaps, amortisation, names, i) | searches(fixed, i) for i in range(len(names))]
    runs = [{name: together[seed, name].score for name in names} for seed in config.seeds]
    joint = [joint_row(runs, name) for name in names]
    late = {name: mean(fixed[0].log_p - elbo)._asdict() for name, elbo in zip(LONGER, elbos, strict=True)}
    numbers = {"num_test": len(x), "seeds": len(runs), "fixed": rows, "judges": [f.judge for f in fixed]}
    return Findings({**numbers, "together": joint, "runs": runs, "trained_twice_as_long": late})


def searches(fixed: list[Fixed], i: int) -> dict[str, float]:
    """How far the searches of a family came, over seeds."""
    return {number: float(np.mean([f.searches[i][number] for f in fixed])) for number in fixed[0].searches[i]}


def gap_row(gaps: np.ndarray, amortisation: np.ndarray, names: list[str], i: int) -> dict[str, Any]:
    """Gap of a family, from gaps (S, F, N), its amortised part, and what it gains, with errors over data.

    The error of `over_diagonal_by_seed` is over trainings.
    """
    per_datum = gaps.mean(0)
    return {
        "family": names[i],
        "gap": mean(per_datum[i])._asdict(),
        "over_diagonal": paired(per_datum[0], per_datum[i])._asdict(),
        "gap_by_seed": gaps[:, i].mean(1),
        "over_diagonal_by_seed": paired(gaps[:, 0].mean(1), gaps[:, i].mean(1))._asdict(),
        "amortisation": mean(amortisation.mean(0)[i])._asdict(),
    }


def joint_row(runs: list[dict[str, dict[str, float]]], name: str) -> dict[str, Any]:
    """ELBO and log p of a family over seeds, and their gains over the diagonal one, paired by seed."""
    row: dict[str, Any] = {"family": name, "untrusted": float(np.mean([r[name]["untrusted"] for r in runs]))}
    for label, number in (("elbo", "elbo"), ("log_p", "log_likelihood")):
        own, plain = ([r[n][number] for r in runs] for n in (name, "diagonal"))
        row |= {label: mean(own)._asdict(), f"{label}_over_diagonal": paired(own, plain)._asdict()}
    return row


def draw(found: Findings) -> Figure:
    """Gaps on one fixed model, and what ELBO and log p gain where models are trained with their guides."""
    figure = new_figure(12.5, 4.8)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.1, 1))
    draw_gaps(left, found.numbers["fixed"])
    draw_joint(right, found.numbers["together"], found.numbers["seeds"])
    for axes in (left, right):
        quiet(axes)
        axes.grid(axis="y", visible=False)
    return figure


def draw_gaps(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """One bar a family, plainest on top, its split where that is known, and what it closes, paired by image."""
    y = np.arange(len(rows))
    gaps = np.array([r["gap"]["mean"] for r in rows])
    errors = [2 * r["over_diagonal" if i else "gap"]["stderr"] for i, r in enumerate(rows)]
    colours = [MIDDLE if is_split(r) else DARK for r in rows]
    axes.barh(y, gaps, xerr=errors, color=colours, ecolor="0.2", capsize=3, height=0.6)
    draw_split(axes, [(i, r) for i, r in enumerate(rows) if is_split(r)])
    for i, row in enumerate(rows[1:], start=1):
        gain = row["over_diagonal"]
        text = f"  {-gain['mean']:+.2f} ± {2 * gain['stderr']:.2f}"
        axes.text(gaps[i] + errors[i], i, text, va="center", fontsize=9)
    axes.set_xlim(0, 1.3 * (gaps[0] + errors[0]))
    axes.set_yticks(y, [r["family"] for r in rows])
    axes.set_ylim(len(rows) - 0.4, -1.7)
    axes.set_xlabel(
        "gap = log p(x) - ELBO, nats per test image; ± 2 standard errors over images:\n"
        "of the gap for the diagonal family, of the change from it, paired, for the others"
    )
    axes.set_title(f"One fixed model: the gap shrinks from {gaps[0]:.1f} to {gaps.min():.1f} nats", fontsize=11)


def draw_split(axes: Axes, rows: list[tuple[int, dict[str, Any]]]) -> None:
    """The part of each gap that the best q of each image wins back."""
    for place, row in rows:
        gap, part = row["gap"]["mean"], min(row["amortisation"]["mean"], row["gap"]["mean"])
        look = {"height": 0.6, "color": "none", "edgecolor": "white", "hatch": "///", "linewidth": 0}
        axes.barh(place, part, left=gap - part, **look)
    handles = [Patch(facecolor=MIDDLE, edgecolor="white", hatch="///"), Patch(facecolor=MIDDLE), Patch(facecolor=DARK)]
    words = ["normal: won back by the best q of each image", "normal: what the family costs", "flow: not split"]
    axes.legend(handles, words, frameon=False, loc="upper right", fontsize=9, ncols=1)


def is_split(row: dict[str, Any]) -> bool:
    """Whether the search reaches every q of the family: of a flow it frees only place and width."""
    return bool(row.get("is_supremum", row["family"] not in FLOWS))


def draw_joint(axes: Axes, rows: list[dict[str, Any]], num_seeds: int) -> None:
    """What ELBO and log p of each family gain over the diagonal one, and how much of the latter is untrusted."""
    y = np.arange(len(rows))
    looks = (("elbo", "o", LIGHT, "ELBO", -0.1), ("log_p", "D", DARK, "estimate of log p(x)", 0.1))
    for number, marker, colour, label, shift in looks:
        gains = [r[f"{number}_over_diagonal"] for r in rows]
        style = {"fmt": marker, "color": colour, "markersize": 7, "capsize": 3, "markeredgecolor": DARK}
        errors = [2 * (g["stderr"] or 0) for g in gains]
        axes.errorbar([g["mean"] for g in gains], y + shift, xerr=errors, label=label, **style)
    axes.axvline(0, color="0.6", zorder=0)
    axes.margins(x=0.1)
    for place, row in zip(y, rows, strict=True):
        text = f"{row['untrusted']:.0%} untrusted"
        axes.text(1.0, place, text, transform=axes.get_yaxis_transform(), ha="left", va="center", fontsize=9)
    axes.set_xlabel(
        f"nats per test image more than with the diagonal family\n(± 2 standard errors over {num_seeds} seeds, paired)"
    )
    elbo, log_p = (max((r[f"{n}_over_diagonal"] for r in rows[1:]), key=lambda g: g["mean"]) for n in ("elbo", "log_p"))
    axes.set_title(
        f"Trained together: at best {in_words(elbo)} nats of ELBO,\n{in_words(log_p)} of log p(x)", fontsize=11
    )
    axes.legend(frameon=False, loc="upper left", ncols=2)


def in_words(gain: dict[str, float | None]) -> str:
    """A gain and twice its standard error."""
    return f"{gain['mean']:+.1f} ± {2 * (gain['stderr'] or 0):.1f}"


STUDY = Study(
    "expressive_posterior",
    measure,
    draw,
    full=Config(),
    small=Config(
        data="digits",
        num_train=100,
        num_test=10,
        latent_dim=4,
        hidden=(32,),
        rank=1,
        context_dim=8,
        flow_hidden=(16,),
        batch_size=50,
        epochs=1,
        guide_epochs=1,
        num_samples=60,
        elbo_samples=20,
        search_steps=2,
        search_particles=32,
        flow_rounds=1,
        seeds=(0, 1),
        num_processes=1,
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
