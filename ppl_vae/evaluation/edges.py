"""Draws that round to the edge of a latent's support, where p / q is not the ratio of what it is drawn with."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.evaluation.proposal import Proposal
from ppl_vae.supports import base_of, support_of
from ppl_vae.tape import Layout, Tape

__all__ = [
    "REASON",
    "Edges",
    "at_edge",
    "beyond_numbers",
    "bounded_latents",
    "move_an_estimate",
    "move_estimates",
    "numbers_of",
    "reason",
    "tied",
]

_DOUBLE = "use double precision (pair.double(), and data of it), or, where that is too coarse as well, "
_TRANSFORM = "write the latent as a transform of an unconstrained one in both programs"
_ROUND = "draws round to the edge of a latent's support, so that weights there are wrong, to either side"
REASON = (
    "draws round to the edge of a latent's support, or to the same few numbers, so that weights there are wrong, to "
    f"either side: {_DOUBLE}{_TRANSFORM}"
)
# Weights of a share s that are wrong by a standard deviation of a weight move the estimate by s sqrt(K) standard
# errors; at the edge of a support they may be wrong by a few.
_BEARABLE, _NEGLIGIBLE = 0.3, 1e-4
# Of fewer draws at the edge chance tells how many; fewer data say nothing of what they have in common; and of one datum
# so many standard errors count at most.
_FEW_DRAWS, _FEW, _MOST = 10, 3, 5.0


def reason(dtype: torch.dtype) -> str:
    """What is wrong with draws of latents of a type, and what helps."""
    return f"{_ROUND}: {_mend(dtype)}"


def beyond_numbers(dtype: torch.dtype) -> str:
    """What latents of a type do where their density does not fall off before, and what helps."""
    return f"underflow, or round to the edge of their support, as numbers of this precision do: {_mend(dtype)}"


def _mend(dtype: torch.dtype) -> str:
    return _TRANSFORM if dtype == torch.float64 else _DOUBLE + _TRANSFORM


def bounded_latents(guide: Tape, layout: Layout) -> tuple[str, ...]:
    """Continuous latents whose numbers have a bound that draws can round to."""
    return tuple(name for name in layout.local_latents if _has_edge(support_of(guide.sites[name]["fn"])))


def numbers_of(proposal: Proposal, names: Collection[str], layout: Layout) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Names of latents, their numbers for each draw and datum (K, N, D), and which of them no mask takes out."""
    if not names:
        return
    values, masks = proposal.particles_first(layout), proposal.masks_first(layout)
    for name in names:
        numbers = values[name].flatten(2) if values[name].dim() > 2 else values[name][..., None]
        counted = masks[name].reshape(numbers.shape) if name in masks else torch.ones_like(numbers, dtype=torch.bool)
        yield name, numbers, counted


class Edges:
    """Draws that have a number at its lowest or highest value, which other draws of the datum have too.

    No two draws of a continuous latent are equal but by rounding. They may be of different units: of the lowest and of
    the highest value of each number so far, the draws that have it are counted with their weights. A draw that has
    several such numbers counts for each.

    Args:
        num_data: N.
        names: Latents that have an edge.
        layout: Layout of the pair.
    """

    def __init__(self, num_data: int, names: Collection[str], layout: Layout) -> None:
        self._num_data, self._layout = num_data, layout
        self._ends = {name: (_Lowest(), _Lowest()) for name in names}

    def add(self, log_weight: Tensor, proposal: Proposal, wanted: Tensor | None = None) -> None:
        """Adds a unit of draws with their log-weights (k, N), for the data that are wanted (N,), or all."""
        for name, numbers, counted in numbers_of(proposal, self._ends, self._layout):
            own = counted if wanted is None else counted & wanted.to(counted.device)[:, None]
            for end, sign in zip(self._ends[name], (1, -1), strict=True):
                end.add((sign * numbers).where(own, torch.inf), log_weight)

    @property
    def log_weight(self) -> np.ndarray:
        """Log of the sum of the weights of such draws (N,)."""
        sums = [end.log_sum.where(end.count > 1, -torch.inf) for end in self._every]
        return torch.cat(sums, 1).logsumexp(1).numpy() if sums else np.full(self._num_data, -np.inf)

    @property
    def count(self) -> np.ndarray:
        """How many there are (N,)."""
        counts = [end.count.where(end.count > 1, 0) for end in self._every]
        return torch.cat(counts, 1).sum(1).numpy() if counts else np.zeros(self._num_data, dtype=np.int64)

    @property
    def _every(self) -> list[_Lowest]:
        return [end for ends in self._ends.values() for end in ends]


