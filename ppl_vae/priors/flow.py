"""A prior whose density is a normalising flow (zuko, the extra "flows")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from ppl_vae import flows
from ppl_vae.errors import PairError
from ppl_vae.flows import FlowDistribution
from ppl_vae.networks import positive
from ppl_vae.options import whole_number

__all__ = ["FlowPrior"]

_FAMILIES = {"spline": flows.neural_spline, "affine": flows.masked_autoregressive}


class FlowPrior(nn.Module):
    """The prior `z = mu + sigma u` with u of a trainable flow; it starts at N(0, I).

    Args:
        latent_dim: Dimension of z.
        family: "spline", coupling layers with rational-quadratic splines (fast both ways); or "affine", a masked
            autoregressive flow (densities in one pass, draws in latent_dim).
        hidden: Width of each hidden layer of the flow's networks.
        num_flows: How many maps follow one another.

    Raises:
        PairError: The family is not known.
        ValueError: latent_dim or num_flows is no whole number of at least 1.
        ImportError: zuko is not installed.

    Reference:
        Chen et al. (2017), Variational Lossy Autoencoder; Durkan et al. (2019), Neural Spline Flows; Papamakarios,
        Pavlakou and Murray (2017), Masked Autoregressive Flow for Density Estimation.

    Example:
        >>> FlowPrior(2)().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        latent_dim: int,
        family: Literal["spline", "affine"] = "spline",
        hidden: Sequence[int] = (64, 64),
        num_flows: int = 3,
    ) -> None:
        super().__init__()
        if family not in _FAMILIES:
            raise PairError(f'family: expected "spline" or "affine", found {family!r}')
        whole_number("num_flows", num_flows, least=1)
        self.latent_dim = whole_number("latent_dim", latent_dim, least=1)
        self.flow = _FAMILIES[family](latent_dim, 0, hidden, num_flows)
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.raw_scale = nn.Parameter(torch.ones(latent_dim).expm1().log())

    def forward(self) -> FlowDistribution:
        """Return p(z): batch shape (), event shape (latent_dim,)."""
        return FlowDistribution(self.flow(), self.loc, positive(self.raw_scale))
