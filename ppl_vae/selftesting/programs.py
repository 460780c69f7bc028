"""Pairs whose every number is known: a linear Gaussian model, and one datum repeated."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.rng import generator_of

__all__ = ["LinearGaussian", "MeanField", "Positive", "Replicas", "Setting", "bound"]

_SCALE, _DATUM = 0.7, 1.0


class Setting(NamedTuple):
    """Where a case runs, and from which seed."""

    device: torch.device
    """Where estimates run; exact answers come from the CPU in float64."""
    seed: int
    """Of all noise."""


class LinearGaussian(nn.Module):
    """z ~ N(0, I), x = W z + b + 0.7 e, with its posterior N(m(x), L L^T) as guide, L times `widen`.

    Args:
        dim: D, numbers of a datum.
        latent: d, numbers of a latent.
        widen: s; 1 is the posterior itself.
        dtype: Of all parameters.
    """

    def __init__(self, dim: int, latent: int, widen: float = 1.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = generator_of(dim + latent)
        self.latent, self.widen = latent, widen
        weight = torch.randn(dim, latent, generator=generator, dtype=torch.float64)
        bias = torch.randn(dim, generator=generator, dtype=torch.float64)
        posterior = torch.linalg.inv(torch.eye(latent, dtype=torch.float64) + weight.mT @ weight / _SCALE**2)
        self.weight, self.bias = nn.Parameter(weight.to(dtype)), nn.Parameter(bias.to(dtype))
        self.gain = nn.Parameter((posterior @ weight.mT / _SCALE**2).to(dtype))
        self.root = nn.Parameter((widen * torch.linalg.cholesky(posterior)).to(dtype))

    @property
    def kl(self) -> float:
        r"""KL(q, posterior) of any datum, d [(s^2 - 1) / 2 - log s], in nats."""
        return self.latent * ((self.widen**2 - 1) / 2 - math.log(self.widen))

    @property
    def chi_square(self) -> float:
        r"""Variance of a weight over p(x), (s^2 / sqrt(2 s^2 - 1))^d - 1; s is above sqrt(1/2)."""
        return (self.widen**2 / math.sqrt(2 * self.widen**2 - 1)) ** self.latent - 1

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.mT + self.bias, _SCALE).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z given x)."""
        with pyro.plate("data", len(x)):
            loc = (x - self.bias) @ self.gain.mT
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=self.root.tril()))

    def draw(self, n: int, seed: int) -> Tensor:
        """Data (n, D) of the model."""
        return self._marginal(generator_of(seed), n)

    def exact(self, x: Tensor | np.ndarray) -> np.ndarray:
        """log p(x) by the density of N(b, W W^T + 0.49 I), (N,)."""
        weight, bias = (p.detach().cpu().double() for p in (self.weight, self.bias))
        covariance = weight @ weight.mT + _SCALE**2 * torch.eye(len(bias), dtype=torch.float64)
        marginal = dist.MultivariateNormal(bias, covariance)
        return marginal.log_prob(torch.as_tensor(x).cpu().double()).numpy()

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (N, d) and covariance (d, d) of p(z given x)."""
        weight, bias = (p.detach().cpu().double() for p in (self.weight, self.bias))
        covariance = torch.linalg.inv(torch.eye(self.latent, dtype=torch.float64) + weight.mT @ weight / _SCALE**2)
        return (x.cpu().double() - bias) @ weight @ covariance / _SCALE**2, covariance

    def mean_log_lik(self, x: Tensor) -> np.ndarray:
        """E log p(x given z) over the posterior, (N,)."""
        weight, bias = (p.detach().cpu().double() for p in (self.weight, self.bias))
        loc, covariance = self.posterior(x)
        at_mean = dist.Normal(loc @ weight.mT + bias, _SCALE).log_prob(x.cpu().double()).sum(-1)
        return (at_mean - torch.trace(weight @ covariance @ weight.mT) / (2 * _SCALE**2)).numpy()

    def _marginal(self, generator: torch.Generator, n: int) -> Tensor:
        weight, bias = (p.detach().cpu().double() for p in (self.weight, self.bias))
        z, e = (torch.randn(n, m, generator=generator, dtype=torch.float64) for m in weight.shape[::-1])
        return (z @ weight.mT + bias + _SCALE * e).to(self.weight.dtype)


class MeanField(LinearGaussian):
    """The same model; the guide has the posterior's mean and independent latents, of the posterior's own scales."""

    def guide(self, x: Tensor) -> None:
        """q(z given x)."""
        with pyro.plate("data", len(x)):
            loc = (x - self.bias) @ self.gain.mT
            pyro.sample("z", dist.Normal(loc, self.root.tril().square().sum(-1).sqrt()).to_event(1))

    @property
    def least_kl(self) -> float:
        """KL from the posterior of the best of such guides, 1/2 [sum log Lambda_ii - log |Lambda|], in nats."""
        precision = torch.linalg.inv(self.posterior(self.bias[None])[1])
        return float(precision.diagonal().log().sum() - precision.logdet()) / 2


class Positive(LinearGaussian):
    """The same data by latents e^z: log p(x) is the same, and the posterior is the guide, pushed forward."""

    def model(self, x: Tensor) -> None:
        """p(x, e^z)."""
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.LogNormal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(y.log() @ self.weight.mT + self.bias, _SCALE).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(e^z given x)."""
        with pyro.plate("data", len(x)):
            loc = (x - self.bias) @ self.gain.mT
            normal = dist.MultivariateNormal(loc, scale_tril=self.root.tril())
            pyro.sample("y", dist.TransformedDistribution(normal, [dist.transforms.ExpTransform()]))


class Replicas(nn.Module):
    """z ~ N(0, 1), x = z + e with the guide N(m, s^2), m = -0.5 and s = 1.3: far from the posterior of x = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor(1.3, dtype=torch.float64).log())

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z), the same for every datum."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc.expand(len(x)), self.log_scale.exp()))

    def data(self, n: int) -> Tensor:
        """The datum x = 1, n times."""
        return torch.full((n,), _DATUM, dtype=torch.float64, device=self.loc.device)


def bound(loc: Tensor, log_scale: Tensor, num_particles: int) -> Tensor:
    r"""E log 1/K sum_k w_k of the replicas for K = 1 or 2, by Gauss-Hermite quadrature of 64 points a particle."""
    points, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(64))
    weights = weights / weights.sum()
    z = loc + log_scale.exp() * points
    joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(torch.tensor(_DATUM))
    log_weight = joint - dist.Normal(loc, log_scale.exp()).log_prob(z)
    if num_particles == 1:
        return (weights * log_weight).sum()
    both = torch.logaddexp(log_weight[:, None], log_weight) - math.log(2)
    return (weights[:, None] * weights * both).sum()
