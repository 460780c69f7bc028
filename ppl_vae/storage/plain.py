"""JSON that is read back as it was written: one strict dialect, with limits on size and depth, sealed by a hash."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from ppl_vae.errors import StorageError

__all__ = ["HALVES", "MAX_DEPTH", "decode", "encode", "seal", "unseal"]

MAX_DEPTH = 32
HALVES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
"""Two halves of a character, one by one, that JSON would read as the character."""
_SEAL = "sha256"
_LONGEST_KEY = 200  # in an error
_Place = str | tuple[Any, str | int]  # the name of the whole, or a place and what is looked up there


def encode(value: Any, where: str = "state") -> bytes:
    r"""Returns a value as one line of JSON that `decode` turns into an equal value.

    Args:
        value: Dictionaries with string keys, lists, strings, finite numbers, booleans and None.
        where: What it is, for errors.

    Raises:
        ValueError: It holds something else, at a place that is named; JSON would change it silently, or knows it not.

    Example:
        >>> encode({"step": 3, "best": None, "rate": 0.1})
        b'{"step":3,"best":null,"rate":0.1}\n'
    """
    _check(value, where, 0)
    return _text(value, None)


def decode(content: bytes, path: Path) -> Any:
    """Returns what JSON says, in the dialect of `encode`.

    Raises:
        StorageError: It is no JSON, too deep, names a key twice, or holds a number that is not finite.
    """
    try:
        value = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite
        )
        _check(value, "", 0)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: expected JSON, found damage ({error})") from error
    return value


def seal(fields: dict[str, Any], indent: int | None = None) -> bytes:
    """Returns an object as JSON whose last field, `sha256`, is the hash of the others: `unseal` sees any change.

    Args:
        fields: What `encode` takes, by name; tuples become lists.
        indent: Spaces for each level; None writes one line.

    Raises:
        StorageError: It holds what JSON does not know, such as an infinite number; its name is said.

    Example:
        >>> unseal(seal({"step": 3}, indent=2), Path("run.json"), indent=2)
        {'step': 3}
    """
    try:
        return _text(fields | {_SEAL: hashlib.sha256(_text(fields, None)).hexdigest()}, indent)
    except ValueError as error:
        wrong = [name for name, value in fields.items() if type(value) is float and not math.isfinite(value)]
        raise StorageError(
            f"{', '.join(wrong) or 'fields'}: expected finite numbers, found what JSON has no word for ({error}): "
            "nothing is written"
        ) from error


def unseal(content: bytes, path: Path, indent: int | None = None) -> dict[str, Any]:
    """Returns the fields that `seal` has written with the same indent.

    Raises:
        StorageError: It is no such text, or one that was changed: there is only one that says the same.
    """
    fields = decode(content, path)
    if type(fields) is not dict or list(fields)[-1:] != [_SEAL]:
        raise StorageError(f"{path}: expected fields that end in their own SHA-256, found none: get the file anew")
    del fields[_SEAL]
    if content != seal(fields, indent):
        raise StorageError(
            f"{path}: expected a text with the SHA-256 that it states, found another: it is damaged, or was changed"
        )
    return fields


def _text(value: Any, indent: int | None) -> bytes:
    separators = (",", ":") if indent is None else None
    return (json.dumps(value, allow_nan=False, indent=indent, separators=separators) + "\n").encode("ascii")


def _check(value: Any, place: _Place, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"{_where(place)[:40]}...: expected at most {MAX_DEPTH} levels, found more")
    if type(value) is dict:
        for key, entry in value.items():
            if type(key) is not str or HALVES.search(key):
                raise ValueError(f"{_where(place)}: expected keys that are strings of whole characters, found {key!r}")
            _check(entry, (place, key), depth + 1)
    elif type(value) is list:
        for index, entry in enumerate(value):
            _check(entry, (place, index), depth + 1)
    elif type(value) is float and not math.isfinite(value):
        raise ValueError(f"{_where(place)}: expected a finite number, found {value}: keep it as a tensor")
    elif type(value) is str and HALVES.search(value):
        raise ValueError(f"{_where(place)}: expected text of whole characters, found {value[:40]!r}")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise ValueError(f"{_where(place)}: expected what JSON can hold, found {type(value).__name__}")


def _where(place: _Place) -> str:
    """A place in words, which are put together only where they are read: a hostile key may have megabytes."""
    parts: list[str] = []
    while isinstance(place, tuple):
        place, part = place
        parts.insert(0, f"[{part}]" if type(part) is int else f".{part[:_LONGEST_KEY]}")  # type: ignore[index]
    return place + "".join(parts)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is not finite")
    return value
