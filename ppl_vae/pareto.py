"""The largest of many importance weights: the Pareto shape of their tail, and the weights smoothed by it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = [
    "FEW",
    "Tails",
    "fit_tails",
    "has_no_error",
    "khat_noise",
    "khat_threshold",
    "largest_deviations",
    "tail_size",
]


FEW = 10
"""Samples from which no tail can be told: there is no threshold, and no verdict."""

_FINITE_VARIANCE = 0.5
_OF_ONE = 0.2  # of the squares of the furthest draws


class Tails(NamedTuple):
    """Generalised Pareto fits of the largest weights of each datum; arrays (N,)."""

    khat: np.ndarray
    """Shape; +inf where fewer than five distinct weights are in the tail."""
    change: np.ndarray
    """What smoothing adds to the sum of all weights, in units of the largest weight; 0 where k-hat is +inf."""


def tail_size(num_samples: int) -> int:
    """Number of largest weights in the Pareto fit: ceil(min(K / 5, 3 sqrt(K))) (Vehtari et al. 2024)."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def khat_threshold(num_samples: int) -> float:
    """Largest k-hat whose estimate can be trusted at K draws: min(1 - 1 / log10(K), 0.7) (Vehtari et al. 2024)."""
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > FEW else -math.inf


def khat_noise(khat: np.ndarray, num_samples: np.ndarray) -> np.ndarray:
    """Standard error (1 + k) / sqrt(M) of the shape of a tail of M draws (Smith 1987), (N,)."""
    size = np.array([tail_size(int(k)) for k in np.broadcast_to(num_samples, khat.shape)])
    return (1 + np.maximum(khat, 0.0)) / np.sqrt(size)


def fit_tails(largest: np.ndarray, num_samples: int | np.ndarray) -> Tails:
    """Fits the tails of K weights, of which the largest are given, and smooths them.

    The tail is the M weights above the (M + 1)-th largest; its shape is the empirical-Bayes estimate of Zhang and
    Stephens (2009) with the weak prior of Vehtari et al. (2024). Smoothing replaces the tail by M quantiles of the
    fitted distribution, none above the largest weight.

    Args:
        largest: At least the M + 1 largest log-weights of each datum in descending order (N, >= M + 1), in nats.
        num_samples: K, one for all data or one each (N,).

    Reference:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> log_weight = rng.exponential(0.5, size=(1, 100_000))  # weights of Pareto shape 0.5
        >>> float(fit_tails(-np.sort(-log_weight), 100_000).khat[0]).__round__(1)
        0.5
    """
    fits = [_fit(row, int(k)) for row, k in zip(largest, np.broadcast_to(num_samples, len(largest)), strict=True)]
    khat, change = np.array(fits, dtype=np.float64).reshape(-1, 2).T
    return Tails(khat, change)


def largest_deviations(draws: np.ndarray) -> np.ndarray:
    """How far K draws (K, N) lie from the median of their datum, and how far the furthest of them.

    Returns:
        The median distance, and as many of the largest as the tail of all draws may need, in descending order,
        (N, 1 + M + 1).
    """
    distance = np.abs(draws - np.median(draws, 0))
    return np.vstack([np.median(distance, 0), -np.sort(-distance, 0)[: tail_size(len(draws)) + 1]]).T


