"""Differences of estimates on the same data, and the order they allow: ties are said to be ties."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple, Protocol

import numpy as np

from ppl_vae.averages import above, mean_stderr, population_stderr
from ppl_vae.errors import DataError
from ppl_vae.evaluation.ranks import holm
from ppl_vae.options import probability

__all__ = ["Comparison", "Difference", "Estimate"]


_MOST = 0.5  # with a larger share of untrusted data a mean has no place among means
_ROUNDINGS, _LARGEST_ROUNDING = 200.0, 1e-3  # as for weights that are equal
_MISSED = 0.5  # guides of scale 0.1 to 0.5 leave 3 to 27 % of the data trusted, those that are lowest


class Estimate(Protocol):
    """What is compared, such as a `LogLikelihood`: arrays (N,), in nats."""

    @property
    def value(self) -> np.ndarray:
        """Estimate of log p(x) of each datum."""

    @property
    def stderr(self) -> np.ndarray:
        """Its Monte Carlo standard error; 0 where it is exact."""

    @property
    def trusted(self) -> np.ndarray:
        """Whether both can be trusted; an untrusted estimate is rather too low."""

    @property
    def is_exact(self) -> bool:
        """Whether every value is log p(x) itself."""


class Difference(NamedTuple):
    """How far one pair is above another, in nats per datum."""

    better: str
    """The pair of the higher mean."""
    worse: str
    """The other."""
    mean: float
    """Mean over data of log p-hat(x) under `better` minus that under `worse`; at least 0, infinite where only the
    latter is minus infinity, NaN where both are."""
    stderr: float
    """Its standard error as an estimate for new data: the spread over data, Monte Carlo error included."""
    monte_carlo: float
    """Its Monte Carlo standard error on these data, as if the noise of the two were independent."""
    p_value: float
    """Adjusted for all comparisons (Holm): told apart if at most 1 - level. See `Comparison`."""


@dataclass(frozen=True, eq=False)
class Comparison:
    r"""Estimates of log p(x) of the same data under several pairs, and which of them can be told apart.

    Of two pairs a and b, a the higher in mean, a is said to be better if a one-sided t-test over data finds the mean of

    .. math:: d_n = \log \hat p_a(x_n) - [\log \hat p_b(x_n) + s_{b,n}^2 / 2]

    above 0 with an error of at most (1 - level) / 2, after Holm's correction for all pairs of pairs. s^2 / 2 is how
    much an estimate with standard error s is too low. Where the estimate of b is untrusted, log p_b(x_n) may be
    anything above it: a positive d_n then counts as 0. k-hat misses some such data, so that half as many of the largest
    d_n among the trusted count as 0 too. So lower bounds do not rank each other, and a bound ranks only above what is
    known well. A d_n below the rounding of the two estimates is 0, and what their `rounding` may add to all data is
    taken off the mean.

    A pair that gives a datum probability 0, exactly, is worse than one that gives none, whatever they say of the other
    data: its mean is minus infinity. Of two such pairs neither is the better one.

    Equal d_n tell nothing, however many there are: of two densities neither is higher everywhere, so that what is to be
    weighed against them has not been seen. A t-test is right in the limit of many data: of differences that are rare
    and large, as under models that are certain of what holds in 99 of 100 data, the level wants many that differ.

    The level holds where errors can be believed of estimates that are trusted. A guide that misses a mode of its own,
    far away, is not seen by k-hat nor by probes, and its pair may be ranked too low.

    Args:
        estimates: Name -> estimate, such as a `LogLikelihood`, all of the same N data in the same order.
        level: Probability, at least, that no order among those told is wrong, such as 0.95.
        rounding: Relative rounding of the estimates, that of the least precise pair.

    Raises:
        DataError: There are none, or of different numbers of data.

    Reference:
        Holm (1979), A Simple Sequentially Rejective Multiple Test Procedure; Al Mohamad, Goeman and van Zwet (2022),
        Simultaneous Confidence Intervals for Ranks With Application to Ranking Institutions.
    """

    estimates: Mapping[str, Estimate]
    """Name -> estimate, as given."""
    level: float = 0.95
    """Probability that all of the order told is right."""
    rounding: float = 2.0**-52
    """Relative rounding of the estimates."""

    def __post_init__(self) -> None:
        probability("level", self.level)
        if not isinstance(self.estimates, Mapping):
            raise DataError(f"estimates: expected name -> estimate, found {type(self.estimates).__name__}")
        sizes = {name: len(estimate.value) for name, estimate in self.estimates.items()}
        if not sizes or len(set(sizes.values())) > 1:
            raise DataError(f"estimates: expected some, all of the same data, found {sizes or 'none'}")

    @property
    def num_data(self) -> int:
        """N."""
        return len(next(iter(self.estimates.values())).value)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names, the highest mean first."""
        return tuple(sorted(self.estimates, key=lambda name: -self.estimates[name].value.mean()))

    @cached_property
    def exact(self) -> frozenset[str]:
        """Names of those whose estimates are log p(x) itself, so that they have no error."""
        return frozenset(name for name, estimate in self.estimates.items() if estimate.is_exact)

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """All pairs of pairs, in the order of `names`."""
        couples = list(combinations(self.names, 2))
        p_values = [_p_value(self.estimates[a], self.estimates[b], self.rounding) for a, b in couples]
        adjusted = holm(np.array(p_values)).tolist()
        return tuple(self._difference(a, b, p) for (a, b), p in zip(couples, adjusted, strict=True))

    @cached_property
    def ranks(self) -> dict[str, tuple[int, int]]:
        """Name -> best and worst rank that it may have; all of them hold together with probability `level`."""
        told = [d for d in self.differences if self.tells(d)]
        above = {name: sum(d.worse == name for d in told) for name in self.names}
        below = {name: sum(d.better == name for d in told) for name in self.names}
        return {name: (1 + above[name], len(self.names) - below[name]) for name in self.names}

    @cached_property
    def unplaced(self) -> tuple[str, ...]:
        """Names of those that have no place among the others, most of their data being untrusted."""
        return tuple(name for name in self.names if self.share_untrusted(name) > _MOST)

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """All names but `unplaced` in groups, the best first: each is known to be better than all of the next one."""
        told = {(d.better, d.worse) for d in self.differences if self.tells(d)}
        placed = [name for name in self.names if name not in self.unplaced]
        groups: list[tuple[str, ...]] = []
        start = 0
        for end in range(1, len(placed) + 1):
            if all((a, b) in told for a in placed[:end] for b in placed[end:]):
                groups.append(tuple(placed[start:end]))
                start = end
        return tuple(groups)

    def tells(self, difference: Difference) -> bool:
        """Whether `better` is known to be above `worse`."""
        return difference.p_value <= 1 - self.level

    def behind(self, name: str) -> Difference | None:
        """How far a pair is behind that of the highest mean; None for that one."""
        return next((d for d in self.differences if (d.better, d.worse) == (self.names[0], name)), None)

    def share_untrusted(self, name: str) -> float:
        """Share of the data whose estimate cannot be trusted."""
        return float((~self.estimates[name].trusted).mean())

    def to_arviz(self) -> Any:
        """The estimates for ArviZ, `InferenceData` under 0.x and `DataTree` under 1.x.

        Group `constant_data`: value, stderr, trusted and behind_best (model, datum).
        """
        from ppl_vae.evaluation.arviz_export import comparison_to_arviz

        return comparison_to_arviz(self)

    def __str__(self) -> str:
        from ppl_vae.evaluation.ranking_text import as_text

        return as_text(self)

    def _difference(self, better: str, worse: str, p_value: float) -> Difference:
        a, b = self.estimates[better], self.estimates[worse]
        mean, gain = float(a.value.mean()) - float(b.value.mean()), above(a.value, b.value)
        noise = mean_stderr(np.hypot(a.stderr, b.stderr))
        return Difference(
            better, worse, float(gain.mean()) if math.isfinite(mean) else mean, population_stderr(gain), noise, p_value
        )


