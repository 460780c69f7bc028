"""What does a discrete latent cost, where no draw can be differentiated? (claims C7, C9, C10).

A VAE with one discrete latent of 20 values on binary images: z is drawn from a learned categorical prior, x from
independent pixels whose frequencies belong to z, so that the model is a mixture of Bernoulli images with an amortised
posterior. Both bounds, the ELBO and the importance-weighted one of two draws, are finite sums over z here: the exact
gradient for the guide is known, and log p(x) too. Every estimator is held against it, early and late in training; then
each trains a model from the same start for the same number of steps.

Expected: no estimator is biased. The score function needs a baseline: leave one out, from the other draw of the same
datum, and VIMCO, which is the same for the bound of two draws, have the most signal, other data and earlier steps less,
none the least, by an order of magnitude. Summing over z has no noise. Trained by sums, the model is the best; by leave
one out nearly as good; without a baseline nats behind.

Run: python -m experiments.discrete_latents [--small]; 10 minutes on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import ppl_vae as pv
from experiments.common.estimators import STAGES, Reference, bias_in_words, compared, draw_estimators, summary
from experiments.common.gradients import draw_gradients
from experiments.common.images import images
from experiments.common.progress import steps
from experiments.common.statistics import mean, paired
from experiments.common.study import Findings, Study
from experiments.common.training import trained
from ppl_vae.figures.canvas import DARK, new_figure, quiet
from ppl_vae.objectives import Objective

_DRAWS = 2
_SUM = "sum over z"


@dataclass(frozen=True)
class Config:
    """What is compared, at which size."""

    data: str = "mnist"
    num_values: int = 20
    hidden: int = 100
    steps: tuple[int, int] = (100, 4000)  # early, late
    seeds: tuple[int, ...] = (0, 1, 2)
    num_data: int = 16
    num_gradients: int = 4000
    num_test: int = 1000


class DiscreteVAE(nn.Module):
    """p(z) p(x given z) with z of so many values, and q(z given x) from a network.

    Args:
        train: Binary images (N, D); pixels start near their frequencies.
        num_values: Values of z.
        hidden: Width of the hidden layer of the encoder.
    """

    def __init__(self, train: Tensor, num_values: int, hidden: int) -> None:
        super().__init__()
        frequency = train.mean(0).clamp(0.01, 0.99)
        self.prior = nn.Parameter(torch.zeros(num_values))
        self.pixels = nn.Parameter(frequency.logit() + 0.5 * torch.randn(num_values, train.shape[1]))
        self.encoder = pv.networks.MLP(train.shape[1], [hidden], num_values)

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Categorical(logits=self.prior))
            pyro.sample("x", dist.Bernoulli(logits=self.pixels[z]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z given x)."""
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Categorical(logits=self.encoder(x)))

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, z) for every z (N, num_values), nats."""
        pixels = dist.Bernoulli(logits=self.pixels).to_event(1)
        return pixels.log_prob(x[:, None]) + self.prior.log_softmax(-1)


def estimators() -> dict[str, Objective]:
    """Every way to the gradient, each with two draws."""
    return {
        _SUM: pv.ELBO(discrete="enumerate"),
        "score, leave one out": pv.ELBO(_DRAWS, baseline="leave_one_out"),
        "score, other data": pv.ELBO(_DRAWS, baseline="batch"),
        "score, running mean": pv.ELBO(_DRAWS, baseline="running"),
        "score, no baseline": pv.ELBO(_DRAWS, baseline="none"),
        "IWAE VIMCO": pv.IWAE(_DRAWS, gradient="vimco"),
        "IWAE score": pv.IWAE(_DRAWS, gradient="score"),
    }


def exact(vae: DiscreteVAE, x: Tensor, name: str) -> Reference:
    """The gradient of the bound for the guide, from its sum over all values of one draw, or of two."""
    log_q = vae.encoder(x).log_softmax(-1)
    log_w = vae.log_joint(x) - log_q
    if name.startswith("IWAE"):
        both = torch.logaddexp(log_w[:, :, None], log_w[:, None]) - np.log(2)
        bound = ((log_q[:, :, None] + log_q[:, None]).exp() * both).sum((1, 2))
    else:
        bound = (log_q.exp() * log_w).sum(1)
    found = torch.autograd.grad(bound.mean(), list(vae.encoder.parameters()))
    gradient = torch.cat([part.flatten() for part in found]).double().numpy()
    return Reference(gradient, float(gradient @ gradient))


def measure(config: Config) -> Findings:
    """Bias and signal of every estimator, and what a model that each has trained is worth."""
    parts = images(config.data, num_test=config.num_test)
    train, test = pv.data.binarize(parts.train, seed=0), pv.data.binarize(parts.test, seed=1)
    rows: list[dict[str, Any]] = []
    worth: list[dict[str, Any]] = []
    for seed in steps(config.seeds, "seeds"):
        for stage, num_steps in zip(STAGES, config.steps, strict=True):
            vae = fitted(config, train, estimators()[_SUM], num_steps, seed)
            rows += [row | {"stage": stage} for row in at(config, vae, test[: config.num_data], seed)]
        for name, objective in estimators().items():
            vae = fitted(config, train, objective, config.steps[1], seed)
            worth.append({"estimator": name, "seed": seed, **scored(vae, test)})
    noisy = [name for name in estimators() if name != _SUM]
    numbers = {
        "estimators": [summary(name, rows) for name in noisy],
        "trained": [over_seeds(worth, name) for name in estimators()],
        "distance_of_the_sum": max(row["distance"] for row in rows if row["estimator"] == _SUM),
    }
    return Findings({**numbers, "num_data": config.num_data, "num_draws": _DRAWS, "num_steps": config.steps[1]})


def fitted(config: Config, train: Tensor, objective: Objective, num_steps: int, seed: int) -> DiscreteVAE:
    """A model after so many steps of an estimator; the same start for all of a seed."""

    def make() -> DiscreteVAE:
        return DiscreteVAE(train, config.num_values, config.hidden)

    return trained(make, train, seed, objective=objective, steps=num_steps, epochs=10_000)[0]


def at(config: Config, vae: DiscreteVAE, x: Tensor, seed: int) -> list[dict[str, Any]]:
    """Every estimator on the same data against the exact gradient of its bound; of the sum its distance."""
    objectives, guide = estimators(), list(vae.encoder.parameters())
    against = {name: exact(vae, x, name) for name in objectives}
    noisy = {name: objective for name, objective in objectives.items() if name != _SUM}
    rows = compared(vae, noisy, against, x, guide, config.num_gradients, seed)
    away = draw_gradients(vae, objectives[_SUM], x, guide, 2, seed).mean - against[_SUM].gradient
    return [*rows, {"estimator": _SUM, "distance": float(np.linalg.norm(away) / np.sqrt(against[_SUM].squared_norm))}]


def scored(vae: DiscreteVAE, x: Tensor) -> dict[str, Any]:
    """Exact log p(x) and ELBO of test data, nats per datum, and how many values of z are in use."""
    with torch.no_grad():
        log_q = vae.encoder(x).log_softmax(-1)
        elbo = (log_q.exp() * (vae.log_joint(x) - log_q)).sum(1).mean()
        used = (log_q.exp().mean(0) > 0.1 / log_q.shape[1]).sum()
    log_p = pv.log_evidence(vae, x, progress=False).mean()
    return {"log_p": float(log_p), "gap": float(log_p - elbo), "values_used": int(used)}


def over_seeds(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """What an estimator's models are worth, and how far behind those trained by the sum, paired by seed."""
    own, summed = ([r for r in rows if r["estimator"] == n] for n in (name, _SUM))
    means = {part: mean([r[part] for r in own])._asdict() for part in ("log_p", "gap", "values_used")}
    behind = paired([r["log_p"] for r in summed], [r["log_p"] for r in own])
    return {"estimator": name, **means, "behind_sum": behind._asdict()}


