"""Draws that round to the edge of a latent's support, where p / q is not the ratio of what it is drawn with."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.evaluation.proposal import Proposal
from ppl_vae.supports import support_of, unmixed
from ppl_vae.tape import Layout, Tape

__all__ = ["REASON", "at_edge", "beyond_numbers", "bounded_latents", "move_an_estimate", "reason", "tied"]

_DOUBLE = "use double precision (pair.double(), and data of it), or, where that is too coarse as well, "
_TRANSFORM = "write the latent as a transform of an unconstrained one in both programs"
_ROUND = "draws round to the edge of a latent's support, so that weights there are wrong, to either side"
REASON = f"{_ROUND}: {_DOUBLE}{_TRANSFORM}"
# Weights of a share s that are wrong by a standard deviation of a weight move the estimate by s sqrt(K) standard
# errors; at the edge of a support they may be wrong by a few.
_BEARABLE, _NEGLIGIBLE = 0.3, 1e-4


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


def at_edge(proposal: Proposal, names: Collection[str], layout: Layout) -> Tensor | None:
    """Which draws have a number at its lowest or highest value that other draws of the datum have too, (K, N).

    No two draws of a continuous latent are equal but by rounding. None where no latent is named.
    """
    if not names:
        return None
    values, masks = proposal.particles_first(layout), proposal.masks_first(layout)
    flat = {name: values[name].flatten(2) if values[name].dim() > 2 else values[name][..., None] for name in names}
    counted = {name: masks[name].reshape(flat[name].shape) for name in names if name in masks}
    return torch.stack([tied(numbers, counted.get(name)) for name, numbers in flat.items()]).any(0)


def tied(numbers: Tensor, counted: Tensor | None = None) -> Tensor:
    """Which draws (K, N, D) have a number at the lowest or highest value, and others have it too, (K, N).

    Masked numbers, which are not `counted`, are no ratio of densities.
    """
    low, high = (numbers if counted is None else numbers.where(counted, beyond) for beyond in (torch.inf, -torch.inf))
    found = torch.zeros_like(numbers[..., 0], dtype=torch.bool)
    for end in (low.amin(0), high.amax(0)):
        same = numbers == end if counted is None else counted & (numbers == end)
        found |= (same & (same.sum(0) > 1)).any(-1)
    return found


def move_an_estimate(share: np.ndarray, stderr: np.ndarray, num_samples: np.ndarray) -> np.ndarray:
    """Whether so large a share of the weight at the edge may move an estimate by more than its error bears, (N,)."""
    in_errors = share * np.sqrt(num_samples)
    return (in_errors > _BEARABLE) & (in_errors * np.nan_to_num(stderr, nan=1.0) > _NEGLIGIBLE)


def _has_edge(support: constraints.Constraint) -> bool:
    base = unmixed(support)
    while isinstance(base, constraints.independent):
        base = unmixed(vars(base)["base_constraint"])
    if base.is_discrete or base in (constraints.real, constraints.real_vector):
        return False
    return base.event_dim == 0 or base is constraints.simplex  # matrices have numbers that never vary
