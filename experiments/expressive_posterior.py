"""How much of the gap between ELBO and log p(x) does a more expressive posterior close? (claim C17).

Five families of q(z given x) on one network of x: diagonal, low-rank and full covariance, inverse autoregressive flow,
neural spline flow. First with one generative model: it is trained with a diagonal guide, then fixed, and each family's
guide, which starts at that diagonal one, is trained on it for fifteen epochs more with a learning rate that falls to
zero, the diagonal one too; `gap_decomposition` says how much of its gap is amortisation. Then each family is trained
together with a model of its own.

Expected: on the fixed model gap = log p - ELBO falls from diagonal over low rank and full covariance to the flows;
the model was trained to please diagonal guides, so that the gap is a few nats and a part of it, the error of the
amortisation, stays whatever the family. Trained together, ELBOs order the same way; log p differs by less.

Run: python -m experiments.expressive_posterior [--small]; about 35 minutes on two cores.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn

import ppl_vae as pv
from experiments.common.images import images
from experiments.common.progress import steps
from experiments.common.statistics import mean, paired
from experiments.common.study import Findings, Study
from experiments.common.training import trained
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet


@dataclass(frozen=True)
class Config:
    """Full form: 35 minutes on two cores; a third of them go to the neural splines."""

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
    seeds: tuple[int, ...] = (0, 1, 2)


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


def fitted(config: Config, x: Tensor, make: Callable[[], pv.VAE], epochs: int, seed: int) -> pv.VAE:
    """A VAE trained with a learning rate that falls to zero."""
    total = epochs * math.ceil(len(x) / config.batch_size)
    falling = pv.schedules.Cosine(1.0, 0.0, total)
    options = {"batch_size": config.batch_size, "binarize": "dynamic", "schedule": falling}
    return trained(make, x, seed, epochs=epochs, **options)[0]


def train_together(config: Config, x: Tensor, make: Callable[[], nn.Module], seed: int) -> pv.VAE:
    """Model and guide of one family, trained together."""

    def both() -> pv.VAE:
        decoder = pv.decoders.Bernoulli.mlp(config.latent_dim, config.hidden, x.shape[1])
        decoder.start_at(x)
        return vae(config, make(), decoder)

    return fitted(config, x, both, config.epochs, seed)


def train_guide(config: Config, x: Tensor, make: Callable[[], nn.Module], known: pv.VAE, seed: int) -> pv.VAE:
    """A guide of one family for the model of a VAE, which stays as it is."""

    def guide() -> pv.VAE:
        start_at(encoder := make(), known.encoder)
        return vae(config, encoder, copy.deepcopy(known.decoder).requires_grad_(False))

    return fitted(config, x, guide, config.guide_epochs, seed)


def evaluated(pair: pv.VAE, x: Tensor, num_samples: int) -> pv.LogLikelihood:
    """ELBO and log p of each datum."""
    return pv.log_likelihood(pair, x, num_samples, num_draws=0, progress=False)


def summary(ll: pv.LogLikelihood) -> dict[str, float]:
    """What a record keeps of an evaluation."""
    untrusted = 1 - float(ll.trusted.mean())
    return {"elbo": float(ll.elbo.mean()), "log_p": ll.mean, "stderr": ll.mean_stderr, "untrusted": untrusted}


class Fixed(NamedTuple):
    """What guides of each family are worth on one model."""

    gaps: np.ndarray
    """log p(x) - ELBO of each family and datum (F, N), nats."""
    amortisation: np.ndarray
    """The part of it that the best q of each datum wins back (F, N), nats."""
    judge: dict[str, Any]
    """The evaluation that all are held against."""


def fixed_model(config: Config, train: Tensor, x: Tensor, known: pv.VAE, seed: int) -> Fixed:
    """Gap of each family and datum on one model."""
    makers = families(config, train.shape[1])
    guides = {name: train_guide(config, train, make, known, seed) for name, make in makers.items()}
    search = pv.LocalSearch(config.search_steps, num_particles=config.search_particles)
    parts = {
        name: pv.gap_decomposition(pair, x, config.elbo_samples, seed, search=search, richer=False, progress=False)
        for name, pair in guides.items()
    }
    best = max(parts, key=lambda name: parts[name].elbo.mean())
    judged = evaluated(guides[best], x, config.num_samples)
    return Fixed(
        np.stack([judged.value - part.elbo for part in parts.values()]),
        np.stack([part.amortisation for part in parts.values()]),
        {"judge": best, **summary(judged)},
    )


def measure(config: Config) -> Findings:
    """Gaps of each family on a model that is fixed; ELBO and log p where each is trained with its own model."""
    found = images(config.data, config.num_train, config.num_test)
    x = pv.data.binarize(found.test)
    makers = families(config, x.shape[1])
    fixed, runs = [], []
    for seed in steps(config.seeds, "seeds"):
        joint = {name: train_together(config, found.train, make, seed) for name, make in makers.items()}
        runs.append({name: summary(evaluated(pair, x, config.num_samples)) for name, pair in joint.items()})
        fixed.append(fixed_model(config, found.train, x, joint["diagonal"], seed))
    names = list(makers)
    gaps, amortisation = (np.stack([getattr(f, part) for f in fixed]) for part in ("gaps", "amortisation"))
    rows = [gap_row(gaps, names, i) | {"amortisation": amortised(amortisation, i)} for i in range(len(names))]
    together = [joint_row(runs, name) for name in names]
    judges = [f.judge for f in fixed]
    numbers = {"num_test": len(x), "seeds": len(runs), "fixed": rows, "judges": judges, "together": together}
    return Findings({**numbers, "runs": runs})


def gap_row(gaps: np.ndarray, names: list[str], i: int) -> dict[str, Any]:
    """Gap of a family, and what it gains over the plainer one before it, from gaps (S, F, N); errors are over data."""
    per_datum = gaps.mean(0)
    gained = paired(per_datum[max(i - 1, 0)], per_datum[i])
    over_diagonal = paired(per_datum[0], per_datum[i])
    return {
        "family": names[i],
        "gap": mean(per_datum[i])._asdict(),
        "gained": gained._asdict(),
        "over_diagonal": over_diagonal._asdict(),
        "gap_by_seed": gaps[:, i].mean(1),
    }


def amortised(parts: np.ndarray, i: int) -> dict[str, float]:
    """Amortisation gap of a family from parts (S, F, N); its error is over data."""
    return mean(parts.mean(0)[i])._asdict()


def joint_row(runs: list[dict[str, dict[str, float]]], name: str) -> dict[str, Any]:
    """ELBO and log p of a family over seeds, and their gains over the diagonal one, paired by seed."""
    row: dict[str, Any] = {"family": name, "untrusted": float(np.mean([r[name]["untrusted"] for r in runs]))}
    for number in ("elbo", "log_p"):
        own, plain = ([r[n][number] for r in runs] for n in (name, "diagonal"))
        row |= {number: mean(own)._asdict(), f"{number}_over_diagonal": paired(own, plain)._asdict()}
    return row


def draw(found: Findings) -> Figure:
    """Gaps on one fixed model, and ELBO and log p of models trained with their guides."""
    figure = new_figure(12, 4.4)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.1, 1))
    draw_gaps(left, found.numbers)
    draw_joint(right, found.numbers)
    for axes in (left, right):
        quiet(axes)
        axes.grid(axis="y", visible=False)
    return figure


def draw_gaps(axes: Axes, numbers: dict[str, Any]) -> None:
    """One bar a family, plainest on top, and what it closes."""
    rows = numbers["fixed"]
    y = np.arange(len(rows))
    gaps, errors = ([r["gap"][part] for r in rows] for part in ("mean", "stderr"))
    axes.barh(y, gaps, xerr=2 * np.array(errors), color=[MIDDLE] * 3 + [DARK] * 2, ecolor="0.2", capsize=3, height=0.6)
    if all("amortisation" in r for r in rows):
        parts = np.array([r["amortisation"]["mean"] for r in rows]).clip(0, gaps)
        look = {"height": 0.6, "color": "none", "edgecolor": "white", "hatch": "///", "linewidth": 0}
        axes.barh(y, parts, left=np.array(gaps) - parts, **look)
        handles = [Patch(facecolor=MIDDLE, edgecolor="white", hatch="///")]
        axes.legend(
            handles, ["amortisation gap: won back by the best q of each image"], frameon=False, loc="upper right"
        )
    for i, row in enumerate(rows[1:], start=1):
        gain = row["over_diagonal"]
        axes.text(
            gaps[i] + 2 * errors[i], i, f"  {-gain['mean']:+.2f} ± {2 * gain['stderr']:.2f}", va="center", fontsize=9
        )
    axes.set_xlim(0, 1.25 * max(g + 2 * e for g, e in zip(gaps, errors, strict=True)))
    axes.set_yticks(y, [r["family"] for r in rows])
    axes.set_ylim(len(rows) - 0.4, -1.0)
    axes.set_xlabel(
        "gap = log p(x) - ELBO, nats per test image\n(± 2 standard errors; beside: change from diagonal, paired)"
    )
    axes.set_title(f"One fixed model: the gap shrinks from {gaps[0]:.1f} to {min(gaps):.1f} nats", fontsize=11)


def draw_joint(axes: Axes, numbers: dict[str, Any]) -> None:
    """ELBO and log p of each family, with the gap as the line between them."""
    rows = numbers["together"]
    y = np.arange(len(rows))
    for number, marker, colour, label in (("elbo", "o", LIGHT, "ELBO"), ("log_p", "D", DARK, "log p(x)")):
        values, errors = ([r[number][part] or 0 for r in rows] for part in ("mean", "stderr"))
        style = {"fmt": marker, "color": colour, "markersize": 8, "capsize": 3, "markeredgecolor": DARK}
        axes.errorbar(values, y, xerr=2 * np.array(errors), label=label, **style)
    axes.hlines(y, [r["elbo"]["mean"] for r in rows], [r["log_p"]["mean"] for r in rows], color="0.6", zorder=0)
    axes.set_xlabel(f"nats per test image\n(mean of {numbers['seeds']} seeds, ± 2 standard errors over seeds)")
    best = max(r["elbo_over_diagonal"]["mean"] for r in rows)
    likelier = max(r["log_p_over_diagonal"]["mean"] for r in rows)
    axes.set_title(f"Trained together: up to {best:.1f} nats of ELBO, {likelier:.1f} of log p(x)", fontsize=11)
    axes.legend(frameon=False, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.0))


STUDY = Study(
    "expressive_posterior",
    measure,
    draw,
    full=Config(),
    small=Config(
        data="digits",
        num_train=300,
        num_test=30,
        latent_dim=4,
        hidden=(32,),
        rank=1,
        context_dim=8,
        flow_hidden=(16,),
        batch_size=50,
        epochs=2,
        guide_epochs=1,
        num_samples=200,
        elbo_samples=50,
        search_steps=10,
        search_particles=32,
        seeds=(0, 1),
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
