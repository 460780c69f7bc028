"""Values that Python keeps beside parameters and buffers, within reach of a module: seen to change, and put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter, itemgetter
from types import CellType, MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from ppl_vae.holders import Holder, holders

__all__ = ["Attributes", "Change"]

_PLAIN = (bool, int, float, complex, str, type(None), np.generic)
# Larger tensors are data that an object carries along: programs do not write to them.
_LARGEST_COPY = 1 << 20


class Change(NamedTuple):
    """A value that is not what it was."""

    name: str
    """The names that lead there."""
    before: str
    """What it was, in words."""
    now: str
    """What it is, in words."""


class Attributes:
    """Every attribute, entry and variable that a module and its programs reach by name, as they are now.

    Args:
        module: Where to start. A pair leads to its programs, and they to modules, objects, containers and variables.
    """

    def __init__(self, module: nn.Module) -> None:
        self._places = [_Place(holder) for holder in holders(module)]
        self._values = [(p.read, p.holder.source, p.read(p.holder.source)) for p in self._places if p.keys]
        self._sizes = [(p.holder.source, p.size) for p in self._places if p.size is not None]
        buffers = {buffer.data_ptr() for buffer in module.buffers()}  # their numbers may move
        held = {id(v): v for p in self._places for v in p.before if type(v) is Tensor and v.numel() <= _LARGEST_COPY}
        self._copies = [(t, t.detach().clone()) for t in held.values() if t.data_ptr() not in buffers]

    def outdated(self) -> Change | None:
        """The first value that is not what it was, or None; a look takes microseconds."""
        try:
            for read, source, before in self._values:
                if read(source) != before:
                    return self.changed()
            for source, size in self._sizes:
                if len(source) != size:
                    return self.changed()
        except (LookupError, ValueError, RuntimeError, TypeError):  # one is gone, or tensors that cannot be equal
            return self.changed()
        return None

    def changed(self) -> Change | None:
        """The first value that is not what it was, or a tensor that is another one, whatever its numbers; or None."""
        return next((change for place in self._places if (change := place.change()) is not None), None)

    def moved(self) -> str:
        """Name of the first tensor that was written to, parameters and buffers apart; empty if none was.

        Of tensors of more than a million numbers only their place is known.
        """
        moved = {id(tensor) for tensor, copy in self._copies if not _same_numbers(tensor, copy)}
        held = ((place.label(k), v) for place in self._places for k, v in zip(place.keys, place.before, strict=True))
        return next((name for name, value in held if id(value) in moved), "")

    def restore(self) -> None:
        """Puts every value back, and takes away what was added."""
        for place in self._places:
            place.restore(lambda before, now: True, lambda added: True)
        self._restore_numbers()

    def restore_plain(self) -> None:
        """Puts numbers, text and tensors back, and takes away attributes of such that were added.

        What a first run makes stays: other objects, entries of containers, and all of a module that has registered
        something.
        """
        for place in self._places:
            if not place.has_grown():
                added = _is_plain if place.holder.owner is not None else _never
                place.restore(lambda before, now: _is_plain(before) and _is_plain(now), added)
        self._restore_numbers()

    def _restore_numbers(self) -> None:
        for tensor, copy in self._copies:
            if not _same_numbers(tensor, copy):
                tensor.data.copy_(copy)


class _Place:
    """The values of one holder as they were."""

    def __init__(self, holder: Holder) -> None:
        self.holder, self.keys = holder, tuple(holder.keys)
        self._source = holder.source
        self.read = _reader(self._source, self.keys)
        self.before = self.read(self._source)[: len(self.keys)]
        self._all = set(self._source) if holder.whole and isinstance(self._source, dict) else set()
        self.size = len(self._source) if holder.whole else None
        self._registered = _registered(holder.owner)

    def label(self, key: Any) -> str:
        """The names that lead to a value."""
        return f"{self.holder.name}.{key}".strip(".")

    def change(self) -> Change | None:
        """The first value that differs."""
        for key, before in zip(self.keys, self.before, strict=True):
            now = self._now(key)
            if not _same(before, now):
                return Change(self.label(key), _in_words(before), _in_words(now))
        if isinstance(self._source, list) and len(self._source) != self.size:
            return Change(self.holder.name, f"{self.size} entries", str(len(self._source)))
        return next((Change(self.label(key), "absent", _in_words(self._source[key])) for key in self._added()), None)

    def has_grown(self) -> bool:
        """Whether the owner, a module, has registered something since."""
        return self._registered != _registered(self.holder.owner)

    def restore(self, put_back: Callable[[Any, Any], bool], take_away: Callable[[Any], bool]) -> None:
        """Puts back values of which `put_back(before, now)`, takes away new ones of which `take_away(value)`."""
        for key in self._added():
            if take_away(self._source[key]):
                del self._source[key]
        for key, before in zip(self.keys, self.before, strict=True):
            now = self._now(key)
            if now is not before and put_back(before, now):
                self._put(key, before)

    def _put(self, key: Any, value: Any) -> None:
        if isinstance(self._source, CellType):
            self._source.cell_contents = value
        elif isinstance(self._source, MappingProxyType):
            setattr(self.holder.owner, key, value)
        elif isinstance(self._source, dict) or key < len(self._source):
            self._source[key] = value

    def _now(self, key: Any) -> Any:
        try:
            return self._source.cell_contents if isinstance(self._source, CellType) else self._source[key]
        except (LookupError, ValueError):
            return None

    def _added(self) -> list[Any]:
        if self.size is None:
            return []
        if isinstance(self._source, list):
            return list(range(len(self._source) - 1, self.size - 1, -1))
        return [key for key in self._source if key not in self._all and self.holder.counts(key)]


def _reader(source: Any, keys: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Looks up all keys in one call; a single one twice, since the call gives a tuple from the second on."""
    if not keys:
        return lambda _: ()
    if isinstance(source, CellType):
        return attrgetter("cell_contents", "cell_contents")
    return itemgetter(*keys) if len(keys) > 1 else itemgetter(*keys, *keys)


def _registered(owner: Any) -> list[str]:
    return [*owner._parameters, *owner._buffers, *owner._modules] if isinstance(owner, nn.Module) else []


def _same(before: Any, now: Any) -> bool:
    return now is before or (isinstance(before, _PLAIN) and isinstance(now, _PLAIN) and bool(before == now))


def _same_numbers(tensor: Tensor, copy: Tensor) -> bool:
    return tensor.shape == copy.shape and bool(((tensor == copy) | (tensor != tensor)).all())


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or type(value) is Tensor


def _never(value: Any) -> bool:
    return False


def _in_words(value: Any) -> str:
    return repr(value) if isinstance(value, _PLAIN) else f"a {type(value).__name__}"
