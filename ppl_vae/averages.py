"""A mean over data: its standard errors, and what it says in bits."""

from __future__ import annotations

import math

import numpy as np

from ppl_vae.options import whole_number

__all__ = ["above", "bits_per_dimension", "mean_stderr", "population_stderr"]


def mean_stderr(stderr: np.ndarray) -> float:
    """Monte Carlo standard error of the mean of N independent estimates on these data.

    Example:
        >>> mean_stderr(np.array([3.0, 4.0]))
        2.5
    """
    return float(np.sqrt(np.square(stderr).sum()) / len(stderr))


def population_stderr(value: np.ndarray) -> float:
    """Standard error of a mean as an estimate for new data: the spread over N data; NaN of one, or of infinite ones.

    Example:
        >>> population_stderr(np.array([0.0, 2.0]))
        1.0
    """
    is_known = len(value) > 1 and bool(np.isfinite(value).all())
    return float(value.std(ddof=1) / math.sqrt(len(value))) if is_known else math.nan


def bits_per_dimension(log_p: float, num_dimensions: int) -> float:
    r"""-log_2 p(x) / D, the cost of a datum in bits for each of its numbers.

    Args:
        log_p: log p(x) or a bound on it, in nats per datum.
        num_dimensions: D, how many numbers of a datum the model observes.

    Raises:
        ValueError: D is no whole number of at least 1.

    Example:
        >>> bits_per_dimension(-64 * math.log(2), num_dimensions=64)
        1.0
    """
    whole_number("num_dimensions", num_dimensions, least=1)
    return -log_p / (num_dimensions * math.log(2))


def above(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b of each datum (N,); 0 where both are minus infinity."""
    same = a == b
    return np.where(same, 0.0, a) - np.where(same, 0.0, b)
