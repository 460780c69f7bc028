"""The linear Gaussian on which Rainforth et al. (2018) show what more particles do to gradients."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.rng import key

__all__ = ["LinearGaussian"]

_OFF, _VARIANCE = 0.01, 2 / 3


class LinearGaussian(nn.Module):
    """z ~ N(0, I), x ~ N(z, I) in D dimensions, with the guide N(A x + b, 2/3 I).

    The posterior is N(x / 2, 1/2 I): the guide is wider, so that its weights are bounded. A and b are off the optimum
    by 0.01 a number, in a direction that the seed decides.

    Reference:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018), section 4.
    """

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.dim = dim
        self.weight = nn.Parameter(torch.eye(dim) / 2 + _OFF * torch.randn(dim, dim, generator=generator))
        self.bias = nn.Parameter(_OFF * torch.randn(dim, generator=generator))

    def sample(self, n: int, seed: int) -> Tensor:
        """Data (n, D) of the model."""
        return math.sqrt(2.0) * torch.randn(n, self.dim, generator=torch.Generator().manual_seed(key(seed, 1)))

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z given x)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.weight.T + self.bias, math.sqrt(_VARIANCE)).to_event(1))
