"""What an objective is, and what objectives share."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ppl_vae.errors import PairError
from ppl_vae.options import whole_number
from ppl_vae.pair import Pair
from ppl_vae.schedules import Schedule
from ppl_vae.tape import Batch, Layout
from ppl_vae.terms import Terms

__all__ = [
    "Objective",
    "Values",
    "check_choice",
    "check_gradient",
    "check_particles",
    "particle_mean",
    "total",
    "true_terms",
]


class Values(NamedTuple):
    """One evaluation of an objective on a batch: scalar tensors, in nats per datum."""

    loss: Tensor
    """To minimise by backward(); its value is minus `objective` up to terms whose value means nothing."""
    objective: Tensor
    """What is trained: to be maximised."""
    elbo: Tensor
    """The true ELBO (beta = 1, no scaling); NaN where the objective does not tell."""
    distortion: Tensor
    """-E log p(x given z)."""
    rate: Tensor
    """KL(q(z given x), p(z))."""


class Objective(Protocol):
    """What `fit` needs of an objective.

    One that keeps something with a pair, such as an average over steps, has a method `begin(pair)` too, which is called
    before the first step. One that adds terms to those of the sites has `fault(pair, batch)`, which names in words the
    first of them that is not finite, or gives empty text.
    """

    @property
    def num_particles(self) -> int:
        """K."""

    @property
    def beta(self) -> float | Schedule:
        """Weight of the rate, or its schedule."""

    def evaluate(self, pair: Pair, batch: Batch, layout: Layout, beta: Tensor | float) -> Values:
        """Runs the pair on a batch."""

    def judge(self) -> Objective:
        """The objective that judges held-out data: the same bound without beta or any other change of it."""


def true_terms(terms: Terms, analytic: frozenset[str]) -> tuple[Tensor, Tensor, Tensor]:
    """True ELBO, distortion and rate of the run, without beta and without scales of the programs.

    A reconstruction reads the datum that it scores: it bounds no log p(x), and its ELBO is NaN.
    """
    with torch.no_grad():
        plain = terms.unscaled()
        weights = plain.particle_weights
        distortion = -particle_mean(plain.log_lik, weights).mean()
        rate = particle_mean(
            total(plain.kl(analytic)) if analytic else plain.log_guide - plain.log_prior, weights
        ).mean()
        if plain.global_kl is not None:
            rate = rate + plain.global_kl.mean()
        elbo = -distortion - rate
        return torch.full_like(elbo, torch.nan) if plain.reconstructs else elbo, distortion, rate


def particle_mean(matrix: Tensor | float, weights: Tensor | None) -> Tensor:
    """Mean over particles (K, N) -> (N,), or the sum with the weights of enumerated ones."""
    matrix = torch.as_tensor(matrix)
    if weights is None:
        return matrix.mean(0) if matrix.dim() else matrix
    # Masked before it is multiplied: the gradient of 0 x (-inf) is NaN.
    return (weights * torch.where(weights > 0, matrix, 0.0)).sum(0)


def total(rates: dict[str, Tensor]) -> Tensor | float:
    """Sum of the rates of all sites."""
    return sum(rates.values()) if rates else 0.0


def check_particles(num_particles: int) -> None:
    """There is a whole number of particles, at least one."""
    whole_number("num_particles", num_particles, least=1)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """An option has one of its values."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")


def check_gradient(gradient: str, layout: Layout) -> None:
    """The latents of a pair have what a gradient other than the pathwise one needs."""
    latents = [*layout.local_latents, *layout.global_latents]
    if gradient in ("score", "vimco"):
        wrong, need = [*layout.points, *layout.global_latents], "latents with a density, inside the data plate"
    elif set(latents) <= set(layout.not_reparametrised):
        wrong, need = latents, "a reparametrised latent"
    else:
        wrong, need = [*layout.points], "latents with a density"
    if wrong:
        raise PairError(f"site {wrong[0]!r}: gradient={gradient!r} needs {need}; use gradient='pathwise'")
