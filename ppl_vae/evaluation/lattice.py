"""Draws that lie so close together that their type has hardly a number between them: weights of a lattice, not of z."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.evaluation.edges import numbers_of
from ppl_vae.evaluation.proposal import Proposal
from ppl_vae.supports import base_of, support_of
from ppl_vae.tape import Layout, Tape

__all__ = ["latents_on_a_lattice", "rounding_on_a_lattice", "spacings"]

# A draw that is rounded to a cell h wide is weighed by the density at its middle, not by the share of the cell: of a
# normal distribution the two differ by (h / s)^2 (e^2 - 1) / 24, whose root mean square this is.
_OF_A_CELL = 2**0.5 / 24
_MOST = 10.0  # spacings in a spread, where draws are equal


def latents_on_a_lattice(guide: Tape, layout: Layout) -> tuple[str, ...]:
    """Continuous latents each of whose numbers varies: those of matrices do not, nor the largest of a simplex."""
    return tuple(name for name in layout.local_latents if _varies(support_of(guide.sites[name]["fn"])))


def spacings(numbers: Tensor) -> Tensor:
    """Distance of neighbouring numbers of their type in units of the spread of draws (K, N, ...), (N, ...).

    Example:
        >>> spacings(torch.tensor([[1e8], [1e8 + 8], [1e8 - 8]]))
        tensor([1.], dtype=torch.float64)
    """
    largest = numbers.abs().amax(0)
    spacing = (torch.nextafter(largest, torch.full_like(largest, torch.inf)) - largest).double()
    spread = (numbers.double() - numbers[0].double()).std(0)
    return spacing / torch.maximum(spread, spacing / _MOST)


def rounding_on_a_lattice(proposal: Proposal, names: Collection[str], layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """What rounding of the draws themselves does to the log-weights of a datum, in nats (N,), and where it hides them.

    Args:
        proposal: Some draws, two or more.
        names: Latents that may suffer from it.
        layout: Layout of the pair.
    """
    found = [
        spacings(numbers).where(counted.any(0), 0.0) for _, numbers, counted in numbers_of(proposal, names, layout)
    ]
    every = torch.cat(found, 1).cpu()
    hidden = (every >= 1).any(1)
    nats = _OF_A_CELL * every.square().norm(dim=1)
    return nats.where(~hidden, nats.clamp_min(1.0)).numpy(), hidden.numpy()


def _varies(support: constraints.Constraint) -> bool:
    base = base_of(support)
    return not base.is_discrete and base.event_dim <= 1 and base is not constraints.simplex