class _Lowest:
    """The lowest value of each number of a datum so far, (N, D), and the draws that have it."""

    value: Tensor
    """That value; infinite where no number counts."""
    log_sum: Tensor
    """Log of the sum of the weights of the draws that have it."""
    count: Tensor
    """How many do."""

    def __init__(self) -> None:
        self._is_empty = True

    def add(self, numbers: Tensor, log_weight: Tensor) -> None:
        """Adds draws (k, N, D), infinite where a number does not count, with their log-weights (k, N)."""
        lowest = numbers.amin(0)
        if self._is_empty:
            self.value, self._is_empty = torch.full_like(lowest, torch.inf), False
            self.log_sum = torch.full(lowest.shape, -torch.inf, dtype=torch.float64)
            self.count = torch.zeros(lowest.shape, dtype=torch.int64)
        lowest = torch.minimum(lowest, self.value)
        stays = (lowest == self.value).cpu()
        # Seldom more than one draw of a number: the weights of all of them would take as much memory as the draws.
        k, n, d = ((numbers == lowest) & (lowest < torch.inf)).nonzero().cpu().T
        weights = log_weight.double().cpu()
        largest = weights.amax(0).clamp_min(torch.finfo(torch.float64).min)
        sums = torch.zeros_like(self.log_sum).index_put_((n, d), (weights - largest)[k, n].exp(), accumulate=True)
        new = torch.zeros_like(self.count).index_put_((n, d), torch.ones_like(n), accumulate=True)
        self.log_sum = torch.logaddexp(self.log_sum.where(stays, -torch.inf), sums.log() + largest[:, None])
        self.count, self.value = self.count.where(stays, 0) + new, lowest


def at_edge(proposal: Proposal, names: Collection[str], layout: Layout) -> Tensor | None:
    """Which draws of one unit have a number at its lowest or highest value that others have too, (K, N); None of none.

    Latents are not masked.
    """
    found = [tied(numbers) for _, numbers, _ in numbers_of(proposal, names, layout)]
    return torch.stack(found).any(0) if found else None


def tied(numbers: Tensor) -> Tensor:
    """Which draws (K, N, D) have a number at the lowest or highest value, and others have it too, (K, N)."""
    found = torch.zeros_like(numbers[..., 0], dtype=torch.bool)
    for end in (numbers.amin(0), numbers.amax(0)):
        found |= ((numbers == end) & ((numbers == end).sum(0) > 1)).any(-1)
    return found


def move_an_estimate(share: np.ndarray, stderr: np.ndarray, num_samples: np.ndarray) -> np.ndarray:
    """Whether so large a share of the weight at the edge may move an estimate by more than its error bears, (N,)."""
    return _moves(share * np.sqrt(num_samples), stderr)


def move_estimates(share: np.ndarray, count: np.ndarray, stderr: np.ndarray, num_samples: np.ndarray) -> np.ndarray:
    """The same for all data of a call, judged together, (N,).

    Of many equal data some have few draws at the edge by chance, and so too low an estimate: where fewer than ten were
    drawn, a datum has the mean of all such, if that is more.

    Args:
        share: Share of the weight on draws at the edge (N,).
        count: How many draws that is (N,).
        stderr: Standard errors of log p(x) (N,), in nats.
        num_samples: K of each datum (N,).
    """
    in_errors = share * np.sqrt(num_samples)
    if (by_chance := count < _FEW_DRAWS).sum() >= _FEW:
        common = np.minimum(in_errors[by_chance], _MOST).mean()
        in_errors = np.where(by_chance, np.maximum(in_errors, common), in_errors)
    return _moves(in_errors, stderr)


def _moves(in_errors: np.ndarray, stderr: np.ndarray) -> np.ndarray:
    return (in_errors > _BEARABLE) & (in_errors * np.nan_to_num(stderr, nan=1.0) > _NEGLIGIBLE)


def _has_edge(support: constraints.Constraint) -> bool:
    base = base_of(support)
    if base.is_discrete or base in (constraints.real, constraints.real_vector):
        return False
    return base.event_dim == 0 or base is constraints.simplex  # matrices have numbers that never vary
