"""What an importance-sampled evaluation says of each datum, and how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppl_vae.errors import EstimateError
from ppl_vae.evaluation.edges import REASON
from ppl_vae.evaluation.intervals import Interval, interval_of_each, interval_of_mean
from ppl_vae.evaluation.means import MeanLogLikelihood
from ppl_vae.evaluation.trust import is_too_coarse, rounding_in_words, trust
from ppl_vae.evaluation.verdict import NOISY, RELIABLE, UNRELIABLE
from ppl_vae.pareto import FEW, khat_threshold

__all__ = ["LogLikelihood"]


@dataclass(frozen=True, eq=False)
class LogLikelihood(MeanLogLikelihood):
    """Importance-sampled estimate of log p(x) for each datum; every array has shape (N,), every number is in nats."""

    value: np.ndarray
    """log 1/K sum_k p(x, z_k) / q(z_k given x).

    Without latents, and where all are discrete with no more than K joint values: log p(x), summed, its error 0, or
    rounding where that is above 1e-3, and -inf where the model excludes the datum; but for data where the sum is NaN or
    plus infinity, as a density is at a value that was not drawn. `exact` tells.
    """
    stderr: np.ndarray
    """Monte Carlo standard error of `value` (delta method); see `trusted`."""
    ess: np.ndarray
    """Effective number of the K samples; 0 where all have weight zero, which only exact values allow."""
    khat: np.ndarray
    """Pareto k-hat of the weights: -inf for equal weights (a perfect guide) and where `value` is exact, +inf where it
    cannot be told, as where all latents are discrete and have one value in all draws, or where rounding of a nat and
    more hides how weights differ; at most 0 where a hundred and more lie within a tenth, or ten are the largest."""
    elbo: np.ndarray
    """Mean of the log-weights: the ELBO of each datum, a lower bound on log p(x)."""
    zero_weights: np.ndarray
    """How many samples fell outside the model's support; they count in K with weight zero."""
    skewness: np.ndarray
    """Skewness of the mean weight; `interval` leans by it."""
    smoothed: np.ndarray
    """Estimate of the Pareto-smoothed weights: less noise for a little bias; NaN where k-hat is above its threshold."""
    unseen: np.ndarray
    """Share of p(x) where no sample can have been, by probes spread wider than the guide; NaN where not probed, 0 where
    `value` is exact.

    There a single sample would count for more than a tenth of all K, or for two of equal ones. A share of 0.01 is 0.01
    nats that the estimate is too low by, about. A mode of its own, far away, is not found.
    """
    unseen_stderr: np.ndarray
    """Standard error of `unseen` (N,), over probes; infinite where the guide could not be spread and others looked,
    draws of the prior, and of the guide with discrete numbers put anywhere; and where all weights are equal though the
    guide is not perfect by what probes find. That nothing is found makes no datum `reliable` there."""
    exact: np.ndarray
    """Whether `value` is log p(x) itself: without latents, and where it was summed, but for rounding above 1e-3; as the
    distributions say it: those of torch give no `probs` of 0 a log p below -16 (float32) or -36."""
    num_drawn: np.ndarray
    """Samples in the estimate of each datum, `num_samples` unless a target was given."""
    rounding: np.ndarray
    """The part of `stderr` that is rounding (N,), in nats: of numbers as large as log p(x), and of terms that cancel
    within log-densities, as those of large counts, by a look in double precision; 0 below 1e-4."""
    num_samples: int
    """K; with a target, the most that a datum may have."""
    num_pilot: np.ndarray
    """Further samples of each datum (N,), which decided how many it needs, and are in no estimate."""
    at_edge: np.ndarray
    """Share of the estimate (N,) that rests on samples which round to the edge of a latent's support, as a Beta of
    small parameters rounds to 1; all of it where samples are closer together than numbers of their type. `rounded` says
    where it is too much."""
    num_at_edge: np.ndarray
    """How many samples of each datum do (N,)."""
    target_stderr: float | None
    """Standard error that was asked for, in nats; None where K samples were."""
    num_dimensions: int
    """D, how many numbers of a datum the model observes, masked ones left out; 0 where that differs among data."""
    seconds: float
    """Wall time."""
    posterior: Mapping[str, np.ndarray]
    """Latent values resampled by their weights, name -> (draws, N, *event): approximate draws of p(z given x).

    Resampled with replacement: values repeat unless the ESS is much larger than the number of draws. A datum of
    probability 0 has no posterior: those of it are draws of the guide.
    """
    posterior_log_lik: np.ndarray
    """log p(x given z) of those draws, (draws, N)."""
    signature: np.ndarray | None = None
    """A number of each datum (N,) by which `escalate` knows it again; None in results of before."""

    @property
    def verdict(self) -> np.ndarray:
        """`reliable`, `noisy` or `unreliable`, for each datum: `ppl_vae.evaluation.verdict` says by what rule.

        It draws k-hat of a datum towards those of the other data: ask of all data together, not of one at a time.
        """
        return trust(vars(self), self.num_drawn).verdict

    @property
    def rounded(self) -> np.ndarray:
        """Whether samples at the edge of a latent's support may have moved the estimate, to either side, (N,).

        Where all weights are equal they have not. Where a datum has few by chance, its equals may have more of them: as
        for the verdict, ask of all data together. Other unreliable estimates are rather too low; these may be too high.
        """
        return trust(vars(self), self.num_drawn).rounded

    @property
    def too_coarse(self) -> np.ndarray:
        """Whether rounding, which may lean to one side for all data, is more of the error than an interval bears."""
        return is_too_coarse(self.rounding, self.stderr)

    @property
    def any_rounded(self) -> bool:
        """Whether a datum is `rounded`."""
        return bool(self.rounded.any())

    @property
    def trusted(self) -> np.ndarray:
        """Whether the verdict on a datum is not `unreliable`.

        The weights of a datum know only of what was drawn: samples that all missed a part of the posterior look good.
        `unseen` finds such a part where it borders on what was drawn.
        """
        return self.verdict != UNRELIABLE

    def interval(self, level: float = 0.95) -> Interval:
        """Interval of the mean of log p(x) over these data, in nats per datum.

        It covers where all data are reliable; noisy ones may make it too narrow. One that is unreliable may be too low
        by any amount, and the mean with it: the upper end is then infinite. `trusted` says which data to do better.
        Both ends are infinite where a datum is `rounded`, or has no error, as of one sample.
        """
        parts = (self.value, self.stderr, self.skewness, self.unseen)
        return self._borne(interval_of_mean(*parts, level, rounding=self.rounding))

    def intervals(self, level: float = 0.95) -> Interval:
        """Interval of log p(x) of each datum, (N,) and (N,), in nats: it covers where the verdict is `reliable`."""
        return interval_of_each(self.value, self.stderr, self.skewness, self.unseen, level, rounding=self.rounding)

    @property
    def is_exact(self) -> bool:
        """Whether every value is log p(x) itself, so that the mean has no error."""
        return bool(self.exact.all())

    def to_arviz(self) -> Any:
        """The result for ArviZ: an `InferenceData` under arviz 0.x, a `DataTree` under 1.x.

        Groups: `posterior` (latents, dimensions chain, draw, datum), `log_likelihood` (log p(x given z) of those
        draws) and `constant_data` (value, stderr, ess, khat per datum). A latent whose name is taken there, such as
        "x", gets underscores until it is free.
        """
        if not self.posterior:
            raise EstimateError("to_arviz needs posterior draws, found none: evaluate with num_draws of at least 1")
        from ppl_vae.evaluation.arviz_export import to_arviz

        return to_arviz(self)

    def __str__(self) -> str:
        counted = self.num_drawn + self.num_pilot
        drawn = (
            f"K = {self.num_samples}" if (counted == self.num_samples).all() else f"{counted.mean():.0f} samples each"
        )
        text = f"{self._mean_in_words()} ({len(self.value)} data, {drawn}, median ESS {np.median(self.ess):.0f})"
        if zeros := int(self.zero_weights.sum()):
            text += f"; {zeros} samples fell outside the model's support and count as zero"
        if self.target_stderr is not None and (missed := int((self.stderr > self.target_stderr).sum())):
            text += f"; {missed} have a standard error above the {self.target_stderr:g} asked for"
        text += self._verdict_in_words()
        text += rounding_in_words(self.rounding, self.stderr, self.verdict)
        return text + (f"; of {int(self.rounded.sum())} data {REASON}" if self.any_rounded else "")

    def _verdict_in_words(self) -> str:
        found = self.verdict
        noisy, doubtful = int((found == NOISY).sum()), int((found == UNRELIABLE).sum())
        if doubtful and self.num_samples <= FEW:
            return "; too few samples to tell how far to trust it"
        text = (
            f"; {int((found == RELIABLE).sum())} reliable, {noisy} noisy, {doubtful} unreliable"
            if noisy or doubtful
            else ""
        )
        if (~self.trusted & ~self.rounded).any():
            text += (
                f"; the weights of the unreliable, or of their equals, have k-hat above {self._limit_in_words()}, or "
                "miss much of p(x): do not trust their error nor that of the mean, the estimate is too low rather than "
                "too high; take more samples, a better guide, or escalate"
            )
        return text

    def _limit_in_words(self) -> str:
        """Thresholds of k-hat of the data that are unreliable."""
        limits = [f"{khat_threshold(int(k)):.2f}" for k in np.unique(self.num_drawn[~self.trusted])]
        return limits[0] if limits[0] == limits[-1] else f"{limits[0]} to {limits[-1]}"
