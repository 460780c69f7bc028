"""The form of what is read from a file: types and ranges of plain values, tensors, and words for what is otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ppl_vae.errors import CheckpointError
from ppl_vae.options import LARGEST

__all__ = [
    "HOW_TO_GO_ON",
    "Form",
    "anything",
    "each",
    "either",
    "entries",
    "fields",
    "fitting",
    "flag",
    "number",
    "text",
    "whole",
]

HOW_TO_GO_ON = "resume with the pair, data and options that the run began with"

Form = Callable[[Any, str], None]
"""Looks at a value and raises `CheckpointError` where it is of another form; the second argument says where it is."""


def whole(least: int = 0, most: int = LARGEST) -> Form:
    """A whole number in a range.

    Example:
        >>> whole(0, 3)(2, "step")
        >>> whole(0, 3)(-5, "step")
        Traceback (most recent call last):
        ppl_vae.errors.CheckpointError: step: expected a whole number from 0 to 3, found -5
    """

    def look(value: Any, where: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise _other(where, f"a whole number from {least} to {most}", value)

    return look


def number(least: float = -math.inf, most: float = math.inf) -> Form:
    """A finite number in a range."""

    def look(value: Any, where: str) -> None:
        if type(value) not in (int, float) or not least <= value <= most or abs(value) > 1e308:
            raise _other(where, f"a finite number from {least} to {most}", value)

    return look


def flag(value: Any, where: str) -> None:
    """True or False."""
    if type(value) is not bool:
        raise _other(where, "true or false", value)


def text(value: Any, where: str) -> None:
    """A string."""
    if type(value) is not str:
        raise _other(where, "text", value)


def anything(value: Any, where: str) -> None:
    """Whatever JSON holds."""


def either(*forms: Form) -> Form:
    """None, or one of some forms."""

    def look(value: Any, where: str) -> None:
        problems = []
        for form in forms if value is not None else ():
            try:
                return form(value, where)
            except CheckpointError as error:
                problems.append(error)
        if problems:
            raise problems[0]
        return None

    return look


def each(form: Form, length: int | None = None) -> Form:
    """A list of entries of one form."""

    def look(value: Any, where: str) -> None:
        if type(value) is not list or length not in (None, len(value)):
            raise _other(where, "a list" if length is None else f"a list of {length} entries", value)
        for position, entry in enumerate(value):
            form(entry, f"{where}[{position}]")

    return look


def entries(*forms: Form) -> Form:
    """A list whose entries have a form each."""

    def look(value: Any, where: str) -> None:
        each(anything, len(forms))(value, where)
        for position, (form, entry) in enumerate(zip(forms, value, strict=True)):
            form(entry, f"{where}[{position}]")

    return look


def fields(known: Mapping[str, Form] | Form) -> Form:
    """A dictionary: with these keys and no others, or with any keys and values of one form."""

    def look(value: Any, where: str) -> None:
        if type(value) is not dict:
            raise _other(where, "values by name", value)
        if not callable(known) and (odd := sorted(known.keys() ^ value.keys())):
            raise CheckpointError(f"{where}: expected {', '.join(known)}, found {_without(odd[0], known)}")
        for name, entry in value.items():
            (known if callable(known) else known[name])(entry, f"{where}.{name}")

    return look


def _without(name: str, known: Mapping[str, Form]) -> str:
    return f"none of {name!r}" if name in known else f"{name[:40]!r}, too"


def _other(where: str, expected: str, value: Any) -> CheckpointError:
    found = f"{type(value).__name__} of {len(value)}" if isinstance(value, list | dict) else repr(value)[:40]
    return CheckpointError(f"{where}: expected {expected}, found {found}")


def fitting(tensors: Mapping[str, Tensor], name: str, own: Tensor, prefix: str = "") -> None:
    """Refuses a state without a tensor of that name, shape and dtype.

    Raises:
        CheckpointError: It has none.
    """
    found = tensors.get(name)
    if found is None or found.shape != own.shape or found.dtype != own.dtype:
        words = "none" if found is None else f"one of shape {tuple(found.shape)}, {found.dtype}"
        raise CheckpointError(
            f"{prefix}{name}: expected a tensor of shape {tuple(own.shape)}, {own.dtype}, found {words}; {HOW_TO_GO_ON}"
        )