def has_no_error(deviations: np.ndarray, num_samples: int) -> bool:
    """Whether means of K draws have no standard error, since draws fall off so slowly that their variance is infinite.

    The variance is finite up to a Pareto shape of 1/2, the mean itself up to 1. The shape is that of the tail of all
    draws of all data together, and has to be above 1/2 by two of its own errors. Draws that only look so, as they are
    nearly equal but for a few, are told by their variance, which does not hang on any one of them: a fifth of the
    squares is a single draw's only where the variance grows with the number of draws.

    How often it is said of 16 draws of each of 100, 300, 1000 and 3000 data, measured:

    ==========================================  ====  ====  ====  ====
    shape 1, as log-weights under t of 2        0.75  0.95  0.98  0.94
    shape 2/3, as under t of 3                  0.07  0.17  0.41  0.52
    shape 0.44, as under t of 4.5               0.00  0.00  0.00  0.00
    normal, its square and fourth, exp of it    0.00  0.00  0.00  0.00
    (x - cos z)^2 of angles z, x of each datum  0.00  0.00  0.00  0.00
    exp of twice a normal                       0.09  0.14  0.14  0.12
    equal to a thousandth, 1 in 100 normal      0.87  0.10  0.00  0.00
    equal to a thousandth, 1 in 30 normal       0.07  0.00  0.00  0.00
    ==========================================  ====  ====  ====  ====

    Of few data, and near a shape of 1/2, an error that is finite is therefore no proof that there is one; nor
    is one that is not a proof that there is none, where nearly all draws are equal, as under the best q of a datum, and
    few are far from them, as at a rare value of a discrete latent.

    Args:
        deviations: Those of `largest_deviations`.
        num_samples: K.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> normal, cauchy = rng.normal(size=(100, 20)), rng.standard_cauchy((100, 20))
        >>> [has_no_error(largest_deviations(draws), 100) for draws in (normal, cauchy)]
        [False, True]
    """
    vary = _comparable(deviations)
    total = num_samples * len(vary)
    tail = -np.sort(-vary.ravel())[: tail_size(total) + 1]
    if len(np.unique(tail)) <= FEW:
        return False
    khat = fit_tails(np.log(tail[None]), total).khat
    is_heavy = bool((khat - 2 * khat_noise(khat, np.array([total])) > _FINITE_VARIANCE).all())
    return is_heavy and bool(tail[0] ** 2 > _OF_ONE * np.square(vary).sum())


def _comparable(deviations: np.ndarray) -> np.ndarray:
    """The furthest draws of the data that vary, in units of the median distance, that of most data where it is less.

    Draws of a datum that hardly moves, as where a function of them has its minimum, would look far away in its own.
    """
    typical, furthest = deviations[:, 0], deviations[:, 1:]
    varies = np.isfinite(deviations).all(1) & (typical > 0)
    if not varies.any():
        return furthest[:0]
    return furthest[varies] / np.maximum(typical, np.median(typical[varies]))[varies, None]


def _fit(largest: np.ndarray, num_samples: int) -> tuple[float, float]:
    size = tail_size(num_samples)
    if len(largest) < size + 1 or largest[0] == -np.inf:
        return np.inf, 0.0
    log_weight = largest[size::-1].astype(np.float64) - largest[0]
    log_cutoff = max(log_weight[0], math.log(np.finfo(float).tiny))
    cutoff = math.exp(log_cutoff)
    tail = np.exp(log_weight[log_weight > log_cutoff]) - cutoff
    if len(tail) <= 4:
        return np.inf, 0.0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        shape, scale = _fit_generalized_pareto(tail)
        smoothed = np.minimum(_quantiles(len(tail), shape, scale) + cutoff, 1.0)
    if np.isnan(shape):  # a tail too extreme for the fit
        return np.inf, 0.0
    return shape, float(smoothed.sum() - (tail + cutoff).sum())


def _quantiles(size: int, shape: float, scale: float) -> np.ndarray:
    """Quantiles of a generalised Pareto distribution at (i - 1/2) / M."""
    log_above = np.log1p(-(np.arange(size) + 0.5) / size)
    return scale * (np.expm1(-shape * log_above) / shape if abs(shape) > np.finfo(float).eps else -log_above)


def _fit_generalized_pareto(tail: np.ndarray) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto distribution fitted to `tail`, ascending and positive."""
    n = len(tail)
    grid = 30 + int(math.sqrt(n))
    quartile = tail[int(n / 4 + 0.5) - 1]
    b = (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile) + 1 / tail[-1]
    shape = np.log1p(-b[:, None] * tail).mean(axis=1)
    profile = n * (np.log(-(b / shape)) - shape - 1)
    posterior = 1 / np.exp(profile - profile[:, None]).sum(axis=1)
    kept = posterior >= 10 * np.finfo(float).eps
    b_mean = (b[kept] * posterior[kept]).sum() / posterior[kept].sum()
    shape_mean = float(np.log1p(-b_mean * tail).mean())
    return (n * shape_mean + 5.0) / (n + 10.0), -shape_mean / float(b_mean)
