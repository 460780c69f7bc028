"""Finds the best local posterior of every datum of a block, all at once, and says whether it has been found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ppl_vae.compile import Lazy
from ppl_vae.evaluation.families import LocalFamily
from ppl_vae.options import finite_number, whole_number
from ppl_vae.pair import Pair
from ppl_vae.rng import key, reseed
from ppl_vae.tape import Batch

__all__ = ["Found", "LocalSearch", "Searcher"]

_CHECKS, _STANDARD_ERRORS = 16, 2.0
_LAST_RATE = 0.2
# Free numbers have no unit, so that curvatures are about 1: gradients far below this are no direction to go.
_EPSILON = 0.1


@dataclass(frozen=True)
class LocalSearch:
    """How the best q of a datum is searched for.

    Args:
        num_steps: Steps of Adam in a round; the iterates of its second half are averaged.
        max_rounds: Most rounds; each begins with half the learning rate of the one before.
        num_particles: Draws for each datum and step.
        learning_rate: Of the first round, in units of the scale of q.
        tolerance: A datum that gains less in a round has converged, in nats.
    """

    num_steps: int = 300
    max_rounds: int = 4
    num_particles: int = 8
    learning_rate: float = 0.05
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 1), ("max_rounds", 1), ("num_particles", 2)):
            whole_number(name, getattr(self, name), least=least)
        finite_number("learning_rate", self.learning_rate, least=0)
        finite_number("tolerance", self.tolerance, least=0)


class Found(NamedTuple):
    """The best numbers of each datum of a block."""

    free: Tensor
    """Free numbers of the family (N, P)."""
    gain: Tensor
    """What the last round of a datum gained, in nats (N,): near zero at the optimum."""
    gain_stderr: Tensor
    """Standard error of `gain`: both ends of the round are compared on the same draws."""
    converged: Tensor
    """Whether `gain` is at most the tolerance, within its error (N,)."""


class Searcher:
    r"""Maximises the ELBO of every datum over its own free numbers, from 0, where q is that of the start.

    .. math:: \delta_n^* = \arg\max_\delta \mathrm{E}_{q_\delta} [\log p(x_n, z) - \log q_\delta(z)]

    Args:
        family: What q may be.
        pair: What the family computes with.
        search: How to search.
        compile: Whether to compile a step: at once, never, or once it pays.
        num_blocks: How many blocks there will be.
    """

    def __init__(
        self, family: LocalFamily, pair: Pair, search: LocalSearch, compile: Literal["auto"] | bool, num_blocks: int
    ) -> None:
        self._family, self._search = family, search
        calls = num_blocks * search.max_rounds * search.num_steps
        self._step = Lazy(self._gradient, pair, compile, calls, 1, "the search for the best q of each datum")
        self._num_context = 0

    def __call__(self, context: tuple[Tensor, ...], batch: Batch, seed: int) -> Found:
        """Searches for all data of a block, then for those that have not converged."""
        search, num_data = self._search, len(batch[0])
        free = torch.zeros(num_data, self._family.size, dtype=self._family.dtype, device=batch[0].device)
        nothing = free.new_zeros(num_data)
        found = Found(free, nothing, nothing.clone(), nothing.bool())
        for i in range(search.max_rounds):
            left = (~found.converged).nonzero().flatten()
            if not len(left):
                break
            own_context, own = _rows(context, left), _rows(batch, left)
            before = found.free[left]
            after = self._round(before.clone(), own_context, own, search.learning_rate / 2**i, key(seed, i))
            gain, stderr = self._gain(before, after, own_context, own, key(seed, i, -1))
            worse = gain < -_STANDARD_ERRORS * stderr
            found.free[left] = torch.where(worse[:, None], before, after)
            found.gain[left], found.gain_stderr[left] = gain, stderr
            found.converged[left] = gain <= search.tolerance + _STANDARD_ERRORS * stderr
        return found

    def _round(self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, rate: float, seed: int) -> Tensor:
        """Mean of the iterates of the second half (Polyak and Juditsky 1992)."""
        adam, num_steps = torch.optim.Adam([free], lr=rate, eps=_EPSILON), self._search.num_steps
        total = torch.zeros_like(free)
        for i in range(num_steps):
            adam.param_groups[0]["lr"] = rate * _fall(i / num_steps)
            reseed(key(seed, i), free.device)
            _, gradient = self._call(free, context, batch)
            free.grad = -gradient
            adam.step()
            if i >= num_steps // 2:
                total += free.detach()
        return total / (num_steps - num_steps // 2)

    def _gain(
        self, before: Tensor, after: Tensor, context: tuple[Tensor, ...], batch: Batch, seed: int
    ) -> tuple[Tensor, Tensor]:
        """ELBO after - before on the same draws, and its standard error (N,)."""
        differences = []
        for i in range(_CHECKS):
            elbos = []
            for free in (before, after):
                reseed(key(seed, i), free.device)
                elbos.append(self._call(free, context, batch)[0])
            differences.append(elbos[1] - elbos[0])
        stacked = torch.stack(differences)
        return stacked.mean(0), stacked.std(0) / math.sqrt(len(stacked))

    def _call(self, free: Tensor, context: tuple[Tensor, ...], batch: Batch) -> tuple[Tensor, Tensor]:
        self._num_context = len(context)
        elbo, gradient = self._step(free.detach(), *context, *batch)
        return elbo, gradient

    def _gradient(self, free: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """ELBO of each datum, and its gradient."""
        context, batch = tensors[: self._num_context], tensors[self._num_context :]
        with torch.enable_grad():
            leaf = free.detach().requires_grad_()
            elbo = self._family.elbo(leaf, context, batch, self._search.num_particles)
            (gradient,) = torch.autograd.grad(elbo.sum(), leaf)
        return elbo.detach(), gradient


def _fall(share: float) -> float:
    """Factor of the learning rate: it falls in the first half of a round, and stays in the second."""
    return _LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * min(1.0, 2 * share))) / 2


def _rows(tensors: Batch, rows: Tensor) -> tuple[Tensor, ...]:
    return tuple(t[rows] if len(rows) < len(t) else t for t in tensors)
