"""How far the estimate of a datum can be trusted, in a word."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ppl_vae.pareto import khat_noise, khat_threshold

__all__ = ["NOISY", "RELIABLE", "UNRELIABLE", "Misses", "misses", "misses_some", "shared_misses", "shrunk", "verdict"]

RELIABLE, NOISY, UNRELIABLE = "reliable", "noisy", "unreliable"

# Where more than three in ten of equals would fail, those that do not owe it to chance: in units of its spread.
_BY_LUCK = 0.5
# Weights have a variance, so that a standard error exists, below k = 1/2.
_LIGHT = 0.5
# Fewer effective samples than this do not tell their own error.
_ENOUGH = 30.0
# What no sample can have seen may shift an interval by a fifth of its standard error (coverage 95 % to 94.6 %), or by
# less than anybody reads; by a whole one, the interval says nothing.
_LITTLE, _MUCH, _NEGLIGIBLE = 0.2, 1.0, 1e-4
# What was found in one datum, by fewer than three probes as it were, may as well have been found in its equals, which
# then have the mean; of one datum so many standard errors count at most.
_BY_CHANCE, _MOST = 1.5, 5.0
# A guide that misses much of most data misses it in the others, too, where it may be too far away for any probe.
_MOSTLY = 0.5
# Fewer data say nothing of what they have in common.
_FEW = 3


def verdict(
    khat: np.ndarray,
    stderr: np.ndarray,
    ess: np.ndarray,
    unseen: np.ndarray,
    unseen_stderr: np.ndarray,
    num_samples: np.ndarray,
) -> np.ndarray:
    """`reliable`, `noisy` or `unreliable` for each datum, (N,).

    * `reliable`: all weights equal, or k-hat, drawn towards the other data as its noise warrants (`shrunk`), below 1/2
      and below the threshold of K, at least 30 effective samples (or K / 2); and probes found no more than a fifth of a
      standard error of log p(x) where no sample can have been, nor in the light of the others (`shared_misses`), nor
      more than a whole one in most data. Its 95 % intervals cover in 93 to 97 % of repetitions under guides 0.9 to 1.5
      times as wide as the posterior, and under mean-field guides of correlated ones.
    * `unreliable`: k-hat from its threshold on, or drawn to where it would be of three in ten of equal data, from 1/2
      on; or more than a standard error of log p(x) unseen, in the datum or in the light of the others. The estimate is
      rather too low, by nobody knows how much.
    * `noisy`: all others, those of a call most of whose data miss much among them, what was not probed, or where the
      guide could not be spread, or is not perfect though all weights are equal. Intervals of the rest of them cover in
      about nine of ten repetitions.

    The verdict on a datum depends on the data that are judged with it, those of one call: a k-hat of K samples has an
    error of a fifth or more, so that of many equals those pass whose largest weights were not drawn; and of what is
    unseen a few probes in a thousand may tell, so that most of many equals show nothing. What they have in common is
    known far better. In other company, or alone, a datum with the same weights may be judged otherwise, if its k-hat
    is near 1/2; what is promised of `reliable` data is promised of all of a call together. Data that nobody probed are
    nobody's company, nor are those of equal weights, unless finding nothing says nothing: weights are equal, too, where
    a guide is perfect but for values that it never gives.

    Args:
        khat: Pareto k-hat (N,), -inf where all weights are equal or log p(x) is exact.
        stderr: Standard errors (N,), in nats.
        ess: Effective numbers of samples (N,).
        unseen: Share of p(x) that the samples cannot have seen (N,); NaN where nobody looked.
        unseen_stderr: Its standard errors (N,), infinite where finding nothing says nothing.
        num_samples: K of each datum (N,).

    Example:
        >>> khat, error, none = np.array([0.1, 0.6, 0.9, 0.1]), np.full(4, 0.01), np.array([0.0, 0.0, 0.0, 0.2])
        >>> verdict(khat, error, np.full(4, 900.0), none, none / 10, np.full(4, 1000)).tolist()
        ['reliable', 'noisy', 'unreliable', 'unreliable']
    """
    limit = np.array([khat_threshold(int(k)) for k in num_samples])
    equal = khat == -np.inf
    common = shrunk(khat, num_samples)
    # Below 1/2 those that pass are no worse than those that fail.
    lucky = (common.khat + _BY_LUCK * common.chance >= limit) & (common.khat >= np.minimum(limit, _LIGHT))
    missed = misses(khat, stderr, unseen, unseen_stderr)
    heavy = ~(equal | (khat < limit)) | (~equal & lucky) | missed.much
    light = (common.khat < np.minimum(limit, _LIGHT)) & (ess >= np.minimum(_ENOUGH, num_samples / 2))
    doubted = missed.some | _doubted(missed.much, _judged(khat, unseen, unseen_stderr))
    sound = (equal | light) & np.isfinite(unseen + unseen_stderr) & ~doubted
    return np.where(heavy, UNRELIABLE, np.where(sound, RELIABLE, NOISY))


class Misses(NamedTuple):
    """Whether probes found p(x) where no sample can have been, in a datum or in the light of the others."""

    some: np.ndarray
    """More than a `reliable` interval bears (N,)."""
    much: np.ndarray
    """So much that the estimate is `unreliable` for that alone (N,)."""


def misses(khat: np.ndarray, stderr: np.ndarray, unseen: np.ndarray, unseen_stderr: np.ndarray) -> Misses:
    """What the probes of the data of a call say of each; arguments as of `verdict`."""
    shared, judged = np.zeros_like(khat), _judged(khat, unseen, unseen_stderr)
    shared[judged] = shared_misses(unseen[judged], unseen_stderr[judged], stderr[judged])
    much = _exceeds(unseen, stderr, _MUCH) | (shared > _MUCH)
    return Misses(misses_some(unseen, stderr) | (shared > _LITTLE), much)


def _doubted(much: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Whether a datum is one of a call of whose data most are missed, (N,)."""
    return judged & (judged.sum() >= _FEW and much[judged].mean() > _MOSTLY)


