"""Pairs that the tests share: small programs in every form a user writes them."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import integrate
from torch import Tensor, nn
from torch.distributions import kl_divergence

import ppl_vae as pv

LATENT, WIDTH = 2, 5


class ModuleVAE(nn.Module):
    """Pyro's own VAE example in small: methods of an nn.Module, pyro.module inside the programs."""

    def __init__(self, full_covariance: bool = False) -> None:
        super().__init__()
        self.full_covariance = full_covariance
        outputs = LATENT * (LATENT + 1) if full_covariance else 2 * LATENT
        self.decoder = nn.Sequential(nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, WIDTH))
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, outputs))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            zeros = x.new_zeros(x.shape[0], LATENT)
            z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, rest = self.encoder(x).split([LATENT, self.encoder[-1].out_features - LATENT], -1)
            if self.full_covariance:
                lower = rest.reshape(*rest.shape[:-1], LATENT, LATENT).tril(-1)
                root = lower + torch.diag_embed(rest[..., :LATENT].exp())
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=root))
            else:
                pyro.sample("z", dist.Normal(loc, rest.exp()).to_event(1))


class DiscreteVAE(ModuleVAE):
    """A categorical latent of three values."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(3, WIDTH)
        self.encoder = nn.Linear(WIDTH, 3)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Categorical(logits=x.new_tensor([0.0, 0.3, -0.2])))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(nn.functional.one_hot(z, 3).to(x))).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Categorical(logits=self.encoder(x)))


class HierarchicalVAE(nn.Module):
    """Two stochastic layers: z2 above z1, both diagonal normals; the guide goes from the data upwards."""

    def __init__(self) -> None:
        super().__init__()
        self.up1, self.up2 = nn.Linear(WIDTH, 2 * LATENT), nn.Linear(LATENT, 2 * LATENT)
        self.down2, self.down1 = nn.Linear(LATENT, 2 * LATENT), nn.Linear(LATENT, WIDTH)

    @staticmethod
    def normal(features: Tensor) -> dist.Distribution:
        loc, raw = features.chunk(2, -1)
        return dist.Normal(loc, nn.functional.softplus(raw) + 0.1).to_event(1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            z1 = pyro.sample("z1", self.normal(self.down2(z2)))
            pyro.sample("x", dist.Bernoulli(logits=self.down1(z1)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z1 = pyro.sample("z1", self.normal(self.up1(x)))
            pyro.sample("z2", self.normal(self.up2(z1)))


def closure_pair(scale: float = 1.0) -> pv.Pair:
    """Modules in closures, pyro.param with a constraint, nothing registered with pyro.module."""
    decoder, encoder = nn.Linear(1, 3), nn.Linear(3, 1)

    def model(x: Tensor) -> None:
        noise = pyro.param("noise", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        width = pyro.param("width", torch.tensor([scale]), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(encoder(x), width).to_event(1))

    return pv.Pair(model, guide)


def scaled_guide(ppca: pv.PPCA, s: float) -> pv.Pair:
    """PPCA with its exact posterior widened by s: every moment of its weights has a closed form."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            q = ppca.posterior(x)
            pyro.sample("z", dist.MultivariateNormal(q.loc, scale_tril=s * q.scale_tril))

    return pv.Pair(ppca.model, guide)


