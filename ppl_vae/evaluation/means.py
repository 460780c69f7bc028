"""What estimates of single data share: their mean over data, with its errors."""

from __future__ import annotations

import math

import numpy as np

from ppl_vae.averages import mean_stderr, population_stderr
from ppl_vae.errors import EstimateError

__all__ = ["MeanOverData", "bits_per_dimension"]


class MeanOverData:
    """Mean and errors of what has a `value` and a `stderr` for each datum."""

    value: np.ndarray
    """Estimates (N,), in nats."""
    stderr: np.ndarray
    """Their Monte Carlo standard errors (N,)."""

    @property
    def mean(self) -> float:
        """Mean over data, in nats per datum."""
        return float(self.value.mean())

    @property
    def mean_stderr(self) -> float:
        """Monte Carlo standard error of `mean` on these data, in nats per datum."""
        return mean_stderr(self.stderr)

    @property
    def population_stderr(self) -> float:
        """Standard error of `mean` as an estimate for new data: the spread over data, Monte Carlo error included."""
        return population_stderr(self.value)


def bits_per_dimension(mean: float, num_dimensions: int) -> float:
    """-mean / (D log 2).

    Raises:
        EstimateError: D is 0: masks leave more numbers of some data than of others.
    """
    if not num_dimensions:
        raise EstimateError(
            "bits per dimension: expected as many observed numbers of every datum, found masks that leave more of some "
            "than of others; give num_dimensions"
        )
    return -mean / (num_dimensions * math.log(2))
