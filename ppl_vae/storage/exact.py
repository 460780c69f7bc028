"""Numbers and texts that JSON has no word for, such as infinity, as JSON, exactly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ppl_vae.errors import CheckpointError
from ppl_vae.storage.plain import HALVES

__all__ = ["exact", "of_exact"]

# A dictionary of one such key stands for a number or a text, or holds a dictionary that looks as if it did.
_FLOAT, _COMPLEX, _BYTES, _WHOLE, _TEXT, _DICT = _MARKS = "float", "complex", "bytes", "whole", "text", "dict"
_LONGEST_WHOLE = 2000  # bits, which Python writes in decimal whatever limit it has been given
_KINDS = "biufc"


def exact(value: Any) -> Any:
    """A value as JSON, in lists and dictionaries too.

    That is: infinities, NaN, complex numbers, scalars of NumPy, whole numbers of any length, and text whose halves of
    characters (surrogates) JSON would put together.

    Example:
        >>> exact({"best": float("-inf"), "seen": 3})
        {'best': {'float': '-inf'}, 'seen': 3}
        >>> exact({"float": "32"})
        {'dict': {'float': '32'}}
        >>> of_exact(exact([float("-inf"), 1 + 2j, np.float32(0.1)])) == [float("-inf"), 1 + 2j, np.float32(0.1)]
        True
    """
    if isinstance(value, dict):
        packed = {name: exact(entry) for name, entry in value.items()}
        return {_DICT: packed} if len(packed) == 1 and not packed.keys().isdisjoint(_MARKS) else packed
    if isinstance(value, list):
        return [exact(entry) for entry in value]
    if isinstance(value, np.generic) and value.dtype.kind in _KINDS:
        return {_BYTES: [value.dtype.str, value.tobytes().hex()]}
    if type(value) is complex:
        return {_COMPLEX: [exact(value.real), exact(value.imag)]}
    if type(value) is int and value.bit_length() > _LONGEST_WHOLE:
        return {_WHOLE: hex(value)}
    if type(value) is str and HALVES.search(value):
        return {_TEXT: value.encode(errors="surrogatepass").hex()}
    if type(value) is float and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    return value


def of_exact(value: Any) -> Any:
    """The value that `exact` made this of.

    Raises:
        CheckpointError: It has made none like this.
    """
    try:
        return _of_exact(value)
    except (LookupError, TypeError, ValueError, OverflowError, SyntaxError) as error:
        raise CheckpointError(f"state: expected numbers as they were written, found others ({error})") from error


def _of_exact(value: Any) -> Any:
    match value:
        case {"float": str(text)} if len(value) == 1:
            return float(text)
        case {"whole": str(digits)} if len(value) == 1:
            return int(digits, 16)
        case {"text": str(digits)} if len(value) == 1:
            return bytes.fromhex(digits).decode(errors="surrogatepass")
        case {"complex": [real, imaginary]} if len(value) == 1:
            return complex(_of_exact(real), _of_exact(imaginary))
        case {"bytes": [str(dtype), str(digits)]} if len(value) == 1:
            return _scalar(np.dtype(dtype), bytes.fromhex(digits))
        case {"dict": dict(entries)} if len(value) == 1:
            return {name: _of_exact(entry) for name, entry in entries.items()}
        case dict():
            return {name: _of_exact(entry) for name, entry in value.items()}
        case list():
            return [_of_exact(entry) for entry in value]
    return value


def _scalar(dtype: np.dtype[Any], content: bytes) -> Any:
    if dtype.kind not in _KINDS or len(content) != dtype.itemsize:
        raise ValueError(dtype.str)
    return np.frombuffer(content, dtype)[0]
