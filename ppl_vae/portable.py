"""Values that programs keep, in the form in which another process can be given them: plain values and tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.attributes import ABSENT, PLAIN
from ppl_vae.contents import ArrayContent, SetContent, TensorContent, spelled
from ppl_vae.storage import check_storable

__all__ = [
    "ARRAY",
    "GONE",
    "LIST",
    "ON_DEVICE",
    "TENSOR",
    "VALUE",
    "Portable",
    "can_hold",
    "content",
    "entry",
    "fill",
    "fits",
]

# What stands in a place instead of what was there: a number or text, a list of such, nothing, a tensor, or an array of
# NumPy.
VALUE, LIST, GONE, TENSOR, ON_DEVICE, ARRAY = "value", "list", "gone", "tensor", "device tensor", "array"
_EXACT = (bool, int, float, complex, str, type(None))
_KINDS = "biufc"


class Portable(NamedTuple):
    """A value of a place."""

    kind: str
    """What it is."""
    value: Any
    """A plain value, a list of such, or a tensor."""

    def unpacked(self, device: torch.device) -> Any:
        """A copy for programs to keep."""
        if self.kind == VALUE:
            return self.value
        if self.kind == LIST:
            return [*self.value]
        if self.kind == ARRAY:
            return self.value.detach().cpu().numpy().copy()
        return self.value.detach().clone().to(device if self.kind == ON_DEVICE else "cpu")


def entry(value: Any, is_own: bool) -> Portable | None:
    """A value of a place to take along; None of what no other process can be given.

    Args:
        value: The value, or `ABSENT`.
        is_own: Whether no other tensor shares its memory, or a list stands nowhere else.
    """
    if value is ABSENT:
        return Portable(GONE, None)
    if _is_plain(value):
        return Portable(VALUE, value)
    if is_own and _is_plain_list(value):
        return Portable(LIST, [*value])
    if type(value) is Tensor and is_own and _is_storable(value):
        return Portable(TENSOR if value.device.type == "cpu" else ON_DEVICE, value)
    if type(value) is np.ndarray and (found := _as_tensor(value)) is not None:
        return Portable(ARRAY, found)
    return None


def fits(kind: str, value: Any) -> bool:
    """Whether a value may be of a kind."""
    if kind == LIST:
        return _is_plain_list(value)
    return isinstance(value, PLAIN) if kind in (VALUE, GONE) else isinstance(value, Tensor)


def content(held: TensorContent | ArrayContent | SetContent) -> list[Any] | Tensor | None:
    """What a set, an array or a tensor holds, to take along; None of what no other process can be given."""
    if isinstance(held, SetContent):
        return sorted(held.entries, key=spelled) if all(map(_is_plain, held.entries)) else None
    if held.is_resized:
        return None
    if isinstance(held, ArrayContent):
        return _as_tensor(held.array)
    return held.tensor if _is_storable(held.tensor) else None


def can_hold(held: TensorContent | ArrayContent | SetContent, value: Any) -> bool:
    """Whether a set, an array or a tensor may be given this content."""
    if isinstance(held, SetContent):
        return _is_plain_list(value)
    own = held.tensor if isinstance(held, TensorContent) else _as_tensor(held.array)
    same = own is not None and isinstance(value, Tensor) and (own.shape, own.dtype) == (value.shape, value.dtype)
    return same and (isinstance(held, TensorContent) or held.array.flags.writeable)


def fill(held: TensorContent | ArrayContent | SetContent, value: Any) -> None:
    """Gives a set, an array or a tensor its content."""
    if isinstance(held, SetContent):
        held.entries.clear()
        held.entries.update(value)
    elif isinstance(held, ArrayContent):
        np.copyto(held.array, value.detach().cpu().numpy())
    else:
        held.tensor.data.copy_(value)


def _is_plain_list(value: Any) -> bool:
    return type(value) is list and all(map(_is_plain, value))


def _is_plain(value: Any) -> bool:
    return type(value) in _EXACT or (isinstance(value, np.generic) and value.dtype.kind in _KINDS)


def _is_storable(tensor: Tensor) -> bool:
    try:
        check_storable({"tensor": tensor})
    except ValueError:
        return False
    return True


def _as_tensor(array: np.ndarray) -> Tensor | None:
    """The same numbers as a tensor, which has no types but numbers."""
    try:
        tensor = torch.from_numpy(np.array(array, order="C"))
    except (TypeError, ValueError):
        return None
    return tensor if _is_storable(tensor) else None
