"""The exact log p(x) of a pair with two standard normal latents, by quadrature on a grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from pyro.distributions import Distribution
from torch import Tensor

__all__ = ["Evidence", "log_evidence"]

_BLOCK_ENTRIES = 1 << 24  # (datum, grid point, entry of a datum) at once


class Evidence(NamedTuple):
    """log p(x) of each datum, and how much of it hangs on the grid."""

    value: Tensor
    """log p(x), shape (N,), nats."""
    error: Tensor
    """|change of `value` with half as many points to a side|, shape (N,), nats; that of `value` itself is far less."""


@torch.no_grad()
def log_evidence(
    likelihood: Callable[[Tensor], Distribution], x: Tensor, size: int = 400, reach: float = 7.0
) -> Evidence:
    r"""Sum log p(x) = log sum_z p(x given z) N(z; 0, I) h^2 over the points z of a square grid of spacing h.

    For smooth integrands that vanish at the edge, this rule converges faster than any power of h.

    Args:
        likelihood: Maps z (M, 2) to p(x given z), batch shape (M,), such as the decoder of a VAE.
        x: Data (N, *event), in the dtype of the likelihood.
        size: Points to a side, an even number.
        reach: Largest coordinate; beyond it the prior has no mass that counts.

    Reference:
        Trefethen and Weideman (2014), The Exponentially Convergent Trapezoidal Rule.
    """
    line = torch.linspace(-reach, reach, size, dtype=x.dtype)
    z = torch.cartesian_prod(line, line)
    p = likelihood(z)
    if tuple(p.batch_shape) != (size**2,):
        raise ValueError(
            f"expected a likelihood of batch shape ({size**2},), found {tuple(p.batch_shape)}: declare its event by "
            "to_event"
        )
    log_prior = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
    rows = max(1, _BLOCK_ENTRIES // (size**2 * p.event_shape.numel()))
    table = torch.cat([p.log_prob(block.unsqueeze(1)) + log_prior for block in x.split(rows)])
    log_area = 2 * math.log(2 * reach / (size - 1))
    value = table.logsumexp(-1) + log_area
    coarse = table.unflatten(-1, (size, size))[:, ::2, ::2].flatten(1).logsumexp(-1) + log_area + math.log(4)
    return Evidence(value, (value - coarse).abs())
