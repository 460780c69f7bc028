"""The prior without parameters."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.options import whole_number

__all__ = ["StandardNormal"]


class StandardNormal(nn.Module):
    """The prior `p(z) = N(z; 0, I)` in latent_dim dimensions, on the device and in the dtype of the module.

    Args:
        latent_dim: Dimension of z.

    Raises:
        ValueError: latent_dim is no whole number of at least 1.

    Example:
        >>> prior = StandardNormal(2)()
        >>> prior.log_prob(torch.zeros(2)).item()  # -log(2 pi)
        -1.837...
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = whole_number("latent_dim", latent_dim, least=1)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.Independent:
        """Return p(z): batch shape (), event shape (latent_dim,)."""
        return dist.Normal(self.loc, self.scale).to_event(1)