def _credited(a: Estimate, b: Estimate, rounding: float) -> np.ndarray:
    """What a is above b for each datum, as far as both estimates bear it (N,): one that is rounded may be too high."""
    gain = above(a.value, b.value + np.square(np.nan_to_num(b.stderr)) / 2)
    gain = np.where(np.abs(gain) <= _rounded_by(a, b, rounding), 0.0, gain)
    num_missed = math.ceil(_MISSED * int((~b.trusted).sum()))
    largest_first = np.argsort(np.where(b.trusted, -gain, np.inf), kind="stable")
    doubted = ~b.trusted
    doubted[largest_first[:num_missed]] = True
    return np.where(doubted | getattr(a, "rounded", False), np.minimum(gain, 0.0), gain)


def _rounded_by(a: Estimate, b: Estimate, rounding: float) -> np.ndarray:
    """By how much two estimates that are equal may differ (N,)."""
    size = np.maximum(np.maximum(np.abs(a.value), np.abs(b.value)), 1.0)
    return np.minimum(_ROUNDINGS * rounding * size, _LARGEST_ROUNDING)


def _shared_rounding(a: Estimate, b: Estimate) -> float:
    """What rounding within log-densities may add to the mean difference: it may lean to one side for all data."""
    return float(np.mean(np.hypot(getattr(a, "rounding", 0.0), getattr(b, "rounding", 0.0))))


def _p_value(a: Estimate, b: Estimate, rounding: float) -> float:
    """Twice the one-sided p-value of a t-test for a positive mean of what a is above b; 1 where it cannot be told."""
    from scipy.stats import t

    gain = _credited(a, b, rounding)
    if np.isneginf(a.value).any():
        return 1.0
    if np.isposinf(gain).any():
        return 0.0
    stderr, mean = population_stderr(gain), float(gain.mean()) - _shared_rounding(a, b)
    if mean <= 0 or math.isnan(stderr) or np.ptp(gain) <= _rounded_by(a, b, rounding).max():
        return 1.0
    return float(min(1.0, 2 * t.sf(mean / stderr, len(gain) - 1)))
