"""How cost is taken: sides alternate, and a round gives one ratio."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

__all__ = ["Case", "Limit", "Measured", "Spread", "Unavailable", "alternate", "elapsed", "marginal", "slope", "spread"]


class Unavailable(Exception):
    """Why a case, or a side of it, cannot be measured here."""


class Limit(NamedTuple):
    """The largest acceptable ratio of two sides, or the largest acceptable cost of one."""

    side: str
    """Label of the side that is limited."""
    over: str | None
    """Label of the side it is compared with; None limits its cost itself, in seconds or bytes."""
    at_most: float
    """Largest ratio or cost, in the median."""


@dataclass(frozen=True)
class Case:
    """One piece of work, done by several sides."""

    name: str
    """Name on the command line."""
    title: str
    """What is measured, with its sizes."""
    unit: str
    """What one cost is for, such as `step`."""
    sides: Mapping[str, Callable[[], float]]
    """Label -> function that does the work and returns its cost: seconds, or bytes. One that this machine cannot run
    raises `Unavailable`."""
    reference: str
    """Label of the side that the ratios are to."""
    floor: str | None = None
    """Label of the side that does the unavoidable part and nothing else, where there is one."""
    limits: Sequence[Limit] = ()
    """What has to hold."""
    sizes: Mapping[str, float] = field(default_factory=dict)
    """Label -> size of the problem, where the sides are one piece of work at several sizes."""
    quantity: str = "seconds"
    """What a cost is: "seconds" or "bytes"."""
    max_rounds: int | None = None
    """Largest number of rounds, for what takes minutes or hardly varies."""
    warm_up: bool = True
    """Whether a round before the first is thrown away: it pays for caches, allocators and thread pools."""


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
    """The costs of a case."""

    case: Case
    """The case."""
    costs: Mapping[str, tuple[float, ...]]
    """Label -> cost in each round, in seconds or bytes."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Label of a side that could not run -> why."""

    def cost(self, label: str) -> Spread:
        """Cost of a side."""
        return spread(self.costs[label])

    def ratio(self, label: str, over: str | None = None) -> Spread:
        """Cost of a side over that of another (the reference) in the same round: what slows both leaves it as it is."""
        return spread(a / b for a, b in zip(self.costs[label], self.costs[over or self.case.reference], strict=True))

    def found(self, limit: Limit) -> Spread | None:
        """Return what a limit is about; None where a side of it is missing."""
        if limit.side not in self.costs or (limit.over is not None and limit.over not in self.costs):
            return None
        return self.cost(limit.side) if limit.over is None else self.ratio(limit.side, limit.over)

    def keeps(self, limit: Limit) -> bool | None:
        """Whether a limit holds in the median; None where it cannot be said."""
        found = self.found(limit)
        return None if found is None else found.median <= limit.at_most

    def slope(self) -> Spread | None:
        """Exponent b of cost ~ size^b, one for each round.

        None where the sides are not sizes, or a run was so short that the noise of the clock made its cost negative.
        """
        sizes = [size for label, size in self.case.sizes.items() if label in self.costs]
        rounds = list(zip(*(self.costs[label] for label in self.case.sizes if label in self.costs), strict=True))
        if len(sizes) < 2 or min(map(min, rounds)) <= 0:
            return None
        return spread(slope(sizes, costs) for costs in rounds)


def spread(values: Iterable[float]) -> Spread:
    """Return median and range."""
    found = sorted(values)
    return Spread(statistics.median(found), found[0], found[-1])


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of log cost against log size, by least squares."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(c) for c in costs]).slope


def alternate(case: Case, rounds: int, warm_up: bool = True) -> Measured:
    """Run the sides in turn, `rounds` times, in the opposite order every other time; one that cannot run is left out.

    Args:
        case: The case.
        rounds: How often, unless the case wants fewer.
        warm_up: Whether a round before the first may be thrown away, where the case wants that.

    Raises:
        Unavailable: The side that the others are compared with cannot run.
    """
    costs: dict[str, list[float]] = {label: [] for label in case.sides}
    missing: dict[str, str] = {}
    for index in range(-1 if case.warm_up and warm_up else 0, min(rounds, case.max_rounds or rounds)):
        labels = list(costs)
        for label in labels if index % 2 == 0 else labels[::-1]:
            try:
                taken = case.sides[label]()
            except Unavailable as why:
                missing[label] = str(why)
                del costs[label]
                continue
            if index >= 0:
                costs[label].append(taken)
    if case.reference in missing:
        raise Unavailable(f"{case.reference}: {missing[case.reference]}")
    return Measured(case, {label: tuple(values) for label, values in costs.items()}, missing)


def elapsed(work: Callable[[], object]) -> float:
    """Return the wall time of a piece of work, in seconds, with what a GPU still has to do of it."""
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


def marginal(work: Callable[[int], object], few: int, many: int) -> float:
    """Return the time of one more step, (t(many) - t(few)) / (many - few), in seconds.

    Whatever a run costs once, such as checks, set-up and the first allocations, is in both times and cancels.
    """
    once = elapsed(lambda: work(few))
    return (elapsed(lambda: work(many)) - once) / (many - few)


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