def _judged(khat: np.ndarray, unseen: np.ndarray, unseen_stderr: np.ndarray) -> np.ndarray:
    """Which data are company for others, (N,)."""
    return ((khat != -np.inf) | np.isinf(unseen_stderr)) & ~np.isnan(unseen)


def misses_some(unseen: np.ndarray, stderr: np.ndarray) -> np.ndarray:
    """Whether an estimate is off by more than a `reliable` interval bears, (N,)."""
    return _exceeds(unseen, stderr, _LITTLE)


def _exceeds(unseen: np.ndarray, stderr: np.ndarray, times: float) -> np.ndarray:
    """False where nobody looked."""
    return unseen > times * np.nan_to_num(stderr) + _NEGLIGIBLE


def shared_misses(unseen: np.ndarray, unseen_stderr: np.ndarray, stderr: np.ndarray) -> np.ndarray:
    """What probes found unseen of a datum, in standard errors of log p(x), in the light of the others (N,).

    What many probes tell of a datum is its own. Of many equal data most show nothing and a few, by a probe or two, show
    all of it: where chance decides, each has the mean of all such; those of the prior's draws among themselves.

    Args:
        unseen: Share of p(x) that the samples cannot have seen (N,).
        unseen_stderr: Its standard errors (N,).
        stderr: Standard errors of log p(x) (N,), in nats.
    """
    found = np.maximum(unseen - _NEGLIGIBLE, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        missed = np.where(found > 0, np.minimum(found / np.nan_to_num(stderr), _MOST), 0.0)
    by_chance, of_prior = found / _BY_CHANCE <= unseen_stderr, np.isinf(unseen_stderr)
    for company in (by_chance & ~of_prior, by_chance & of_prior):
        if company.sum() >= _FEW:
            missed[company] = missed[company].mean()
    return missed


class Shrunk(NamedTuple):
    """k-hats of data that are judged together."""

    khat: np.ndarray
    """Drawn towards their mean by the share of their spread that is noise (N,); infinite values stay."""
    chance: np.ndarray
    """How far chance may have moved what was drawn towards the mean: its noise, in that share (N,)."""


def shrunk(khat: np.ndarray, num_samples: np.ndarray) -> Shrunk:
    """k-hat of each datum in the light of the others (James and Stein).

    Those that look best among equals are those whose largest weights were not drawn: judged alone, they would be called
    reliable, and be wrong.
    """
    finite = np.isfinite(khat)
    value, chance = khat.copy(), np.zeros_like(khat)
    if finite.sum() < _FEW:
        return Shrunk(value, chance)
    own, k = khat[finite], num_samples[finite]
    spread = own.var(ddof=1)
    kept = max(0.0, 1 - np.square(khat_noise(own, k)).mean() / spread) if spread > 0 else 0.0
    value[finite] = own.mean() + kept * (own - own.mean())
    chance[finite] = (1 - kept) * khat_noise(value[finite], k)
    return Shrunk(value, chance)
