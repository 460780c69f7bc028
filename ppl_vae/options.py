"""What options may be."""

from __future__ import annotations

__all__ = ["whole_number"]


def whole_number(name: str, value: object, least: int | None = None) -> None:
    """Refuses what is no whole number, or one below `least`.

    Example:
        >>> whole_number("num_samples", 10.5)
        Traceback (most recent call last):
            ...
        ValueError: num_samples: expected a whole number, found 10.5
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name}: expected a whole number, found {value!r}")
    if least is not None and value.__index__() < least:
        raise ValueError(f"{name}: expected at least {least}, found {value}")
