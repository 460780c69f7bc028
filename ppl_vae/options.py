"""What options may be."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

__all__ = [
    "LARGEST",
    "compile_choice",
    "finite_number",
    "of_kind",
    "positive_number",
    "probability",
    "seed_number",
    "whole_number",
]

LARGEST = 2**63 - 1
"""Of whole numbers that a file keeps."""


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """Refuses what is no whole number, or one below `least`; returns it as Python's own.

    Example:
        >>> whole_number("num_samples", 10)
        10
        >>> whole_number("num_samples", 10.5)
        Traceback (most recent call last):
            ...
        ValueError: num_samples: expected a whole number, found 10.5
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name}: expected a whole number, found {value!r}")
    if least is not None and operator.index(value) < least:
        raise ValueError(f"{name}: expected at least {least}, found {value}")
    return operator.index(value)


def seed_number(name: str, value: Any) -> int:
    """Refuses what is no whole number that a file keeps; returns it as Python's own.

    Example:
        >>> seed_number("seed", -3)
        -3
    """
    if not -LARGEST <= (seed := whole_number(name, value)) <= LARGEST:
        raise ValueError(f"{name}: expected a whole number from {-LARGEST} to {LARGEST}, found {value}")
    return seed


def of_kind(name: str, value: object, kind: type) -> None:
    """Refuses what is no object of a class.

    Example:
        >>> of_kind("shape", 5, slice)
        Traceback (most recent call last):
            ...
        ValueError: shape: expected slice(...), found 5
    """
    if not isinstance(value, kind):
        raise ValueError(f"{name}: expected {kind.__name__}(...), found {value!r}")


def compile_choice(choice: object) -> None:
    """Refuses what does not say whether to compile.

    Example:
        >>> compile_choice("yes")
        Traceback (most recent call last):
            ...
        ValueError: compile: expected 'auto', True or False, found 'yes'
    """
    if not isinstance(choice, bool) and choice != "auto":
        raise ValueError(f"compile: expected 'auto', True or False, found {choice!r}")


def finite_number(name: str, value: object, least: float = -math.inf) -> None:
    """Refuses what is no number, not finite, or below `least`.

    Example:
        >>> finite_number("beta", float("nan"))
        Traceback (most recent call last):
            ...
        ValueError: beta: expected a finite number, found nan
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, found {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least:g}, found {value}")


def positive_number(name: str, value: object) -> None:
    """Refuses what is no finite number above 0.

    Example:
        >>> positive_number("learning_rate", 0.0)
        Traceback (most recent call last):
            ...
        ValueError: learning_rate: expected a positive number, found 0.0
    """
    finite_number(name, value)
    if not value > 0:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a positive number, found {value}")


def probability(name: str, value: object) -> None:
    """Refuses what is no probability between 0 and 1, both left out, such as the level of an interval in percent.

    Example:
        >>> probability("level", 95)
        Traceback (most recent call last):
            ...
        ValueError: level: expected a probability between 0 and 1, such as 0.95, found 95
    """
    finite_number(name, value)
    if not 0 < value < 1:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a probability between 0 and 1, such as 0.95, found {value}")
