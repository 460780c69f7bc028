"""Intervals of estimates of log p(x): from their errors, their bias, and how far the weights lean to one side."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ppl_vae.options import probability

__all__ = ["Interval", "interval_of_each", "interval_of_mean", "of_known_errors", "two_sided"]

_STRAIGHT = 1e-6  # a lean below it moves no digit that counts


class Interval(NamedTuple):
    """Ends of an interval, numbers or arrays (N,), in nats."""

    low: np.ndarray | float
    """Lower end."""
    high: np.ndarray | float
    """Upper end."""


def two_sided(level: float, degrees: float = math.inf) -> float:
    """How many standard errors to either side make an interval of this level, by Student's t.

    Args:
        level: Coverage, such as 0.95.
        degrees: Degrees of freedom; infinite for a normal distribution.

    Raises:
        ValueError: The level is no probability between 0 and 1.

    Example:
        >>> round(two_sided(0.95), 2), round(two_sided(0.95, degrees=15), 2)
        (1.96, 2.13)
    """
    probability("level", level)
    if math.isinf(degrees):
        return NormalDist().inv_cdf(0.5 + level / 2)
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, degrees))


def of_known_errors(found: Interval, stderr: np.ndarray) -> Interval:
    """An interval of each datum (N,), without ends where its error is not known, as of one sample.

    Example:
        >>> low, high = of_known_errors(Interval(np.zeros(2), np.ones(2)), np.array([0.1, np.nan]))
        >>> low.tolist(), high.tolist()
        ([0.0, -inf], [1.0, inf])
    """
    unknown = np.isnan(stderr)
    return Interval(np.where(unknown, -np.inf, found.low), np.where(unknown, np.inf, found.high))


def interval_of_each(
    value: np.ndarray, stderr: np.ndarray, skewness: np.ndarray, unseen: np.ndarray, level: float
) -> Interval:
    r"""Interval of log p(x) of each datum.

    An estimate that has missed large weights has a small error too, so that a symmetric interval fails upwards. Hall's
    transformation g corrects Student's t for the skewness a of the mean weight:

    .. math:: g(t) = t + a \frac{t^2}{3} + a^2 \frac{t^3}{27} + \frac{a}{6}, \quad
              \log p \in \log \hat p + \log [1 - s \, g^{-1}(\pm z)]

    Args:
        value: Estimates (N,), in nats.
        stderr: Their standard errors s (N,); NaN where unknown, as of one sample: both ends are then infinite.
        skewness: Skewness a of the mean weight (N,).
        unseen: Share of p(x) that the samples cannot have seen (N,), added on the upper side; NaN where unknown.
        level: Coverage, such as 0.95.

    Raises:
        ValueError: The level is no probability between 0 and 1.

    Reference:
        Hall (1992), On the Removal of Skewness by Transformation.

    Example:
        >>> zero = np.zeros(1)
        >>> low, high = interval_of_each(zero, zero + 0.1, zero + 0.3, zero, 0.95)
        >>> round(float(low[0]), 3), round(float(high[0]), 3)
        (-0.178, 0.235)
    """
    z = two_sided(level)
    with np.errstate(divide="ignore"):
        low = value + np.log(np.maximum(1 - stderr * _untransformed(z, skewness), 0.0))
        high = value + np.log(1 - stderr * _untransformed(-z, skewness))
    return of_known_errors(Interval(low, high + np.log1p(np.nan_to_num(unseen))), stderr)


def interval_of_mean(
    value: np.ndarray,
    stderr: np.ndarray,
    skewness: np.ndarray,
    unseen: np.ndarray,
    level: float,
    degrees: np.ndarray | float = np.inf,
) -> Interval:
    r"""Interval of the mean of log p(x) over these data, each argument (N,) as for `interval_of_each`.

    The sum of logarithms is on average sum s^2 / 2 too low, which is added; t has the skewness of the sum. Errors that
    come of few chains have few degrees of freedom n each, and together, after Satterthwaite,

    .. math:: \nu = \frac{(\sum s^2)^2}{\sum s^4 / n}

    Args:
        value: Estimates.
        stderr: Their standard errors s; both ends are infinite where one is NaN.
        skewness: Skewness of the mean weight; 1.5 s where it is not known, which leans to no side.
        unseen: Share that was missed.
        level: Coverage.
        degrees: Degrees of freedom n of each error, one for all or (N,).

    Reference:
        Satterthwaite (1946), An Approximate Distribution of Estimates of Variance Components.
    """
    size, variance = len(value), np.square(stderr)
    total, parts = variance.sum(), np.square(variance) / degrees
    if np.isnan(total):
        two_sided(level)
        return Interval(-math.inf, math.inf)
    z = two_sided(level, total**2 / parts.sum() if parts.any() else math.inf)
    # The logarithm takes 3 s from the skewness of a mean, of which its own error makes up for a half.
    third = (stderr**3 * (skewness - 1.5 * stderr)).sum()
    lean = third / total**1.5 if total > 0 else np.zeros(())
    centre, error = value.mean() + total / 2 / size, np.sqrt(total) / size
    high = centre - error * _untransformed(-z, lean) + np.log1p(np.nan_to_num(unseen)).mean()
    return Interval(float(centre - error * _untransformed(z, lean)), float(high))


def _untransformed(x: float, lean: np.ndarray) -> np.ndarray:
    """t with g(t) = x."""
    a = np.where(np.abs(lean) < _STRAIGHT, _STRAIGHT, lean)
    return 3 / a * (np.cbrt(1 + a * (x - a / 6)) - 1)
