"""The code of Python functions, as hashes and by what it mentions."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import CellType, CodeType, FunctionType
from typing import Any

from ppl_vae.arrays import as_python
from ppl_vae.contents import spelled

__all__ = ["CODE", "code_of", "code_within", "names_within"]

CODE = "code of "  # begins the names of facts that the version of Python decides, too
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def code_within(value: Any) -> str:
    """A hash of the Python functions within a value: their code, defaults, and plain values that they close over."""
    return _hash(_described(value, 0))


def code_of(function: FunctionType) -> str:
    """A hash of what a function does and of its defaults; of what it says about itself and closes over nothing."""
    code = function.__code__
    said = code.co_consts[:1] == (function.__doc__,) and function.__doc__ is not None
    constants = code.co_consts[1:] if said else code.co_consts
    parts = [code.co_code.hex(), code.co_names, code.co_freevars, constants]
    return _hash(_described([*parts, function.__defaults__, function.__kwdefaults__], 0))


def names_within(code: CodeType) -> set[str]:
    """Every name of an attribute or variable, and every text, that code mentions, inner functions included."""
    found = {*code.co_names, *code.co_freevars}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= names_within(constant)
        else:
            found |= {text for text in _entries(constant) if isinstance(text, str)}
    return found


def _entries(constant: Any) -> tuple[Any, ...]:
    return tuple(constant) if isinstance(constant, tuple | frozenset) else (constant,)


def _hash(described: Any) -> str:
    return hashlib.sha256(repr(described).encode(errors="backslashreplace")).hexdigest()[:16]


def _described(value: Any, depth: int) -> Any:
    value = as_python(value)
    if isinstance(value, _PLAIN):
        return spelled(value)
    if depth > 8:
        return type(value).__qualname__
    deeper = functools.partial(_described, depth=depth + 1)
    if inspect.ismethod(value):
        return deeper(value.__func__)
    if isinstance(value, FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        return [deeper(value.__code__), deeper(value.__defaults__), deeper(value.__kwdefaults__), deeper(cells)]
    if isinstance(value, CodeType):
        return [value.co_code.hex(), value.co_names, [deeper(constant) for constant in value.co_consts]]
    if isinstance(value, functools.partial):
        return [deeper(value.func), deeper(value.args), deeper(value.keywords)]
    if isinstance(value, Mapping):
        return sorted((spelled(name), repr(deeper(entry))) for name, entry in value.items())
    if isinstance(value, tuple | list):
        return [deeper(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(deeper(entry)) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, deeper(getattr(value, field.name))) for field in fields(value)]
    return getattr(value, "__qualname__", None) or type(value).__qualname__


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is in it yet
        return None
