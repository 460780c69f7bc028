"""What a tensor, an array or a set holds: seen to change in place, and put back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "PLAIN",
    "ArrayContent",
    "Change",
    "SetContent",
    "TensorContent",
    "content_of",
    "give",
    "is_same",
    "memory",
    "same_numbers",
    "spelled",
    "writes",
]

PLAIN = (bool, int, float, complex, str, type(None), np.generic)
_LONGEST_WHOLE = 2000  # bits, which Python writes in decimal whatever limit it has been given
_INEXACT = (float, complex, np.inexact)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Larger tensors and arrays are data that an object carries along: programs do not write to them. Arrays that are looked
# at often are smaller.
_LARGEST_COPY, _LARGEST_LOOK = 1 << 20, 1 << 12


class Change(NamedTuple):
    """A value that is not what it was."""

    name: str
    """The names that lead there."""
    before: str
    """What it was, in words."""
    now: str
    """What it is, in words."""


class TensorContent:
    """A tensor with the numbers it had; of a large or sparse one it is only known whether torch has written to it."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self.tensor = name, tensor
        self.large = tensor.numel() > _LARGEST_COPY
        is_compared = tensor.layout is torch.strided and not self.large
        self._before = tensor.detach().clone() if is_compared else None
        self._version, self._form = writes(tensor), (tensor.shape, tensor.dtype)

    @property
    def is_resized(self) -> bool:
        """Whether it has another shape or type: a tensor made in the same way cannot be given its numbers."""
        return (self.tensor.shape, self.tensor.dtype) != self._form

    def differs(self) -> bool:
        """Whether it was written to."""
        if self._before is None:
            return writes(self.tensor) != self._version
        return not same_numbers(self.tensor, self._before)

    def restore(self) -> None:
        """Puts the numbers back, of a large or sparse one none."""
        if self._before is not None and self.differs():
            give(self.tensor, self._before)


class ArrayContent:
    """An array with the numbers it had: programs write into it in place."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array, self._before = name, array, array.copy()
        self.small = array.size <= _LARGEST_LOOK
        self._bytes = array.tobytes()

    @property
    def is_resized(self) -> bool:
        """Whether it has another shape: an array made in the same way cannot be given its numbers."""
        return self.array.shape != self._before.shape

    def differs(self) -> bool:
        """Whether a number is another one."""
        return self.array.tobytes() != self._bytes

    def change(self) -> Change | None:
        """The same in words."""
        return Change(self.name, "an array", "one of other numbers") if self.differs() else None

    def restore(self) -> None:
        """Puts the numbers back."""
        if not self.is_resized and self.array.flags.writeable and self.differs():
            np.copyto(self.array, self._before)

    restore_plain = restore


class SetContent:
    """A set with the entries it had."""

    small = True

    def __init__(self, name: str, entries: set[Any]) -> None:
        self.name, self.entries, self._before = name, entries, set(entries)
        self._places = {*map(id, entries)}

    def differs(self) -> bool:
        """Whether an entry came or went, or 1 has taken the place of 1.0."""
        if {*map(id, self.entries)} == self._places:
            return False
        return {*map(_exact, self.entries)} != {*map(_exact, self._before)}

    def change(self) -> Change | None:
        """The same in words."""
        return Change(self.name, "a set", "one of other entries") if self.differs() else None

    def restore(self) -> None:
        """Puts back what went and takes away what came."""
        if self.differs():
            self.entries.clear()
            self.entries.update(self._before)

    def restore_plain(self) -> None:
        """Puts back what went; what came is a record, as in a list."""
        self.entries.difference_update(self._before)
        self.entries.update(self._before)


def content_of(name: str, source: Any) -> ArrayContent | SetContent | None:
    """The content of an array or a set; None of a large array, and of anything else."""
    if isinstance(source, np.ndarray):
        return ArrayContent(name, source) if source.size <= _LARGEST_COPY else None
    return SetContent(name, source) if isinstance(source, set) else None


def is_same(before: Any, now: Any) -> bool:
    """Whether a value is still the same one, or a number or text to the last bit.

    Example:
        >>> is_same(0.5, 1 / 2), is_same(0.0, -0.0), is_same(1, 1.0), is_same(float("nan"), float("nan"))
        (True, False, False, True)
    """
    if now is before:
        return True
    return isinstance(before, PLAIN) and isinstance(now, PLAIN) and bool(_exact(before) == _exact(now))


def spelled(value: Any) -> str:
    """The `repr` of a value; that of a whole number of thousands of digits, which Python refuses, in hexadecimal."""
    return hex(value) if isinstance(value, int) and value.bit_length() > _LONGEST_WHOLE else repr(value)


def _exact(value: Any) -> Any:
    """Something equal for the same number of the same type alone."""
    if not isinstance(value, PLAIN):
        return value
    return type(value), repr(value) if isinstance(value, _INEXACT) else value


def memory(tensor: Tensor) -> int | None:
    """Where the memory of a tensor begins, views and all; None of one without memory of its own, sparse or lazy."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError, ValueError):
        return None


def give(tensor: Tensor, numbers: Tensor) -> None:
    """Gives a tensor, where it is, these numbers; also their shape and type, where it was resized in place."""
    if (tensor.shape, tensor.dtype) != (numbers.shape, numbers.dtype):
        tensor.data = torch.empty_like(numbers, device=tensor.device)
    tensor.data.copy_(numbers)


def same_numbers(tensor: Tensor, copy: Tensor) -> bool:
    """Whether a dense tensor has the shape, the type and the numbers of another one, to the last bit."""
    if tensor.shape != copy.shape or tensor.dtype != copy.dtype:
        return False
    return bool((_bits(tensor) == _bits(copy)).all())


def _bits(tensor: Tensor) -> Tensor:
    """The bits of inexact numbers, of which -0.0 is another one than 0.0; whole numbers as they are."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    real = torch.view_as_real(plain) if plain.is_complex() else plain
    return real.view(_BITS[real.element_size()]) if real.is_floating_point() else real


def writes(tensor: Tensor) -> int | None:
    """How often torch has written to a tensor; None of one made under inference mode, which does not count."""
    return None if tensor.is_inference() else tensor._version
