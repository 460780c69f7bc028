"""An estimate of log p(x) against the exact answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ppl_vae.arrays import real_array
from ppl_vae.averages import above, mean_stderr
from ppl_vae.errors import DataError
from ppl_vae.evaluation.exact_result import ExactLogLikelihood
from ppl_vae.evaluation.intervals import Interval
from ppl_vae.evaluation.means import MeanLogLikelihood
from ppl_vae.evaluation.ranking import Estimate

__all__ = ["Agreement", "agreement"]

_TOLERANCE = 1e-4  # of quadrature, and of float32
_LEVEL = 0.95


class Bounded(Estimate, Protocol):
    """An estimate with an interval of each datum."""

    def intervals(self, level: float = _LEVEL) -> Interval:
        """Intervals of log p(x), (N,) and (N,), in nats."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far an estimate is from the exact log p(x); arrays (N,), in nats."""

    error: np.ndarray
    """Estimate - log p(x)."""
    stderr: np.ndarray
    """Monte Carlo standard error of the estimate."""
    trusted: np.ndarray
    """Whether estimate and error said that they can be trusted."""
    held: np.ndarray
    """Whether the estimate's own 95 % interval of the datum holds log p(x); it is wider by 1e-4, to which quadrature is
    exact."""

    @property
    def mean_error(self) -> float:
        """Mean of `error`, in nats per datum; of an importance-sampled estimate rather negative."""
        return float(self.error.mean())

    @property
    def mean_stderr(self) -> float:
        """Monte Carlo standard error of `mean_error`."""
        return mean_stderr(self.stderr)

    @property
    def coverage(self) -> float:
        """Share of the trusted data whose interval holds the truth; NaN if none is trusted."""
        return float(self.held[self.trusted].mean()) if self.trusted.any() else float("nan")

    def __str__(self) -> str:
        text = (
            f"against the exact log p(x): off by {self.mean_error:+.4f} ± {self.mean_stderr:.4f} nats per datum, by "
            f"{np.abs(self.error).max():.3f} at most"
        )
        if not self.trusted.any():
            return f"{text}; no datum is trusted"
        return f"{text}; 95 % intervals hold it for {self.coverage:.1%} of the {int(self.trusted.sum()):,} trusted data"


def agreement(estimate: Bounded, exact: np.ndarray | ExactLogLikelihood) -> Agreement:
    """Sets an estimate against the exact log p(x) of the same data, such as that of `log_evidence`.

    Args:
        estimate: A `LogLikelihood`, an `AnnealedLogLikelihood`, or what else has value, stderr, trusted and intervals.
        exact: log p(x) of each datum (N,), in nats, or an `ExactLogLikelihood`.

    Raises:
        DataError: They are of different numbers of data, or `exact` is an estimate.

    Example:
        >>> import torch
        >>> import ppl_vae as pv
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> x = ppca.sample(3)
        >>> ll = pv.log_likelihood(ppca, x, num_samples=20, progress=False)
        >>> agreement(ll, pv.log_evidence(ppca, x, progress=False)).coverage
        1.0
    """
    exact = _values(exact)
    if exact.shape != estimate.value.shape:
        raise DataError(f"exact: expected log p(x) of each datum, {estimate.value.shape}, found shape {exact.shape}")
    low, high = estimate.intervals(_LEVEL)
    held = (low - _TOLERANCE <= exact) & (exact <= high + _TOLERANCE)
    return Agreement(above(estimate.value, exact), np.asarray(estimate.stderr), np.asarray(estimate.trusted), held)


def _values(exact: Any) -> np.ndarray:
    if isinstance(exact, MeanLogLikelihood) and not isinstance(exact, ExactLogLikelihood):
        raise DataError(
            "exact: expected log p(x) of each datum, an array such as that of log_evidence, or an ExactLogLikelihood, "
            f"found {type(exact).__name__}, an estimate"
        )
    return real_array("exact", exact.value if isinstance(exact, ExactLogLikelihood) else exact)