def positive_latent(s: float) -> pv.Pair:
    """log v ~ N(0, 1), x ~ N(log v, 0.5) with the exact posterior scaled by s as guide of v."""

    def model(x):
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.LogNormal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(v.log(), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("v", dist.LogNormal(0.8 * x, s * 0.2**0.5))

    return pv.Pair(model, guide)


def evidence_of_a_product(value: float) -> float:
    """p(x) where x ~ N(rate share, 0.3), rate ~ Gamma(2, 1.5) and share ~ Beta(2, 3), by SciPy."""

    def joint(rate, share):
        prior = rate * 1.5**2 * math.exp(-1.5 * rate) * 12 * share * (1 - share) ** 2
        return prior * math.exp(-0.5 * ((value - rate * share) / 0.3) ** 2) / (0.3 * math.sqrt(2 * math.pi))

    return integrate.dblquad(joint, 0, 1, 0, 25, epsabs=1e-9)[0]


def diagonal(ppca: pv.PPCA, shift: float, widen: float):
    """A diagonal guide beside the posterior, and the best diagonal one: precisions of the posterior, and its mean."""

    def of(x, best: bool):
        posterior = ppca.posterior(x)
        precision = posterior.precision_matrix.diagonal(dim1=-2, dim2=-1).expand(posterior.loc.shape)
        loc = posterior.loc if best else posterior.loc + shift * posterior.stddev
        return dist.Normal(loc, precision.rsqrt() * (1.0 if best else widen)).to_event(1)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", of(x, best=False))

    def kl(x, best: bool):
        q = of(x, best)
        full = dist.MultivariateNormal(q.base_dist.loc, scale_tril=torch.diag_embed(q.base_dist.scale))
        return kl_divergence(full, ppca.posterior(x))

    return pv.Pair(ppca.model, guide), kl


def of_two_kinds(ppca: pv.PPCA, s: float) -> pv.Pair:
    """The exact posterior as guide where the first number of a datum is positive, one scaled by s elsewhere."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            q = ppca.posterior(x)
            scale = torch.where(x[:, 0] > 0, 1.0, s)[:, None, None]
            pyro.sample("z", dist.MultivariateNormal(q.loc, scale_tril=scale * q.scale_tril))

    return pv.Pair(ppca.model, guide)


def chi_square(s: float, dim: int) -> float:
    """Variance of p-hat / p for one draw from the posterior widened by s: (s^2 / sqrt(2 s^2 - 1))^d - 1."""
    return (s**2 / math.sqrt(2 * s**2 - 1)) ** dim - 1


def small_ppca(dim: int = 4, latent: int = 2, seed: int = 3) -> pv.PPCA:
    """A PPCA with a random loading."""
    generator = torch.Generator().manual_seed(seed)
    return pv.PPCA(torch.randn(dim, latent, generator=generator, dtype=torch.float64), torch.zeros(dim), 0.7)


def binary_rows(n: int = 6, seed: int = 0) -> Tensor:
    """Binary data (n, WIDTH) in the default dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.bernoulli(torch.full((n, WIDTH), 0.4), generator=generator)


def mixture_and_normal(x):
    """c in {0, 1, 2}, z ~ N(mu_c, 1), x ~ N(z, 1/2): log p(x) is that of a mixture of normals."""
    means, weights = torch.tensor([[-1.0, 2.0, 0.5], [0.3, 0.5, 0.2]], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(weights))
            z = pyro.sample("z", dist.Normal(means[c], 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(len(x), 3).double() / 3))
            pyro.sample("z", dist.Normal(0.8 * x + 0.2 * means[c], 0.5))

    from scipy import stats  # takes a second, which every process that a test starts would pay

    exact = np.log((weights.numpy() * stats.norm.pdf(x.numpy()[:, None], means.numpy(), np.sqrt(1.25))).sum(1))
    return pv.Pair(model, guide), exact


def two_modes(at: float) -> pv.Pair:
    """A latent with modes at -a and a that the data say nothing of, and a guide that is one of them."""
    modes = torch.tensor([-at, at], dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2).double()), dist.Normal(modes, 1.0))
            z = pyro.sample("z", mixture)
            pyro.sample("x", dist.Normal(z * 0, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full_like(x, at), 1.0))

    return pv.Pair(model, guide)


def count_and_normal() -> pv.Pair:
    """z ~ Poisson(2), x ~ N(z, 1): a latent of infinitely many values."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Poisson(torch.tensor(2.0)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Poisson(torch.full((len(x),), 2.5)))

    return pv.Pair(model, guide)


def exponential_and_normal(slope: float, shift: float) -> pv.Pair:
    """z ~ Exponential(1), x ~ N(z, 1), and a guide N(slope x + shift, 1), which leaves the half line."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(x.new_ones(len(x))))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x + shift, 1.0))

    return pv.Pair(model, guide)


def cut_off(limit: float, log_density: float) -> pv.Pair:
    """z ~ N(0, 1), x ~ N(z, 1/2), whose density is another where z is above a limit; the guide stays below 1.4."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)
            rule = dist.Unit(torch.where(z > limit, log_density, 0.0), validate_args=False)
            pyro.sample("rule", rule, obs=rule.sample())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_full((len(x),), 0.5), 0.15))

    return pv.Pair(model, guide)
