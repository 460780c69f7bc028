"""What estimates of single data share: their mean over data, its errors, and how far it can be trusted."""

from __future__ import annotations

import math

import numpy as np

from ppl_vae.averages import bits_per_dimension, mean_stderr, population_stderr
from ppl_vae.errors import EstimateError
from ppl_vae.evaluation.intervals import Interval
from ppl_vae.wording import in_words, is_lower_bound

__all__ = ["MeanLogLikelihood", "MeanOverData", "observed_bits"]


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


class MeanLogLikelihood(MeanOverData):
    """Mean of estimates of log p(x), some of which may be untrusted, and what it is called in words."""

    num_dimensions: int
    """D, how many numbers of a datum the model observes, masked ones left out; 0 where that differs among data."""

    @property
    def trusted(self) -> np.ndarray:
        """Whether value and error of each datum can be trusted, (N,); an untrusted one is rather too low."""
        raise NotImplementedError

    @property
    def is_exact(self) -> bool:
        """Whether every value is log p(x) itself, so that the mean has no error."""
        return False

    @property
    def any_rounded(self) -> bool:
        """Whether an estimate rests on samples that round to the edge of a support: it may then be too high as well."""
        return False

    @property
    def share_untrusted(self) -> float:
        """Share of the data whose estimate cannot be trusted, in [0, 1]."""
        return float((~self.trusted).mean())

    @property
    def is_lower_bound(self) -> bool:
        """Whether a datum is untrusted: `mean` is then rather too low, by more than its error tells."""
        return is_lower_bound(self.share_untrusted)

    def bits_per_dimension(self, num_dimensions: int | None = None) -> float:
        """-mean / (D log 2), with the D that the model observes unless another is given.

        Raises:
            EstimateError: None is given where masks leave more of some data than of others.
        """
        return observed_bits(self.mean, self.num_dimensions, num_dimensions)

    def _mean_in_words(self) -> str:
        """The mean with its error, or what stands in the place of one."""
        if excluded := int(np.isneginf(self.value).sum()):
            return f"log p(x) = -inf nats per datum: {excluded} of {len(self.value)} have probability 0, exactly"
        if self.is_exact:
            return f"log p(x) = {self.mean:.4f} nats per datum, exact"
        if self.any_rounded:
            return f"log p(x) near {self.mean:.2f} nats per datum"
        sign = "" if self.is_lower_bound else "= "
        return f"log p(x) {sign}{in_words(self.mean, self.mean_stderr, self.share_untrusted)} nats per datum"

    def _borne(self, found: Interval) -> Interval:
        """An interval of the mean as far as the verdicts on the data bear it."""
        if self.any_rounded:
            return Interval(-math.inf, math.inf)
        return found._replace(high=math.inf) if self.is_lower_bound else found


def observed_bits(mean: float, observed: int, given: int | None) -> float:
    """-mean / (D log 2), D as given, or as observed.

    Raises:
        EstimateError: Neither is known: masks leave more numbers of some data than of others.
    """
    if given is None and not observed:
        raise EstimateError(
            "bits per dimension: expected as many observed numbers of every datum, found masks that leave more of some "
            "than of others; give num_dimensions"
        )
    return bits_per_dimension(mean, observed if given is None else given)
