"""Differences with their standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Mean", "mean", "paired"]


class Mean(NamedTuple):
    """A mean and its standard error."""

    mean: float
    """The mean."""
    stderr: float
    """Its standard error; NaN for one value."""


def mean(values: Sequence[float] | np.ndarray) -> Mean:
    """Mean of independent values, such as one for each seed."""
    found = np.asarray(values, dtype=float)
    return Mean(float(found.mean()), float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else float("nan"))


def paired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Mean:
    """Mean of a - b over pairs: two models on the same data, or on the same seeds."""
    return mean(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))
