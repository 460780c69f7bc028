"""What programs keep beside parameters and buffers, taken out as named tensors and plain values, and put back."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae.attributes import ABSENT, PLAIN, Attributes, Place
from ppl_vae.contents import ArrayContent, SetContent, TensorContent, memory
from ppl_vae.discovery import LARGEST_CONTAINER
from ppl_vae.storage import check_storable

__all__ = ["Belongings", "Taken"]

# What a name begins with: a value that another one has replaced, or the content of one that was written to.
_VALUE, _GONE, _SIZE, _SET = "value", "gone", "size", "set"
_TENSOR, _ON_DEVICE, _ARRAY, _INTO_TENSOR, _INTO_ARRAY = "tensor", "device tensor", "array", "into tensor", "into array"
_IN_PLACES = (_VALUE, _GONE, _TENSOR, _ON_DEVICE, _ARRAY)
_INTO = (_SIZE, _SET, _INTO_TENSOR, _INTO_ARRAY)  # come first: values are put into what they leave
_NAME = re.compile(r"(?s)([a-z ]+) ([0-9]{1,9}):(.*)")
_EXACT = (bool, int, float, complex, str, type(None))
_KINDS = "biufc"


class Taken(NamedTuple):
    """What is not as it was."""

    plain: dict[str, Any]
    """Numbers and text, the entries of sets, and None for what is gone."""
    tensors: dict[str, Tensor]
    """Tensors, and arrays of NumPy as such."""
    lost: tuple[str, ...]
    """Names of what has changed to something that can be none of these."""


class Belongings:
    """Values that a module and its programs keep, as they are now: what changes can be taken to another process.

    Those are numbers, text, tensors and arrays under the names of `Attributes`, whether others take their place or they
    are written to, entries that come to lists and dictionaries of such or go from them, and the entries of sets.

    Args:
        module: See `Attributes`. In the other process it has to be made in the same way.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._attributes = module, Attributes(module)
        self._before: set[str] = set()  # names of what another process had changed

    def taken(self) -> Taken:
        """What is not as it was, or was not when it was put here."""
        plain: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        lost: list[str] = []
        for name, value in self._changes():
            if isinstance(value, Tensor):
                tensors[name] = value
            elif value is _Unnamed:
                lost.append(name)
            else:
                plain[name] = value
        return Taken(plain, tensors, tuple(dict.fromkeys(lost)))

    def misplaced(self, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
        """A name of what was `taken` that leads to no such value here; empty if all do."""
        return next((name for name, value in {**plain, **tensors}.items() if not self._fits(name, value)), "")

    def put(self, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Puts what was `taken` in its place, which it has, see `misplaced`; all else becomes what it was."""
        self._attributes.restore()
        self._before |= {*plain, *tensors}
        device = next((p.device for p in self._module.parameters()), torch.device("cpu"))
        for name, value in sorted({**plain, **tensors}.items(), key=lambda item: self._rank(item[0])):
            kind, number, label = _parsed(name)
            if kind in (_SET, _INTO_TENSOR, _INTO_ARRAY):
                _fill(self._content(kind, number), value)
                continue
            place = self._attributes.places[number]
            key = _key(place, label)
            if kind == _SIZE:
                _cut(place, value)
            elif kind == _GONE:
                if place.now(key) is not ABSENT:
                    place.take_away(key)
            else:
                place.put(key, value if kind == _VALUE else _own(value, kind, device))

    def _changes(self) -> Iterator[tuple[str, Any]]:
        """Names and values of what is not as it was; `_Unnamed` for those that no other process can be given."""
        own = self._attributes
        shared = Counter(memory(value) for place in own.places for value in _values(place) if type(value) is Tensor)
        once = {where for where, count in shared.items() if count == 1} - own.registered | {None, 0}
        for number, place in enumerate(own.places):
            if place.holder.registered:
                continue  # those are saved as what they are
            resized = self._is_resized(number, place)
            if resized:
                keys, name = _size(place), place.holder.name
                yield (name, _Unnamed) if keys is None else (f"{_SIZE} {number}:{name}", keys)
            for key, before in zip(place.keys, place.before, strict=True):
                now, label = place.now(key), f"{number}:{place.label(key)}"
                if not _same(before, now) or self._again(label):
                    yield _as_entry(label, now, once, place.label(key))
                elif resized and (entry := _as_entry(label, now, once, place.label(key)))[1] is not _Unnamed:
                    yield entry
            yield from self._added(number, place, once)
        for number, tensor in enumerate(own.tensors):
            name = f"{_INTO_TENSOR} {number}:{tensor.name}"
            if tensor.differs() or name in self._before:
                yield (name, tensor.tensor) if _is_storable(name, tensor.tensor) else (tensor.name, _Unnamed)
        for number, content in enumerate(own.contents):
            kind = _SET if isinstance(content, SetContent) else _INTO_ARRAY
            name = f"{kind} {number}:{content.name}"
            if content.differs() or name in self._before:
                value = _listed(content.entries) if isinstance(content, SetContent) else _as_tensor(content.array)
                yield (name, value) if value is not None else (content.name, _Unnamed)

    def _added(self, number: int, place: Place, once: set[int | None]) -> Iterator[tuple[str, Any]]:
        """What has come to a place; of a list whatever stands before the first that no name can be given."""
        added = place.added()
        in_order = isinstance(place.holder.source, list | deque)
        for key in sorted(added) if in_order else added:
            label = place.label(key)
            if len(added) > LARGEST_CONTAINER or _key(place, label) != key:
                yield place.holder.name or label, _Unnamed
                return
            name, value = _as_entry(f"{number}:{label}", place.now(key), once, label)
            yield name, value
            if value is _Unnamed and in_order:
                return

    def _is_resized(self, number: int, place: Place) -> bool:
        """Whether entries have come to a container or gone from it, here or in another process."""
        if place.size is None or place.holder.owner is not None or any(isinstance(v, nn.Module) for v in place.before):
            return False
        moved = bool(place.added()) or any(place.now(key) is ABSENT for key in place.keys)
        return moved or f"{_SIZE} {number}:{place.holder.name}" in self._before

    def _again(self, label: str) -> bool:
        return any(f"{kind} {label}" in self._before for kind in _IN_PLACES)

    def _fits(self, name: str, value: Any) -> bool:
        try:
            kind, number, label = _parsed(name)
            if kind == _SIZE:
                place = self._attributes.places[number]
                return place.holder.name == label and _can_be(place, value)
            if kind in _INTO:
                content = self._content(kind, number)
                return content.name == label and _can_hold(content, value)
            key = _key(self._attributes.places[number], label)
        except (LookupError, ValueError):
            return False
        if key is None or (kind == _GONE and key not in self._attributes.places[number].keys):
            return False
        return isinstance(value, PLAIN) if kind in (_VALUE, _GONE) else isinstance(value, Tensor)

    def _content(self, kind: str, number: int) -> TensorContent | ArrayContent | SetContent:
        found = self._attributes.tensors[number] if kind == _INTO_TENSOR else self._attributes.contents[number]
        if isinstance(found, SetContent) != (kind == _SET):
            raise ValueError(kind)
        return found

    def _rank(self, name: str) -> tuple[bool, bool, int, int]:
        """Contents come first; what is gone goes from the end of a list, what has come comes to it in order."""
        kind, number, label = _parsed(name)
        last = label.rpartition(".")[2]
        place = int(last) if last.isdecimal() else 0
        return kind in _IN_PLACES, kind != _GONE, number, -place if kind == _GONE else place


class _Unnamed:
    """Stands for a value that no other process can be given."""


def _parsed(name: str) -> tuple[str, int, str]:
    if (found := _NAME.fullmatch(name)) is None or found[1] not in (*_IN_PLACES, *_INTO):
        raise ValueError(name)
    return found[1], int(found[2]), found[3]


def _key(place: Place, label: str) -> Any:
    """The key of a place that a label names, or would name once it is there; None if none does."""
    for key in place.keys:
        if place.label(key) == label:
            return key
    last = label.removeprefix(place.holder.name).removeprefix(".")
    if place.size is None or place.label(last) != label:
        return None
    if isinstance(place.holder.source, MutableMapping):
        return last if place.holder.counts(last) else None
    return int(last) if last.isdecimal() and int(last) >= place.size else None


def _values(place: Place) -> list[Any]:
    return [place.now(key) for key in (*place.keys, *place.added())]


def _same(before: Any, now: Any) -> bool:
    if isinstance(before, PLAIN) and isinstance(now, PLAIN):
        return type(before) is type(now) and bool(before == now)
    return now is before


def _size(place: Place) -> int | list[str] | None:
    """How many entries a list has, or the keys of a dictionary; None of one whose keys are no text, or too many."""
    source = place.holder.source
    if len(source) > 2 * LARGEST_CONTAINER:
        return None
    if isinstance(source, list | deque):
        return len(source)
    return list(source) if all(type(key) is str for key in source) else None


def _can_be(place: Place, size: Any) -> bool:
    if isinstance(place.holder.source, list | deque):
        return type(size) is int and size >= 0
    texts = isinstance(size, list) and all(type(key) is str for key in size)
    return texts and isinstance(place.holder.source, MutableMapping) and place.holder.owner is None


def _cut(place: Place, size: Any) -> None:
    """Takes away what a container of this size, or of these keys, does not have."""
    source = place.holder.source
    extra = (
        range(len(source) - 1, size - 1, -1) if isinstance(size, int) else [key for key in source if key not in size]
    )
    for key in [*extra]:
        del source[key]


def _as_entry(label: str, value: Any, once: set[int | None], plainly: str) -> tuple[str, Any]:
    """The name and the value that another process can be given of what stands in a place now."""
    if value is ABSENT:
        return f"{_GONE} {label}", None
    if _is_plain(value):
        return f"{_VALUE} {label}", value
    if type(value) is Tensor and memory(value) in once and _is_storable(label, value):
        return f"{_TENSOR if value.device.type == 'cpu' else _ON_DEVICE} {label}", value
    if type(value) is np.ndarray and (found := _as_tensor(value)) is not None:
        return f"{_ARRAY} {label}", found
    return plainly, _Unnamed


def _is_plain(value: Any) -> bool:
    return type(value) in _EXACT or (isinstance(value, np.generic) and value.dtype.kind in _KINDS)


def _is_storable(name: str, tensor: Tensor) -> bool:
    try:
        check_storable({f"value/{name}": tensor})
    except ValueError:
        return False
    return True


def _as_tensor(array: np.ndarray) -> Tensor | None:
    """The same numbers as a tensor, which has no types but numbers."""
    try:
        tensor = torch.from_numpy(np.array(array, order="C"))
    except (TypeError, ValueError):
        return None
    return tensor if _is_storable("array", tensor) else None


def _listed(entries: set[Any]) -> list[Any] | None:
    return sorted(entries, key=repr) if all(map(_is_plain, entries)) else None


def _own(value: Tensor, kind: str, device: torch.device) -> Any:
    """A copy for programs to keep, as a tensor or an array."""
    if kind == _ARRAY:
        return value.detach().cpu().numpy().copy()
    return value.detach().clone().to(device if kind == _ON_DEVICE else "cpu")


def _can_hold(content: TensorContent | ArrayContent | SetContent, value: Any) -> bool:
    if isinstance(content, SetContent):
        return isinstance(value, list) and all(map(_is_plain, value))
    own = content.tensor if isinstance(content, TensorContent) else _as_tensor(content.array)
    same = own is not None and isinstance(value, Tensor) and (own.shape, own.dtype) == (value.shape, value.dtype)
    return same and (isinstance(content, TensorContent) or content.array.flags.writeable)


def _fill(content: TensorContent | ArrayContent | SetContent, value: Any) -> None:
    """Gives a tensor, an array or a set what another one holds."""
    if isinstance(content, TensorContent):
        content.tensor.data.copy_(value)
    elif isinstance(content, ArrayContent):
        np.copyto(content.array, value.detach().cpu().numpy())
    else:
        content.entries.clear()
        content.entries.update(value)
