"""Intervals of estimates of log p(x): from their errors, their bias, and how far the weights lean to one side."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

__all__ = ["Interval", "interval_of_each", "interval_of_mean"]

_STRAIGHT = 1e-6  # a lean below it moves no digit that counts


class Interval(NamedTuple):
    """Ends of an interval, numbers or arrays (N,), in nats."""

    low: np.ndarray | float
    """Lower end."""
    high: np.ndarray | float
    """Upper end."""


def interval_of_each(
    value: np.ndarray, stderr: np.ndarray, skewness: np.ndarray, unseen: np.ndarray, level: float
) -> Interval:
    r"""Interval of log p(x) of each datum.

    The estimate is on average stderr^2 / 2 too low, and an estimate that has missed large weights has a small error
    too: a symmetric interval fails upwards. Hall's transformation g corrects Student's t for the skewness of the mean
    weight, here of its logarithm:

    .. math:: g(t) = t + a \frac{t^2}{3} + a^2 \frac{t^3}{27} + \frac{a}{6}, \quad
              \log p \in \log \hat p + \tfrac12 s^2 - s \, g^{-1}(\pm z), \quad a = \mathrm{skewness} - \tfrac32 s

    Args:
        value: Estimates (N,), in nats.
        stderr: Their standard errors s (N,).
        skewness: Skewness of the mean weight (N,).
        unseen: Share of p(x) that the samples cannot have seen (N,), added on the upper side; NaN where unknown.
        level: Coverage, such as 0.95.

    Reference:
        Hall (1992), On the Removal of Skewness by Transformation.

    Example:
        >>> zero = np.zeros(1)
        >>> low, high = interval_of_each(zero, zero + 0.1, zero + 0.15, zero, 0.95)
        >>> round(float(low[0]), 3), round(float(high[0]), 3)
        (-0.191, 0.201)
    """
    low, high = _interval(value + stderr**2 / 2, stderr, skewness - 1.5 * stderr, level)
    return Interval(low, high + np.log1p(np.nan_to_num(unseen)))


def interval_of_mean(
    value: np.ndarray, stderr: np.ndarray, skewness: np.ndarray, unseen: np.ndarray, level: float
) -> Interval:
    """Interval of the mean of log p(x) over these data: the same with the cumulants of a sum; arguments as there."""
    variance = np.square(stderr).sum()
    third = (stderr**3 * (skewness - 1.5 * stderr)).sum()
    lean = third / variance**1.5 if variance > 0 else np.zeros(())
    size = len(value)
    low, high = _interval(value.mean() + variance / 2 / size, np.sqrt(variance) / size, lean, level)
    return Interval(float(low), float(high + np.log1p(np.nan_to_num(unseen)).mean()))


def _interval(centre: np.ndarray, stderr: np.ndarray, lean: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    z = NormalDist().inv_cdf(0.5 + level / 2)
    return centre - stderr * _untransformed(z, lean), centre - stderr * _untransformed(-z, lean)


def _untransformed(x: float, lean: np.ndarray) -> np.ndarray:
    """t with g(t) = x."""
    a = np.where(np.abs(lean) < _STRAIGHT, _STRAIGHT, lean)
    return 3 / a * (np.cbrt(1 + a * (x - a / 6)) - 1)
