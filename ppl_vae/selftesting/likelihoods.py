"""Estimates of log p(x) against closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ppl_vae.evaluation import LogLikelihood, log_evidence, log_likelihood
from ppl_vae.exact import GMM, PPCA
from ppl_vae.selftesting.programs import LinearGaussian, Setting
from ppl_vae.selftesting.rows import Row, between, equal, estimated, stderr_of_mean

__all__ = ["exact_guides", "importance_sampling", "mixture", "quadrature", "trust"]

_WIDEN, _NARROW, _LATENT = 1.4, 1 / 3, 2
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
    spread = (_WIDEN**2 - 1) * math.sqrt(_LATENT / 2)  # of one log-weight
    error = spread / math.sqrt(num_samples * len(x))
    yield estimated("ELBO + KL(q, posterior)", float(found.elbo.mean()) + pair.kl, float(exact.mean()), error)
    ratio = np.exp(found.value - exact)
    error = math.sqrt(pair.chi_square / num_samples / len(x))
    yield estimated("importance sampling: log of mean p-hat / p", math.log(ratio.mean()), 0.0, error)
    square = np.square(ratio - 1)
    size = math.sqrt(square.mean())
    error = float(square.std(ddof=1)) / math.sqrt(len(x)) / (2 * size)
    yield estimated(
        "its root-mean-square error, sqrt(chi^2 / K)", size, math.sqrt(pair.chi_square / num_samples), error
    )


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


def trust(setting: Setting) -> Iterator[Row]:
    """What is said of an estimate: its 95 % intervals, its verdicts, and the mean of its smoothed weights."""
    pair = LinearGaussian(5, _LATENT, _WIDEN)
    x = pair.draw(1000, setting.seed)
    exact, found = pair.exact(x), _estimate(pair, x, 500, setting)
    low, high = found.intervals()
    share = float(((low <= exact) & (exact <= high)).mean())
    yield between("share of 95 % intervals that hold log p(x)", share, 0.93, 0.97, math.sqrt(0.95 * 0.05 / len(x)))
    yield equal("unreliable data of a guide 1.4 times as wide", float((~found.trusted).sum()), 0.0, 0.0)
    ratio = np.exp(found.smoothed - exact)
    yield estimated("Pareto-smoothed: log of mean p-hat / p", math.log(ratio.mean()), 0.0, stderr_of_mean(ratio))
    narrow = LinearGaussian(5, _LATENT, _NARROW)
    words = _estimate(narrow, x, 500, setting).verdict
    share = float((words == "unreliable").mean())
    yield between("unreliable share of one a third as wide", share, 0.99, 1.0, 0.5 / math.sqrt(len(x)))


def _estimate(pair: object, x: Tensor, num_samples: int, setting: Setting) -> LogLikelihood:
    return log_likelihood(
        pair, x, num_samples, setting.seed, num_draws=0, device=setting.device, compile=False, progress=False
    )
