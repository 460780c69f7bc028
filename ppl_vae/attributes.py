"""Values that Python keeps beside parameters and buffers, within reach of a module: seen to change, and put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from operator import attrgetter, itemgetter
from types import CellType, MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from ppl_vae.holders import Holder, holders

__all__ = ["Attributes", "Change"]

_PLAIN = (bool, int, float, complex, str, type(None), np.generic)
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


class Attributes:
    """Every attribute, entry and variable that a module and its programs reach by name, as they are now.

    Unseen are containers of more than a thousand entries, what iterators, functions with a cache, hooks and
    compiled extensions keep, and what lies outside Python's variables, such as files, the environment and the clock.

    Args:
        module: Where to start. A pair leads to its programs, and they to modules, objects, containers and variables.
    """

    def __init__(self, module: nn.Module) -> None:
        self._places = [_Place(holder) for holder in holders(module)]
        self._values = [(p.read, p.holder.source, p.read(p.holder.source)) for p in self._places if p.keys]
        self._sizes = [(p.holder.source, p.size) for p in self._places if p.size is not None]
        registered = {_memory(t) for t in (*module.parameters(), *module.buffers())}  # their numbers may move
        held = {id(v): v for p in self._places for v in p.before if type(v) is Tensor and v.numel() <= _LARGEST_COPY}
        self._copies = [(t, t.detach().clone()) for t in held.values() if _memory(t) not in registered]
        contents = [_content(p.holder.name, p.holder.source) for p in self._places]
        self._contents = [content for content in contents if content is not None]
        self._looks = [content for content in self._contents if content.small]

    def outdated(self) -> Change | None:
        """The first value that is not what it was, or None; a look takes microseconds.

        Arrays of more than 4,096 numbers are not looked into, but in `changed`.
        """
        try:
            for read, source, before in self._values:
                if read(source) != before:
                    return self.changed()
            for source, size in self._sizes:
                if len(source) != size:
                    return self.changed()
            for content in self._looks:
                if content.differs():
                    return self.changed()
        except (LookupError, ValueError, RuntimeError, TypeError):  # one is gone, or tensors that cannot be equal
            return self.changed()
        return None

    def changed(self) -> Change | None:
        """The first value that is not what it was, or a tensor that is another one, whatever its numbers; or None."""
        seen = (*self._places, *self._contents)
        return next((change for place in seen if (change := place.change()) is not None), None)

    def moved(self) -> str:
        """Name of the first tensor that was written to, parameters and buffers apart; empty if none was.

        Of tensors of more than a million numbers only their place is known.
        """
        moved = {id(tensor) for tensor, copy in self._copies if not _same_numbers(tensor, copy)}
        held = ((place.label(k), v) for place in self._places for k, v in zip(place.keys, place.before, strict=True))
        return next((name for name, value in held if id(value) in moved), "")

    def plain_now(self) -> dict[str, Any]:
        """Numbers and text that are not what they were, by the names that lead there."""
        now = ((name, before, place.now(key)) for name, place, key, before in self._labelled())
        return {name: value for name, before, value in now if isinstance(value, _PLAIN) and not _same(before, value)}

    def tensors_now(self) -> dict[str, Tensor]:
        """Tensors that were written to, parameters and buffers apart, by the names that lead there."""
        moved = {id(tensor) for tensor, copy in self._copies if not _same_numbers(tensor, copy)}
        return {name: value for name, _, _, value in self._labelled() if id(value) in moved}

    def misplaced(self, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
        """A name of values of `plain_now` and `tensors_now` that leads to no such value here; empty if all do."""
        places = {name: before for name, _, _, before in self._labelled()}
        odd = [name for name in plain if name not in places]
        for name, value in tensors.items():
            own = places.get(name)
            if type(own) is not Tensor or own.shape != value.shape or own.dtype != value.dtype:
                odd.append(name)
        return odd[0] if odd else ""

    def put(self, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Puts values of `plain_now` and `tensors_now` in their places, which they have, see `misplaced`."""
        places = {name: (place, key, before) for name, place, key, before in self._labelled()}
        for name, value in plain.items():
            place, key, _ = places[name]
            place.put(key, value)
        for name, value in tensors.items():
            places[name][2].data.copy_(value)

    def _labelled(self) -> Iterator[tuple[str, _Place, Any, Any]]:
        """Every value as it was, by a name of its own: places are found in the same order in every process."""
        for number, place in enumerate(self._places):
            for key, before in zip(place.keys, place.before, strict=True):
                yield f"{number}:{place.label(key)}", place, key, before

    def restore(self) -> None:
        """Puts every value back, and takes away what was added."""
        for place in self._places:
            place.restore(lambda before, now: True, lambda added: True)
        for content in self._contents:
            content.restore()
        self._restore_numbers()

    def restore_plain(self) -> None:
        """Puts numbers, text, tensors and arrays back, and takes away attributes of such that were added.

        What a first run makes stays: other objects, entries of containers, and all of a module that has registered
        something.
        """
        for place in self._places:
            if not place.has_grown():
                added = _is_plain if place.holder.owner is not None else _never
                place.restore(lambda before, now: _is_plain(before) and _is_plain(now), added)
        for content in self._contents:
            content.restore_plain()
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
        self._all = set(self._source) if holder.whole and isinstance(self._source, MutableMapping) else set()
        self.size = len(self._source) if holder.whole else None
        self._registered = _registered(holder.owner)

    def label(self, key: Any) -> str:
        """The names that lead to a value."""
        return f"{self.holder.name}.{key}".strip(".")

    def change(self) -> Change | None:
        """The first value that differs."""
        for key, before in zip(self.keys, self.before, strict=True):
            now = self.now(key)
            if not _same(before, now):
                words = _in_words(before), _in_words(now)
                return Change(self.label(key), words[0], words[1] if words[0] != words[1] else "another")
        if isinstance(self._source, list | deque) and len(self._source) != self.size:
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
            now = self.now(key)
            if now is not before and put_back(before, now):
                self.put(key, before)

    def put(self, key: Any, value: Any) -> None:
        """Puts a value in the place of another."""
        if isinstance(self._source, CellType):
            self._source.cell_contents = value
        elif isinstance(self._source, MappingProxyType):
            setattr(self.holder.owner, key, value)
        elif isinstance(self._source, MutableMapping) or key < len(self._source):
            self._source[key] = value
        elif key == len(self._source):
            self._source.append(value)

    def now(self, key: Any) -> Any:
        """The value as it is; None where there is none."""
        try:
            return self._source.cell_contents if isinstance(self._source, CellType) else self._source[key]
        except (LookupError, ValueError):
            return None

    def _added(self) -> list[Any]:
        if self.size is None:
            return []
        if isinstance(self._source, list | deque):
            return list(range(len(self._source) - 1, self.size - 1, -1))
        return [key for key in self._source if key not in self._all and self.holder.counts(key)]


