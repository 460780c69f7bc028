"""A line of the self-test: what was expected and found, how far apart they are, and how far they may be."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Row", "between", "equal", "estimated", "failed", "left_out", "stderr_of_mean"]

# Standard errors: one line in a million fails by chance.
_LIMIT = 5.0


class Row(NamedTuple):
    """One line; all numbers in nats."""

    what: str
    """What is tested."""
    expected: float
    """The exact answer; of many data, the mean."""
    found: float
    """What the library says."""
    stderr: float | None
    """Standard error of `found`; None where only rounding comes in."""
    error: float
    """How far `found` is off; of many data, the largest error."""
    allowed: float
    """How far it may be off."""
    note: str = ""
    """Why it failed, or was left out."""

    @property
    def verdict(self) -> str:
        """`pass`, `FAIL`, or `left out` where the machine cannot do it."""
        if math.isnan(self.allowed):
            return "left out"
        return "pass" if self.error <= self.allowed else "FAIL"


def equal(what: str, found: ArrayLike, expected: ArrayLike, tolerance: float) -> Row:
    """Numbers that agree in every datum, to `tolerance` times 1 or their size."""
    a, b = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    error = np.abs(a - b) / np.maximum(1.0, np.abs(b))
    largest = float(error.max()) if np.isfinite(error).all() else math.inf
    return Row(what, float(b.mean()), float(a.mean()), None, largest, tolerance)


def estimated(what: str, found: float, expected: float, stderr: float) -> Row:
    """An unbiased estimate with a standard error."""
    return Row(what, expected, found, stderr, _finite(abs(found - expected)), _LIMIT * stderr)


def between(what: str, found: float, low: float, high: float, stderr: float) -> Row:
    """An estimate whose exact value is known to lie between two numbers; the nearer one is shown as expected."""
    nearest = min(max(found, low), high)
    return Row(what, nearest, found, stderr, _finite(abs(found - nearest)), _LIMIT * stderr)


def failed(what: str, error: Exception) -> Row:
    """A test that ended in an error."""
    text = " ".join(str(error).split()) or "no message"
    return Row(what, math.nan, math.nan, None, math.inf, 0.0, f"{type(error).__name__}: {text}")


def left_out(what: str, why: str) -> Row:
    """A test of what this machine cannot do, and need not."""
    return Row(what, math.nan, math.nan, None, 0.0, math.nan, why)


def stderr_of_mean(values: np.ndarray) -> float:
    """Standard error of the mean of independent numbers, by their spread."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _finite(error: float) -> float:
    return error if math.isfinite(error) else math.inf
