"""Schedules: values that give a number for each step (beta of an objective, factor of a learning rate)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ppl_vae.options import positive_number

__all__ = ["Constant", "Cosine", "Cyclical", "Linear", "Schedule", "Sigmoid", "Step"]

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same value at every step.

    Example:
        >>> Constant(0.5)(10)
        0.5
    """

    value: float = 1.0

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` in a straight line over `steps`, then `end` (KL warm-up; Bowman et al. 2016).

    Example:
        >>> [Linear(0.0, 1.0, steps=4)(s) for s in (0, 2, 4, 9)]
        [0.0, 0.5, 1.0, 1.0]
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        positive_number("steps", self.steps)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Sigmoid:
    """From `start` to `end` along a logistic curve whose middle is at `middle`, 1 / `rate` steps wide.

    Example:
        >>> Sigmoid(0.0, 1.0, middle=100, rate=0.1)(100)
        0.5
    """

    start: float
    end: float
    middle: float
    rate: float

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        exponent = min(-self.rate * (step - self.middle), 700.0)
        return self.start + (self.end - self.start) / (1.0 + math.exp(exponent))


@dataclass(frozen=True)
class Cyclical:
    """In each `period` from `start` to `end` in a line over its first `ramp` part, then `end` (Fu et al. 2019).

    Example:
        >>> [Cyclical(0.0, 1.0, period=10, ramp=0.5)(s) for s in (0, 5, 9, 10)]
        [0.0, 1.0, 1.0, 0.0]
    """

    start: float
    end: float
    period: int
    ramp: float = 0.5

    def __post_init__(self) -> None:
        positive_number("period", self.period)
        if not 0 < self.ramp <= 1:
            raise ValueError(f"ramp: expected a share in (0, 1], found {self.ramp}")

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        phase = step % self.period / self.period
        return self.start + (self.end - self.start) * min(phase / self.ramp, 1.0)


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` along half a cosine over `steps`, then `end` (Loshchilov and Hutter 2017).

    Example:
        >>> round(Cosine(1.0, 0.0, steps=10)(5), 12)
        0.5
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        positive_number("steps", self.steps)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1.0)))


@dataclass(frozen=True)
class Step:
    """Multiplied by `factor` after each of the `milestones`, from 1.

    Example:
        >>> [Step((10, 20), factor=0.1)(s) for s in (0, 10, 25)]
        [1.0, 0.1, 0.010000000000000002]
    """

    milestones: tuple[int, ...]
    factor: float

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return self.factor ** sum(step >= m for m in self.milestones)
