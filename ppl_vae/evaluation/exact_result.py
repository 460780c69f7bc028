"""log p(x) itself, in the form of an estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ppl_vae.arrays import real_array
from ppl_vae.errors import DataError
from ppl_vae.evaluation.intervals import Interval
from ppl_vae.evaluation.means import MeanLogLikelihood
from ppl_vae.options import probability

__all__ = ["ExactLogLikelihood"]


@dataclass(frozen=True, eq=False)
class ExactLogLikelihood(MeanLogLikelihood):
    """log p(x) of each datum without an error; every array has shape (N,), every number is in nats."""

    value: np.ndarray
    """log p(x)."""
    stderr: np.ndarray
    """Zero."""
    num_dimensions: int
    """D, how many numbers of a datum the model observes."""
    seconds: float
    """Wall time."""

    @classmethod
    def of(cls, log_prob: Any, num_dimensions: int, seconds: float = 0.0) -> ExactLogLikelihood:
        """What a model says of data itself, to be compared with estimates of the same data.

        Args:
            log_prob: log p(x) of each datum (N,), a tensor or an array, such as `GMM.log_prob(x)` or `log_evidence`.
            num_dimensions: D, how many numbers of a datum the model observes.
            seconds: Wall time.

        Raises:
            DataError: There is not one number for each datum, or one is NaN or plus infinity.

        Example:
            >>> import torch
            >>> import ppl_vae as pv
            >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
            >>> x = ppca.sample(3)
            >>> exact = pv.ExactLogLikelihood.of(ppca.log_prob(x), num_dimensions=2)
            >>> ll = pv.log_likelihood(ppca, x, num_samples=20, progress=False)
            >>> pv.Comparison({"itself": exact, "estimated": ll}, rounding=1e-6).ranks
            {'itself': (1, 2), 'estimated': (1, 2)}
        """
        value = real_array("log_prob", log_prob).copy()
        if value.ndim != 1 or not value.size or not (value < np.inf).all():
            raise DataError(f"log_prob: expected log p(x) of each datum, (N,), found shape {value.shape}, NaN or +inf")
        return cls(value, np.zeros_like(value), num_dimensions, seconds)

    @property
    def trusted(self) -> np.ndarray:
        """True for every datum."""
        return np.ones(self.value.shape, dtype=bool)

    @property
    def exact(self) -> np.ndarray:
        """True for every datum."""
        return self.trusted

    @property
    def is_exact(self) -> bool:
        """True."""
        return True

    def interval(self, level: float = 0.95) -> Interval:
        """The mean, and nothing around it, at any level."""
        probability("level", level)
        return Interval(self.mean, self.mean)

    def intervals(self, level: float = 0.95) -> Interval:
        """log p(x) of each datum, and nothing around it, (N,) and (N,)."""
        probability("level", level)
        return Interval(self.value, self.value)

    def __str__(self) -> str:
        return f"{self._mean_in_words()} ({len(self.value)} data)"