class _Array:
    """An array with the numbers it had: programs write into it in place."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self._array, self._before = name, array, array.copy()
        self.small = array.size <= _LARGEST_LOOK
        self._bytes = array.tobytes()

    def differs(self) -> bool:
        """Whether a number is another one."""
        return self._array.tobytes() != self._bytes

    def change(self) -> Change | None:
        """The same in words."""
        return Change(self.name, "an array", "one of other numbers") if self.differs() else None

    def restore(self) -> None:
        """Puts the numbers back."""
        if self._array.shape == self._before.shape and self._array.flags.writeable and self.differs():
            np.copyto(self._array, self._before)

    restore_plain = restore


class _Set:
    """A set with the entries it had."""

    small = True

    def __init__(self, name: str, entries: set[Any]) -> None:
        self.name, self._set, self._before = name, entries, set(entries)

    def differs(self) -> bool:
        """Whether an entry came or went."""
        return self._set != self._before

    def change(self) -> Change | None:
        """The same in words."""
        return Change(self.name, "a set", "one of other entries") if self.differs() else None

    def restore(self) -> None:
        """Puts back what went and takes away what came."""
        self._set.intersection_update(self._before)
        self._set.update(self._before)

    def restore_plain(self) -> None:
        """Puts back what went; what came is a record, as in a list."""
        self._set.update(self._before)


def _content(name: str, source: Any) -> _Array | _Set | None:
    if isinstance(source, np.ndarray):
        return _Array(name, source) if source.size <= _LARGEST_COPY else None
    return _Set(name, source) if isinstance(source, set) else None


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


def _memory(tensor: Tensor) -> int | None:
    """Where the memory of a tensor begins, views and all; None of one without memory of its own, sparse or lazy."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError, ValueError):
        return None


def _same_numbers(tensor: Tensor, copy: Tensor) -> bool:
    return tensor.shape == copy.shape and bool(((tensor == copy) | (tensor != tensor)).all())


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or type(value) is Tensor


def _never(value: Any) -> bool:
    return False


def _in_words(value: Any) -> str:
    return repr(value) if isinstance(value, _PLAIN) else f"a {type(value).__name__}"
