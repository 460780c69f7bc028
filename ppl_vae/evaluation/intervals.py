"""Intervals of estimates of log p(x): from their errors, their bias, and how far the weights lean to one side."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple, overload

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


@overload
def two_sided(level: float, degrees: float = ...) -> float: ...
@overload
def two_sided(level: float, degrees: np.ndarray) -> np.ndarray: ...
def two_sided(level: float, degrees: np.ndarray | float = math.inf) -> np.ndarray | float:
    """How many standard errors to either side make an interval of this level, by Student's t.

    Args:
        level: Coverage, such as 0.95.
        degrees: Degrees of freedom, a number or an array; infinite for a normal distribution.

    Raises:
        ValueError: The level is no probability between 0 and 1.

    Example:
        >>> round(two_sided(0.95), 2), round(two_sided(0.95, degrees=15), 2)
        (1.96, 2.13)
    """
    probability("level", level)
    if np.isinf(degrees).all():
        return NormalDist().inv_cdf(0.5 + level / 2)
    from scipy.stats import t

    found = t.ppf(0.5 + level / 2, degrees)
    return found if found.ndim else float(found)


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
    value: np.ndarray,
    stderr: np.ndarray,
    skewness: np.ndarray,
    unseen: np.ndarray,
    level: float,
    degrees: np.ndarray | float = np.inf,
    rounding: np.ndarray | float = 0.0,
) -> Interval:
    r"""Interval of log p(x) of each datum.

    An estimate that has missed large weights has a small error too, so that a symmetric interval fails upwards. Hall's
    transformation g corrects Student's t for the skewness a of the mean weight:

    .. math:: g(t) = t + a \frac{t^2}{3} + a^2 \frac{t^3}{27} + \frac{a}{6}, \quad
              \log p \in \log \hat p + \log [1 - s \, g^{-1}(\pm z)]

    with quantiles z of Student's t where the error comes of few weights, and of a normal distribution otherwise.
    Rounding is of the logarithm, not of the mean weight: it widens the interval in quadrature.

    Args:
        value: Estimates (N,), in nats.
        stderr: Their standard errors s (N,); NaN where unknown, as of one sample: both ends are then infinite.
        skewness: Skewness a of the mean weight (N,).
        unseen: Share of p(x) that the samples cannot have seen (N,), added on the upper side; NaN where unknown.
        level: Coverage, such as 0.95.
        degrees: Degrees of freedom of each error, one for all or (N,): K - 1 of K chains.
        rounding: The part of `stderr` that is rounding (N,), in nats.

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
    z, sampled = two_sided(level, degrees), _sampled(stderr, rounding)
    with np.errstate(divide="ignore"):
        below = np.log(np.maximum(1 - sampled * _untransformed(z, skewness), 0.0))
        above = np.log(1 - sampled * _untransformed(-z, skewness))
    rounded = two_sided(level) * rounding
    low, high = value + below - _further(below, rounded), value + above + _further(above, rounded)
    return of_known_errors(Interval(low, high + np.log1p(np.nan_to_num(unseen))), stderr)


def interval_of_mean(
    value: np.ndarray,
    stderr: np.ndarray,
    skewness: np.ndarray,
    unseen: np.ndarray,
    level: float,
    degrees: np.ndarray | float = np.inf,
    rounding: np.ndarray | float = 0.0,
) -> Interval:
    r"""Interval of the mean of log p(x) over these data, each argument (N,) as for `interval_of_each`.

    The sum of logarithms is on average sum s^2 / 2 too low, which is added; t has the skewness of the sum. Errors that
    come of few chains have few degrees of freedom n each, and together, after Satterthwaite,

    .. math:: \nu = \frac{(\sum s^2)^2}{\sum s^4 / n}

    Rounding has no such bias, but may lean to the same side for all data: its mean widens the interval in quadrature.

    Args:
        value: Estimates.
        stderr: Their standard errors s; both ends are infinite where one is NaN.
        skewness: Skewness of the mean weight; 1.5 s where it is not known, which leans to no side.
        unseen: Share that was missed.
        level: Coverage.
        degrees: Degrees of freedom n of each error, one for all or (N,).
        rounding: The part of `stderr` that is rounding.

    Reference:
        Satterthwaite (1946), An Approximate Distribution of Estimates of Variance Components.
    """
    sampled = _sampled(stderr, rounding)
    size, variance = len(value), np.square(sampled)
    total, parts = variance.sum(), np.square(variance) / degrees
    if np.isnan(total):
        two_sided(level)
        return Interval(-math.inf, math.inf)
    z = two_sided(level, total**2 / parts.sum() if parts.any() else math.inf)
    # The logarithm takes 3 s from the skewness of a mean, of which its own error makes up for a half.
    third = (sampled**3 * (skewness - 1.5 * sampled)).sum()
    lean = third / total**1.5 if total > 0 else np.zeros(())
    centre, error = value.mean() + total / 2 / size, np.sqrt(total) / size
    below, above = (-error * _untransformed(side, lean) for side in (z, -z))
    rounded = two_sided(level) * np.mean(rounding)
    low, high = centre + below - _further(below, rounded), centre + above + _further(above, rounded)
    return Interval(float(low), float(high + np.log1p(np.nan_to_num(unseen)).mean()))


def _sampled(stderr: np.ndarray, rounding: np.ndarray | float) -> np.ndarray:
    """The part of standard errors that comes of sampling; NaN stays."""
    return np.sqrt(np.maximum(np.square(stderr) - np.square(rounding), 0.0))


def _further(distance: np.ndarray | np.floating, error: np.ndarray | np.floating | float) -> np.ndarray:
    """How much further away an end of an interval lies for a second error, independent of the first."""
    near = np.abs(np.where(np.isfinite(distance), distance, 0.0))
    return np.hypot(near, error) - near


def _untransformed(x: np.ndarray | float, lean: np.ndarray) -> np.ndarray:
    """t with g(t) = x."""
    a = np.where(np.abs(lean) < _STRAIGHT, _STRAIGHT, lean)
    return 3 / a * (np.cbrt(1 + a * (x - a / 6)) - 1)
