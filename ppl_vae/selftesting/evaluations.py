"""What is built on the estimates: gaps, ledgers, calibration, comparison and the rest, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from ppl_vae.evaluation import (
    LocalSearch,
    calibrate,
    compare,
    escalate,
    gap_decomposition,
    k_curve,
    ledger,
    log_likelihood,
    posterior_predictive,
)
from ppl_vae.selftesting.programs import LinearGaussian, Setting
from ppl_vae.selftesting.rows import Row, between, equal, estimated, stderr_of_mean

__all__ = ["bound_taken_apart", "calibration", "comparison", "curve", "escalation", "precision", "predictive"]

_DIM, _LATENT, _WIDE, _NARROW = 5, 2, 1.4, 0.5


def bound_taken_apart(setting: Setting) -> Iterator[Row]:
    """The posterior widened by s leaves KL(q, posterior), all of it for want of amortisation; the rate is a KL."""
    pair = LinearGaussian(_DIM, _LATENT, _WIDE)
    x, device = pair.draw(32, setting.seed), setting.device
    found = gap_decomposition(
        pair,
        x,
        1000,
        setting.seed,
        search=LocalSearch(100, 1),
        richer=False,
        compile=False,
        device=device,
        progress=False,
    )
    whole, left = found.mean("gap"), found.mean("approximation")
    yield estimated("gap decomposition: log p(x) - ELBO, a KL", whole.value, pair.kl, whole.stderr)
    yield between("its approximation gap, which a full covariance closes", left.value, 0.0, 0.002, left.stderr)
    entries = ledger(pair, x, 200, setting.seed, num_aggregate=0, device=device, progress=False)
    exact = float(pair.exact(x).mean()) - pair.kl
    yield estimated("ledger: ELBO, log p(x) - KL", entries.elbo.mean, exact, entries.elbo.mean_stderr)
    loc, covariance = pair.posterior(x)
    q = torch.distributions.MultivariateNormal(loc, _WIDE**2 * covariance)
    prior = torch.distributions.MultivariateNormal(torch.zeros_like(loc), torch.eye(_LATENT, dtype=loc.dtype))
    rate = torch.distributions.kl_divergence(q, prior).mean().item()
    rounding = 1e-10 * abs(rate) / 5
    yield estimated("its rate, KL(q, p)", entries.rate.mean, rate, max(entries.rate.mean_stderr, rounding))


def calibration(setting: Setting) -> Iterator[Row]:
    """Ranks of log p(x, z) under the exact guide are uniform on 0..L: their mean and variance, as shares of L."""
    pair, num_draws = LinearGaussian(_DIM, _LATENT), 39
    found = calibrate(
        pair, pair.draw(1, setting.seed), 1000, num_draws, setting.seed, device=setting.device, progress=False
    )
    share, every = found.ranks["log p(x, z)"][:, 0] / num_draws, np.arange(num_draws + 1) / num_draws
    for what, moment in (("mean", 1), ("mean square", 2)):
        exact, error = float(np.mean(every**moment)), float(np.std(every**moment)) / math.sqrt(len(share))
        yield estimated(
            f"calibrate: {what} of the ranks of an exact guide", float(np.mean(share**moment)), exact, error
        )


def escalation(setting: Setting) -> Iterator[Row]:
    """Few samples of a guide too narrow, estimated anew until they are reliable."""
    pair = LinearGaussian(_DIM, _LATENT, _NARROW)
    x, device = pair.draw(32, setting.seed), setting.device
    few = log_likelihood(pair, x, 50, setting.seed, num_draws=0, device=device, compile=False, progress=False)
    found = escalate(few, pair, x, until="reliable", seed=setting.seed, device=device, progress=False)
    exact = float(pair.exact(x).mean())
    yield estimated("escalate: log p(x) by a guide of half the width", found.mean, exact, found.mean_stderr)
    yield equal("its unreliable data", float((~found.trusted).sum()), 0.0, 0.0)


def precision(setting: Setting) -> Iterator[Row]:
    """As many samples as a standard error of 0.05 needs."""
    pair, target = LinearGaussian(_DIM, _LATENT, _WIDE), 0.05
    x = pair.draw(500, setting.seed)
    found = log_likelihood(
        pair,
        x,
        2000,
        setting.seed,
        target_stderr=target,
        num_draws=0,
        num_probes=0,
        device=setting.device,
        compile=False,
        progress=False,
    )
    ratio = np.exp(found.value - pair.exact(x))
    error = float(ratio.std(ddof=1)) / math.sqrt(len(x))
    yield estimated("target_stderr: log of mean p-hat / p", math.log(ratio.mean()), 0.0, error)
    size = float(np.sqrt(np.square(ratio - 1).mean()))
    yield between("its error for a target of 0.05", size, 0.0, target, size / math.sqrt(2 * len(x)))


def curve(setting: Setting) -> Iterator[Row]:
    """The bound rises by chi^2 / 4k where k doubles, to log p(x)."""
    pair, num_samples = LinearGaussian(_DIM, _LATENT, _WIDE), 128
    x = pair.draw(1000, setting.seed)
    found = k_curve(pair, x, num_samples, setting.seed, device=setting.device, compile=False, progress=False)
    off = found.extrapolated - pair.exact(x)
    yield estimated("k_curve: extrapolated bound - log p(x)", float(off.mean()), 0.0, stderr_of_mean(off))
    law = pair.chi_square / (2 * num_samples)
    yield estimated("its last rise, chi^2 / 4k", float(found.rise[-1]), law, float(found.rise_stderr[-1]))


def comparison(setting: Setting) -> Iterator[Row]:
    """The model that made the data against one whose mean is off: guides as wide and the same noise leave no other."""
    right, wrong = LinearGaussian(_DIM, _LATENT, _WIDE), LinearGaussian(_DIM, _LATENT, _WIDE)
    with torch.no_grad():
        wrong.bias.add_(0.3)
    x = right.draw(300, setting.seed)
    found = compare(
        {"right": right, "wrong": wrong}, x, 200, setting.seed, device=setting.device, compile=False, progress=False
    ).differences[0]
    exact = float((right.exact(x) - wrong.exact(x)).mean())
    mean = found.mean if found.better == "right" else -found.mean
    yield equal("compare: difference of two models on the same noise", mean, exact, 1e-10)


def predictive(setting: Setting) -> Iterator[Row]:
    """Draws of a guide too wide, resampled by weight: E log p(x given z) over the posterior, in closed form."""
    pair = LinearGaussian(_DIM, _LATENT, _WIDE)
    x = pair.draw(300, setting.seed)
    found = posterior_predictive(pair, x, 16, setting.seed, device=setting.device, progress=False)
    off = found.log_lik.mean(0) - pair.mean_log_lik(x)
    yield estimated("predictive: E log p(x given z) over the posterior", float(off.mean()), 0.0, stderr_of_mean(off))