def draw(found: Findings) -> Figure:
    """Signal-to-noise and bias of each estimator, and log p(x) of the models that each has trained."""
    numbers = found.numbers
    figure = new_figure(15, 4.6)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.1, 0.9, 1.1])
    rows = numbers["estimators"][::-1]
    draw_estimators(left, middle, rows)
    left.set_xlabel(f"signal-to-noise of one gradient ({numbers['num_data']} images, {numbers['num_draws']} draws)")
    signal = {r["estimator"]: r["late"]["snr"] for r in rows}
    ratio = signal["score, leave one out"] / signal["score, no baseline"]
    left.set_title(
        f"Late in training, leave one out has {ratio:.0f} times\nthe signal of a score without baseline",
        fontsize="medium",
    )
    middle.set_title(bias_in_words(rows), fontsize="medium")
    _draw_trained(right, numbers["trained"], numbers["num_steps"])
    for axes in (left, middle, right):
        quiet(axes)
    return figure


def _draw_trained(axes: Axes, rows: list[dict[str, Any]], num_steps: int) -> None:
    """Exact log p(x) of test images, and how many values of z each model uses."""
    height = np.arange(len(rows))[::-1]
    values = [r["log_p"]["mean"] for r in rows]
    errors = [2 * (r["log_p"]["stderr"] or 0.0) for r in rows]
    axes.errorbar(values, height, xerr=errors, fmt="o", color=DARK, capsize=3)
    for row, value, place in zip(rows, values, height, strict=True):
        text = f"gap {row['gap']['mean']:.2f}, {row['values_used']['mean']:.0f} values used"
        axes.annotate(text, (value, place), (0, 8), textcoords="offset points", ha="center", fontsize="small")
    axes.set(yticks=height, ylim=(-0.5, len(rows) - 0.2))
    axes.set_yticklabels([r["estimator"] for r in rows])
    axes.margins(x=0.3)
    axes.set_xlabel("exact log p(x), nats per test image\n(± 2 standard errors over seeds)")
    behind = {r["estimator"]: r["behind_sum"]["mean"] for r in rows}
    axes.set_title(
        f"After {num_steps:,} steps: leave one out {behind['score, leave one out']:.1f} nats behind the sum,\n"
        f"no baseline {behind['score, no baseline']:.1f}",
        fontsize="medium",
    )


STUDY = Study(
    "discrete_latents",
    measure,
    draw,
    full=Config(),
    small=Config(
        data="digits",
        num_values=4,
        hidden=10,
        steps=(5, 60),
        seeds=(0, 1),
        num_data=4,
        num_gradients=25,
        num_test=50,
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
