"""Estimates of log p(x) against closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ppl_vae.evaluation import (
    Annealing,
    LogLikelihood,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    log_evidence,
    log_likelihood,
)
from ppl_vae.exact import GMM, PPCA
from ppl_vae.selftesting.programs import LinearGaussian, Setting
from ppl_vae.selftesting.rows import Row, between, equal, estimated

__all__ = ["annealing", "exact_guides", "importance_sampling", "mixture", "quadrature"]

_WIDEN, _LATENT = 1.4, 2
_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}


def exact_guides(setting: Setting) -> Iterator[Row]:
    """With the posterior as guide every weight is p(x)."""
    for dtype, rounding in _ROUNDING.items():
        pair = LinearGaussian(5, _LATENT, dtype=dtype)
        x = pair.draw(64, setting.seed)
        yield equal(
            f"posterior as guide, {str(dtype)[6:]}", _estimate(pair, x, 100, setting).value, pair.exact(x), rounding
        )
    pair = LinearGaussian(5, _LATENT)
    ppca = PPCA(pair.weight.detach(), pair.bias.detach(), 0.7)
    x = pair.draw(64, setting.seed)
    yield equal("PPCA, log p(x)", ppca.log_prob(x).cpu(), pair.exact(x), 1e-10)
    yield equal("PPCA, its guide", _estimate(ppca, x, 100, setting).value, pair.exact(x), 1e-10)


def importance_sampling(setting: Setting) -> Iterator[Row]:
    """With the posterior widened by s: ELBO + KL = log p, and p-hat / p has mean 1 and variance chi^2 / K."""
    pair, num_samples = LinearGaussian(5, _LATENT, _WIDEN), 100
    x = pair.draw(1000, setting.seed)
    exact, found = pair.exact(x), _estimate(pair, x, num_samples, setting)
    kl = _LATENT * ((_WIDEN**2 - 1) / 2 - math.log(_WIDEN))
    spread = (_WIDEN**2 - 1) * math.sqrt(_LATENT / 2)  # of one log-weight
    error = spread / math.sqrt(num_samples * len(x))
    yield estimated("ELBO + KL(q, posterior)", float(found.elbo.mean()) + kl, float(exact.mean()), error)
    ratio = np.exp(found.value - exact)
    chi_square = (_WIDEN**2 / math.sqrt(2 * _WIDEN**2 - 1)) ** _LATENT - 1
    error = math.sqrt(chi_square / num_samples / len(x))
    yield estimated("importance sampling: log of mean p-hat / p", math.log(ratio.mean()), 0.0, error)
    square = np.square(ratio - 1)
    size = math.sqrt(square.mean())
    error = float(square.std(ddof=1)) / math.sqrt(len(x)) / (2 * size)
    yield estimated("its root-mean-square error, sqrt(chi^2 / K)", size, math.sqrt(chi_square / num_samples), error)


def mixture(setting: Setting) -> Iterator[Row]:
    """A Gaussian mixture: the sum over components by torch, by enumeration and by its exact guide."""
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    means = torch.tensor([[0.0, 0.0], [2.0, 1.0], [-1.0, 3.0]], dtype=torch.float64)
    covariances = torch.tensor([[[1.0, 0.6], [0.6, 1.0]]], dtype=torch.float64) * weights[:, None, None]
    gmm = GMM(weights, means, covariances)
    x = gmm.sample(100, setting.seed)
    components = torch.distributions.MultivariateNormal(means, covariances)
    exact = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), components).log_prob(x)
    yield equal("mixture, log p(x)", gmm.log_prob(x), exact, 1e-10)
    yield equal("mixture, enumeration", log_evidence(gmm, x, device=setting.device, progress=False), exact, 1e-10)
    yield equal("mixture, its guide", _estimate(gmm, x, 50, setting).elbo, exact, 1e-10)  # its value is the sum


def quadrature(setting: Setting) -> Iterator[Row]:
    """The integral over one and two latents."""
    for latent in (1, 2):
        pair = LinearGaussian(4, latent, _WIDEN)
        x = pair.draw(8, setting.seed)
        found = log_evidence(pair, x, device=setting.device, progress=False)
        yield equal(f"quadrature over {latent} latent{'s' * (latent > 1)}", found, pair.exact(x), 1e-4)


def annealing(setting: Setting) -> Iterator[Row]:
    """Chains from the prior, with mean weight p(x), and bounds from both sides."""
    pair, how = LinearGaussian(4, _LATENT, _WIDEN), Annealing(8, 100, 5, start="prior")
    x = pair.draw(160, setting.seed)
    annealed = annealed_importance_sampling(
        pair, x, how, setting.seed, compare_starts=False, device=setting.device, progress=False
    )
    ratio = np.exp(annealed.value - pair.exact(x))
    error = float(ratio.std(ddof=1)) / math.sqrt(len(x))
    yield estimated("annealed: log of mean p-hat / p", math.log(ratio.mean()), 0.0, error)
    near = Annealing(8, 40, 5)
    both = bidirectional_monte_carlo(pair, x[:48], near, setting.seed, device=setting.device, progress=False)
    exact = pair.exact(both.x[0])
    for side, found, low, high in (("lower", both.lower, -0.05, 0.0), ("upper", both.upper, 0.0, 0.05)):
        off = found - exact
        error = float(off.std(ddof=1)) / math.sqrt(len(off))
        yield between(f"{side} bound of bidirectional Monte Carlo - log p(x)", float(off.mean()), low, high, error)


def _estimate(pair: object, x: Tensor, num_samples: int, setting: Setting) -> LogLikelihood:
    return log_likelihood(
        pair, x, num_samples, setting.seed, num_draws=0, device=setting.device, compile=False, progress=False
    )
