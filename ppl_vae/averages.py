"""Standard errors of a mean over data."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["mean_stderr", "population_stderr"]


def mean_stderr(stderr: np.ndarray) -> float:
    """Monte Carlo standard error of the mean of N independent estimates on these data.

    Example:
        >>> mean_stderr(np.array([3.0, 4.0]))
        2.5
    """
    return float(np.sqrt(np.square(stderr).sum()) / len(stderr))


def population_stderr(value: np.ndarray) -> float:
    """Standard error of a mean as an estimate for new data: the spread over N data; NaN where N = 1.

    Example:
        >>> population_stderr(np.array([0.0, 2.0]))
        1.0
    """
    return float(value.std(ddof=1) / math.sqrt(len(value))) if len(value) > 1 else math.nan
