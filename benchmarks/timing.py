"""How time is taken: sides alternate in one process, and a round gives one ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Case", "Limit", "Measured", "Spread", "alternate", "elapsed", "marginal", "spread"]


class Limit(NamedTuple):
    """The largest acceptable ratio of two sides."""

    side: str
    """Label of the side that is limited."""
    over: str
    """Label of the side it is compared with."""
    ratio: float
    """Largest ratio of their times, in the median."""


@dataclass(frozen=True)
class Case:
    """One piece of work, done by several sides."""

    name: str
    """Name on the command line."""
    title: str
    """What is measured, with its sizes."""
    unit: str
    """What one time is for, such as `step`."""
    sides: Mapping[str, Callable[[], float]]
    """Label -> function that does the work and returns its time in seconds; ours is the first."""
    reference: str
    """Label of the side that the ratios are to."""
    floor: str
    """Label of the side that does the unavoidable arithmetic and nothing else."""
    limits: Sequence[Limit] = ()
    """What has to hold."""


class Spread(NamedTuple):
    """Median and range over rounds."""

    median: float
    """Median."""
    low: float
    """Smallest."""
    high: float
    """Largest."""


@dataclass(frozen=True)
class Measured:
    """The times of a case."""

    case: Case
    """The case."""
    seconds: Mapping[str, tuple[float, ...]]
    """Label -> time of each round, in seconds."""

    def time(self, label: str) -> Spread:
        """Time of a side, in seconds."""
        return spread(self.seconds[label])

    def ratio(self, label: str, over: str | None = None) -> Spread:
        """Time of a side over that of another (the reference) in the same round: what slows both leaves it as it is."""
        return spread(
            a / b for a, b in zip(self.seconds[label], self.seconds[over or self.case.reference], strict=True)
        )

    def keeps(self, limit: Limit) -> bool:
        """Whether a limit holds in the median."""
        return self.ratio(limit.side, limit.over).median <= limit.ratio


def spread(values: Iterable[float]) -> Spread:
    """Return median and range."""
    found = sorted(values)
    return Spread(statistics.median(found), found[0], found[-1])


def alternate(case: Case, rounds: int) -> Measured:
    """Run the sides in turn, `rounds` times, in the opposite order every other time.

    A round before the first is thrown away: it pays for caches, allocators and thread pools.
    """
    seconds: dict[str, list[float]] = {label: [] for label in case.sides}
    for index in range(-1, rounds):
        labels = list(case.sides)
        for label in labels if index % 2 == 0 else labels[::-1]:
            taken = case.sides[label]()
            if index >= 0:
                seconds[label].append(taken)
    return Measured(case, {label: tuple(times) for label, times in seconds.items()})


def elapsed(work: Callable[[], object]) -> float:
    """Return the wall time of a piece of work, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def marginal(work: Callable[[int], object], few: int, many: int) -> float:
    """Return the time of one more step, (t(many) - t(few)) / (many - few), in seconds.

    Whatever a run costs once, such as checks, set-up and the first allocations, is in both times and cancels.
    """
    once = elapsed(lambda: work(few))
    return (elapsed(lambda: work(many)) - once) / (many - few)
