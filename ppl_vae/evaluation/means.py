"""What estimates of single data share: their mean over data, with its errors."""

from __future__ import annotations

import numpy as np

from ppl_vae.averages import mean_stderr, population_stderr

__all__ = ["MeanOverData"]


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
