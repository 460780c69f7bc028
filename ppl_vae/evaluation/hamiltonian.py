"""One transition of Hamiltonian Monte Carlo, for many chains of many data at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ppl_vae.evaluation.unconstrained import Unconstrained

__all__ = ["Density", "Transition", "transition"]

_JITTER = 0.2  # of the step size: orbits of one length can return to where they started
# Nats of energy: steps that gained so much would be accepted once in 10^13 times, and where the next half of a gradient
# adds so much, steps are no orbit any more, wherever they lead.
_LOST, _DIVERGED = 30.0, 1000.0


class Density(Protocol):
    """What chains move in."""

    def __call__(self, points: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """log f of points, (K, N), and its gradient by site."""

    def check(self, log_f: Tensor, points: Mapping[str, Tensor], counts: Tensor) -> None:
        """log f is a density where it `counts`, (K, N).

        Raises:
            EstimateError: It is NaN or plus infinity there.
        """


class Transition(NamedTuple):
    """Where the chains are after a transition."""

    points: dict[str, Tensor]
    """Points by site."""
    accepted: Tensor
    """Probability with which each chain's proposal was accepted (K, N)."""


def transition(
    density: Density, points: Mapping[str, Tensor], step_size: Tensor, num_leapfrog: int, space: Unconstrained
) -> Transition:
    r"""Leapfrog steps with fresh momentum, then Metropolis: leaves f invariant whatever the step size.

    .. math:: p \sim N(0, I), \quad H = -\log f(u) + \tfrac12 |p|^2, \quad
              \text{accept with probability } \min(1, e^{H - H'})

    A proposal where f is zero is rejected, and one where log f is NaN if the steps before it are lost or have diverged.
    Otherwise such a log f is an error: what the model says nothing of would be left out of every estimate.

    Args:
        density: log f and its gradient.
        points: u, one point for each chain and datum.
        step_size: epsilon of each datum (N,), in the unit of u, which each chain takes up to a fifth longer or shorter.
            It may not depend on these chains.
        num_leapfrog: Leapfrog steps of a proposal.
        space: What the points are points of.

    Raises:
        EstimateError: log f is NaN or plus infinity where the chains are, or go.

    Reference:
        Neal (2011), MCMC Using Hamiltonian Dynamics.
    """
    log_f, gradient = density(points)
    epsilon = step_size * (1 + _JITTER * (2 * torch.rand_like(log_f) - 1))
    steps = {name: space.aligned(epsilon, name, u) for name, u in points.items()}
    momentum = {name: torch.randn_like(u) for name, u in points.items()}
    density.check(log_f, points, torch.ones_like(log_f, dtype=torch.bool))
    energy, new_log_f = space.square(momentum) / 2 - log_f, log_f
    moved = dict(points)
    for _ in range(num_leapfrog):
        on_orbit = space.square(momentum) / 2 - new_log_f - energy < _LOST
        momentum = {name: p + steps[name] / 2 * gradient[name] for name, p in momentum.items()}
        on_orbit &= space.square(momentum) / 2 - new_log_f - energy < _DIVERGED
        moved = {name: u + steps[name] * momentum[name] for name, u in moved.items()}
        new_log_f, gradient = density(moved)
        density.check(new_log_f, moved, on_orbit)
        momentum = {name: p + steps[name] / 2 * gradient[name] for name, p in momentum.items()}
    loss = energy - (space.square(momentum) / 2 - new_log_f)
    probability = torch.where(loss.isfinite(), loss.clamp_max(0.0).exp(), 0.0)
    taken = torch.rand_like(probability) < probability
    return Transition({n: torch.where(space.aligned(taken, n, u), moved[n], u) for n, u in points.items()}, probability)
