"""What is known of data after those that could not be trusted were estimated anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ppl_vae.evaluation.intervals import Interval, interval_of_each, interval_of_mean
from ppl_vae.evaluation.means import MeanLogLikelihood
from ppl_vae.evaluation.trust import rounding_in_words
from ppl_vae.evaluation.verdict import NOISY, RELIABLE, UNRELIABLE

__all__ = ["METHODS", "EscalatedLogLikelihood", "Failure"]

METHODS = ("guide", "more samples", "refined proposal", "annealing")


class Failure(NamedTuple):
    """A method that does not serve some data."""

    method: str
    """Which one."""
    num_data: int
    """How many data."""
    row: int
    """The first of them."""
    reason: str
    """Why it does not serve that one."""

    def __str__(self) -> str:
        return f"{self.method}: not for {self.num_data} data, which stay as they were; row {self.row}: {self.reason}"


@dataclass(frozen=True, eq=False)
class EscalatedLogLikelihood(MeanLogLikelihood):
    """Estimate of log p(x) for each datum, the most trustworthy that was found; every array has shape (N,), in nats."""

    value: np.ndarray
    """Estimate of log p(x)."""
    stderr: np.ndarray
    """Its Monte Carlo standard error."""
    skewness: np.ndarray
    """Skewness of the mean weight; intervals lean by it."""
    unseen: np.ndarray
    """Share of p(x) where no sample can have been; NaN where not probed, as where chains were annealed."""
    rounding: np.ndarray
    """The part of `stderr` that is rounding, in nats."""
    exact: np.ndarray
    """Whether `value` is log p(x) itself."""
    rounded: np.ndarray
    """Whether `value` rests on samples that round to the edge of a latent's support, as `LogLikelihood.rounded`."""
    verdict: np.ndarray
    """`reliable`, `noisy` or `unreliable`; noisy at best where chains were annealed, or an earlier method of the datum
    had left more unseen than an interval bears, or rounding is much of the error."""
    method: np.ndarray
    """What gave the estimate: guide, more samples, refined proposal or annealing."""
    failures: tuple[Failure, ...]
    """Methods that gave no estimate of some data, which stayed as they were, and why."""
    num_chains: int
    """K of the annealed chains."""
    num_dimensions: int
    """D, how many numbers of a datum the model observes."""
    seconds: float
    """Wall time of the escalation."""

    @property
    def any_rounded(self) -> bool:
        """Whether a datum is `rounded`."""
        return bool(self.rounded.any())

    @property
    def trusted(self) -> np.ndarray:
        """Whether the verdict on a datum is not `unreliable`."""
        return self.verdict != UNRELIABLE

    @property
    def is_exact(self) -> bool:
        """Whether every value is log p(x) itself, so that the mean has no error."""
        return bool(self.exact.all())

    def interval(self, level: float = 0.95) -> Interval:
        """Interval of the mean of log p(x) over these data, in nats per datum.

        It covers where all data are reliable; its upper end is infinite where one is still unreliable. Errors of
        annealed chains have K - 1 degrees of freedom, as in `AnnealedLogLikelihood`. It does not know which data were
        lucky to need no further method (see `escalate`). Both ends are infinite where a datum is `rounded`, or has no
        error.
        """
        return self._borne(interval_of_mean(*self._estimates, level, self._degrees, self.rounding))

    def intervals(self, level: float = 0.95) -> Interval:
        """Interval of log p(x) of each datum, (N,) and (N,), in nats: it covers where the verdict is `reliable`.

        Where chains were annealed it is that of `AnnealedLogLikelihood`.
        """
        found = interval_of_each(*self._estimates, level, self._degrees, self.rounding)
        return found._replace(high=np.where(self._annealed & ~self.trusted, np.inf, found.high))

    @property
    def _estimates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.value, self.stderr, self.skewness, self.unseen

    @property
    def _degrees(self) -> np.ndarray:
        return np.where(self._annealed, max(1, self.num_chains - 1), np.inf)

    @property
    def _annealed(self) -> np.ndarray:
        return self.method == METHODS[-1]

    def counts(self) -> dict[str, dict[str, int]]:
        """How many data each method served, by verdict."""
        return {
            method: {
                word: int(((self.method == method) & (self.verdict == word)).sum())
                for word in (RELIABLE, NOISY, UNRELIABLE)
            }
            for method in METHODS
        }

    def __str__(self) -> str:
        counts = self.counts()
        moved = int((self.method != METHODS[0]).sum())
        left = int((self.verdict == UNRELIABLE).sum())
        lines = [
            f"{self._mean_in_words()} ({len(self.value)} data, {moved} of them escalated, {left} still unreliable)",
            f"{'method':<18}{RELIABLE:>10}{NOISY:>10}{UNRELIABLE:>12}",
            *(f"{m:<18}{n[RELIABLE]:>10}{n[NOISY]:>10}{n[UNRELIABLE]:>12}" for m, n in counts.items()),
            *(str(failure) for failure in self.failures),
        ]
        lines[0] += rounding_in_words(self.rounding, self.stderr, self.verdict)
        return "\n".join(lines)
