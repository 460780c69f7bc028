"""Finds the best local posterior of every datum of a block, all at once, and says whether it has been found."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
_CHECKED = 4  # steps of a round for one check, of two ELBOs, at most
_LAST_RATE = 0.2
_ELSEWHERE = 0.1  # in units of the scale of q
# A free number that goes farther in a round is lost: exp(30) is where densities are rounding, and look like gains.
_FARTHEST = 30.0
# Free numbers have no unit, so that curvatures are about 1: gradients far below this are no direction to go.
_EPSILON = 0.1


@dataclass(frozen=True)
class LocalSearch:
    """How the best q of a datum is searched for.

    Args:
        num_steps: Steps of Adam in the first round; the iterates of the second half of a round are averaged.
        max_rounds: Most rounds; each has half the learning rate of the one before, and twice as many steps.
        num_particles: Draws for each datum and step.
        learning_rate: Of the first round, in units of the scale of q.
        tolerance: A datum that surely gains less in a round has converged, in nats. What noise leaves of an average
            over twice as many steps is half as much: what a round gains is what is still to gain, about.
    """

    num_steps: int = 300
    max_rounds: int = 4
    num_particles: int = 8
    learning_rate: float = 0.05
    tolerance: float = 0.01

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
    """What the last round of a datum gained, in nats (N,): near zero at the optimum; -inf if it diverged."""
    gain_stderr: Tensor
    """Standard error of `gain`: both ends of the round are compared on the same draws."""
    converged: Tensor
    """Whether `gain` is no loss, and at most the tolerance with two standard errors added (N,)."""


class _Said(NamedTuple):
    """What a gain and its error say of each datum, (N,)."""

    worse: Tensor
    """The round has lost, or is no number."""
    converged: Tensor
    """There is surely no more to gain than is tolerated."""
    clear: Tensor
    """More checks would say the same."""

    @classmethod
    def of(cls, gain: Tensor, stderr: Tensor, tolerance: float) -> _Said:
        slack = _STANDARD_ERRORS * stderr
        worse = ~(gain >= -slack)
        converged = ~worse & (gain + slack <= tolerance)
        return cls(worse, converged, worse | converged | (gain - slack > tolerance))


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
        self._step = Lazy(self._gradient, pair, compile, calls, _elsewhere, "the search for the best q of each datum")
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
            before, num_steps, rate = found.free[left], search.num_steps * 2**i, search.learning_rate / 2**i
            after = self._round(before.clone(), own_context, own, rate, num_steps, key(seed, i))
            gain, stderr = self._gain(before, after, own_context, own, num_steps // _CHECKED, key(seed, i, -1))
            far = (after - before).abs().amax(1)
            gain = gain.masked_fill(far > _FARTHEST, torch.nan)
            said = _Said.of(gain, stderr, search.tolerance)
            # The next round goes on from what was best, at its lower rate.
            found.free[left] = torch.where(said.worse[:, None], before, after)
            found.gain[left], found.gain_stderr[left] = gain.nan_to_num(-torch.inf), stderr.nan_to_num(0.0)
            found.converged[left] = said.converged
        return found

    def better_than_start(self, found: Found, context: tuple[Tensor, ...], batch: Batch, seed: int) -> Found:
        """What is surely better than the start, which the family holds, too: all together, or one alone.

        At an optimum the noise of the iterates costs a little, which no round is sure to have lost; the start does not.
        Where it is put back, the gain that is given up for it, and its error, say what it may leave.
        """
        start = torch.zeros_like(found.free)
        gain, stderr = self._gain(start, found.free, context, batch, self._search.num_steps // _CHECKED, seed)
        better = (gain > _STANDARD_ERRORS * stderr) | (gain.sum() > _STANDARD_ERRORS * stderr.norm())
        return Found(
            torch.where(better[:, None], found.free, start),
            torch.where(better, found.gain, gain.nan_to_num(-torch.inf)),
            torch.where(better, found.gain_stderr, stderr.nan_to_num(0.0)),
            found.converged,
        )

    def _round(
        self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, rate: float, num_steps: int, seed: int
    ) -> Tensor:
        """Mean of the iterates of the second half (Polyak and Juditsky 1992)."""
        adam = torch.optim.Adam([free], lr=rate, eps=_EPSILON)
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
        self, before: Tensor, after: Tensor, context: tuple[Tensor, ...], batch: Batch, most: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """ELBO after - before on the same draws, and its standard error (N,): from as many draws as it takes to tell.

        Checks are doubled until every datum has converged or not, at most `most` of them or the least number.
        """
        differences: list[Tensor] = []
        while True:
            for i in range(len(differences), max(_CHECKS, 2 * len(differences))):
                elbos = []
                for free in (before, after):
                    reseed(key(seed, i), free.device)
                    elbos.append(self._call(free, context, batch)[0])
                differences.append(elbos[1] - elbos[0])
            stacked = torch.stack(differences)
            gain, stderr = stacked.mean(0), stacked.std(0) / math.sqrt(len(stacked))
            if 2 * len(stacked) > most or bool(_Said.of(gain, stderr, self._search.tolerance).clear.all()):
                return gain, stderr

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


def _elsewhere(arguments: Sequence[Tensor]) -> list[Tensor]:
    """Arguments of a step at other free numbers, such as a search comes to: the first are all zero, the guide's own."""
    free, *others = arguments
    noise = torch.randn(free.shape, generator=torch.Generator().manual_seed(0), dtype=free.dtype)
    return [free + _ELSEWHERE * noise.to(free.device), *others]


def _rows(tensors: Batch, rows: Tensor) -> tuple[Tensor, ...]:
    return tuple(t[rows] if len(rows) < len(t) else t for t in tensors)
