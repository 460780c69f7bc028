"""Annealed estimates against closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ppl_vae.evaluation import (
    Annealing,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    log_evidence,
    log_likelihood,
)
from ppl_vae.selftesting.programs import LinearGaussian, Positive, Setting
from ppl_vae.selftesting.rows import Row, between, equal, estimated, stderr_of_mean

__all__ = ["annealing", "constrained", "schedules"]

_WIDEN, _LATENT = 1.4, 2


def annealing(setting: Setting) -> Iterator[Row]:
    """Chains from the prior, with mean weight p(x), and bounds from both sides."""
    pair, how = LinearGaussian(4, _LATENT, _WIDEN), Annealing(8, 60, 5, start="prior")
    x = pair.draw(280, setting.seed)
    annealed = annealed_importance_sampling(
        pair, x, how, setting.seed, compare_starts=False, device=setting.device, progress=False
    )
    ratio = np.exp(annealed.value - pair.exact(x))
    yield estimated("annealed: log of mean p-hat / p", math.log(ratio.mean()), 0.0, stderr_of_mean(ratio))
    near = Annealing(8, 40, 5)
    both = bidirectional_monte_carlo(pair, x[:48], near, setting.seed, device=setting.device, progress=False)
    exact = pair.exact(both.x[0])
    for side, found, low, high in (("lower", both.lower, -0.05, 0.0), ("upper", both.upper, 0.0, 0.05)):
        off, what = found - exact, f"{side} bound of bidirectional Monte Carlo - log p(x)"
        yield between(what, float(off.mean()), low, high, stderr_of_mean(off))


def schedules(setting: Setting) -> Iterator[Row]:
    """The same for temperatures that are even, and for those that chains of their own choose."""
    pair = LinearGaussian(4, _LATENT, _WIDEN)
    x, device = pair.draw(100, setting.seed), setting.device
    for schedule in ("linear", "adaptive"):
        how = Annealing(8, 30, 3, schedule)
        found = annealed_importance_sampling(
            pair, x, how, setting.seed, compare_starts=False, device=device, progress=False
        )
        ratio = np.exp(found.value - pair.exact(x))
        what = f"annealed, {schedule} temperatures: log of mean p-hat / p"
        yield estimated(what, math.log(ratio.mean()), 0.0, stderr_of_mean(ratio))


def constrained(setting: Setting) -> Iterator[Row]:
    """Latents that are positive: with the posterior as guide every weight is p(x), whatever the coordinates."""
    pair, device = Positive(4, _LATENT), setting.device
    x = pair.draw(16, setting.seed)
    found = log_likelihood(pair, x, 50, setting.seed, num_draws=0, device=device, compile=False, progress=False)
    yield equal("positive latents, posterior as guide", found.value, pair.exact(x), 1e-10)
    chains = annealed_importance_sampling(
        pair, x, Annealing(4, 5, 3), setting.seed, compare_starts=False, device=device, progress=False
    )
    yield equal("positive latents, annealed", chains.value, pair.exact(x), 1e-8)
    one = Positive(4, 1)
    x = one.draw(4, setting.seed)
    yield equal("positive latent, quadrature", log_evidence(one, x, device=device, progress=False), one.exact(x), 1e-4)
