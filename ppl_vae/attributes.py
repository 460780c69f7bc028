"""Values that Python keeps beside parameters and buffers, within reach of a module: seen to change, and put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from functools import cached_property
from itertools import pairwise
from operator import attrgetter, is_, itemgetter
from types import CellType, MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ppl_vae.contents import PLAIN, Change, TensorContent, content_of, is_same, memory, spelled
from ppl_vae.errors import CheckpointError
from ppl_vae.holders import Holder, holders
from ppl_vae.naming import is_named

__all__ = ["ABSENT", "PLAIN", "Attributes", "Change", "Place", "registered_with", "reorder"]


_WATCHED = (Tensor, nn.Parameter)  # a parameter in a list, or of a module in a list, is registered nowhere


class _Absent:
    """Stands for a value that is not there."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


class Attributes:
    """Every attribute, entry and variable that a module and its programs reach by name, as they are now.

    Unseen are containers of more than a thousand entries, what iterators, functions with a cache, hooks, compiled
    extensions and objects of other libraries keep, and what lies outside Python's variables, such as files, the
    environment and the clock.

    Args:
        root: Where to start. A pair leads to its programs, and they to modules, objects, containers and variables.
        name: What the names of what it leads to begin with.
    """

    def __init__(self, root: nn.Module | Optimizer, name: str = "") -> None:
        self.places = [Place(holder) for holder in holders(root, name)]
        self._values = [(p.read, p.holder.source, p.read(p.holder.source)) for p in self.places if p.keys]
        self._sizes = [(p.holder.source, p.size) for p in self.places if p.size is not None]
        plain = [p for p in self.places if p.size is not None and p.is_dictionary and not p.holder.registered]
        self._orders = [(p.holder.source, [*p.holder.source]) for p in plain]
        self.registered = {memory(tensor) for tensor in registered_with(root)}  # their numbers may move
        held: dict[int, TensorContent] = {}
        for place in self.places:
            for key, value in zip(place.keys, place.before, strict=True):
                if type(value) in _WATCHED and id(value) not in held and memory(value) not in self.registered:
                    held[id(value)] = TensorContent(place.label(key), value)
        self.tensors = [*held.values()]
        contents = [content_of(p.holder.name, p.holder.source) for p in self.places]
        self.contents = [content for content in contents if content is not None]
        self._looks = [content for content in self.contents if content.small]

    def outdated(self) -> Change | None:
        """The first value that is not what it was, or None; a look takes microseconds.

        Arrays of more than 4,096 numbers are not looked into, but in `changed`.
        """
        try:
            for read, source, before in self._values:
                now = read(source)
                if not all(map(is_, before, now)) and not all(map(is_same, before, now)):
                    return self.changed()
            for source, size in self._sizes:
                if len(source) != size:
                    return self.changed()
            for source, keys in self._orders:
                if [*source] != keys:
                    return self.changed()
            for content in self._looks:
                if content.differs():
                    return self.changed()
        except (LookupError, ValueError, RuntimeError, TypeError):  # one is gone, or tensors that cannot be equal
            return self.changed()
        return None

    def changed(self) -> Change | None:
        """The first value that is not what it was, or a tensor that is another one, whatever its numbers; or None."""
        seen = (*self.places, *self.contents)
        return next((change for place in seen if (change := place.change()) is not None), None)

    def moved(self) -> str:
        """Name of the first tensor that was written to, parameters and buffers apart; empty if none was.

        Of tensors of more than a million numbers only their place is known.
        """
        return next((t.name for t in self.tensors if not t.large and t.differs()), "")

    def restore(self) -> None:
        """Puts every value back, and takes away what was added."""
        for place in self.places:
            place.restore(lambda before, now: True, lambda added: True)
        for content in self.contents:
            content.restore()
        self._restore_numbers()

    def restore_plain(self) -> None:
        """Puts numbers, text, tensors and arrays back, and takes away attributes of such that were added.

        What a first run makes stays: other objects, entries of containers, and all of a module that has registered
        something.
        """
        for place in self.places:
            if not place.has_grown():
                added = _is_plain if place.holder.owner is not None else _never
                place.restore(lambda before, now: _is_plain(before) and _is_plain(now), added)
        for content in self.contents:
            content.restore_plain()
        self._restore_numbers()

    def _restore_numbers(self) -> None:
        for tensor in self.tensors:
            tensor.restore()


class Place:
    """The values of one holder as they were."""

    def __init__(self, holder: Holder) -> None:
        self.holder, self.keys = holder, tuple(holder.keys)
        self._source = holder.source
        self.read = _reader(self._source, self.keys)
        self.before = self.read(self._source)[: len(self.keys)]
        all_keys = self._source if holder.whole and isinstance(self._source, MutableMapping) else ()
        self._all = {key: number for number, key in enumerate(all_keys)}
        self.is_dictionary = isinstance(self._source, dict) and holder.owner is None
        self.size = len(self._source) if holder.whole else None
        self._registered = _names_registered(holder.owner)

    @cached_property
    def _before(self) -> dict[Any, Any]:
        return dict(zip(self.keys, self.before, strict=True))

    def label(self, key: Any) -> str:
        """The names that lead to a value."""
        return f"{self.holder.name}.{self.holder.spell(key)}".strip(".")

    @cached_property
    def labelled(self) -> dict[str, Any]:
        """The keys by `label`; `ABSENT` where it is that of two keys, or of one that has no name."""
        found: dict[str, Any] = {}
        for key in self.keys:
            label = self.label(key)
            found[label] = key if label not in found and is_named(label) else ABSENT
        return found

    def change(self) -> Change | None:
        """The first value that differs."""
        for key, before in zip(self.keys, self.before, strict=True):
            now = self.now(key)
            if not is_same(before, now):
                words = _in_words(before), _in_words(now)
                return Change(self.label(key), words[0], words[1] if words[0] != words[1] else "another")
        if isinstance(self._source, list | deque) and len(self._source) != self.size:
            return Change(self.holder.name, f"{self.size} entries", str(len(self._source)))
        if self.is_reordered():
            return Change(self.holder.name, "a dictionary", "one in another order")
        return next((Change(self.label(key), "absent", _in_words(self._source[key])) for key in self.added()), None)

    def is_reordered(self) -> bool:
        """Whether a dictionary gives the entries that it had in another order."""
        return self.is_dictionary and _is_out_of_order(self._source, self._all)

    def has_grown(self) -> bool:
        """Whether the owner, a module, has registered something since."""
        return self._registered != _names_registered(self.holder.owner)

    def restore(self, put_back: Callable[[Any, Any], bool], take_away: Callable[[Any], bool]) -> None:
        """Puts back values of which `put_back(before, now)`, takes away new ones of which `take_away(value)`."""
        for key in self.added():
            if take_away(self._source[key]):
                del self._source[key]
        for key, before in zip(self.keys, self.before, strict=True):
            now = self.now(key)
            if now is not before and put_back(before, now):
                self.put(key, before)
        if self.is_reordered():
            reorder(self._source, [*self._all])

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
        else:
            raise CheckpointError(
                f"{self.label(key)}: expected a place in a list of {len(self._source)} entries or at its end: what "
                "stands before it is missing; take another checkpoint"
            )

    def take_away(self, key: Any) -> None:
        """Leaves no value in a place."""
        if isinstance(self._source, CellType):
            del self._source.cell_contents
        elif isinstance(self._source, MappingProxyType):
            delattr(self.holder.owner, key)
        else:
            del self._source[key]

    def undo(self, key: Any) -> None:
        """Puts back what was there; leaves no attribute that was not."""
        if self.had(key):
            self.put(key, self._before[key])
        elif self.holder.owner is not None:
            self.take_away(key)

    def refill(self, size: Any) -> None:
        """Puts back what has gone since a list had a size, or a dictionary these keys; a number stands for all."""
        if isinstance(self._source, list | deque) and self.size is not None:
            for key in range(len(self._source), min(self.size, size)):  # a value has its place behind those before it
                self.put(key, self.before[key])
        elif self.is_dictionary:
            for key in size if isinstance(size, list) else self.keys:
                if self.had(key) and self.now(key) is ABSENT:
                    self.put(key, self._before[key])

    def arrange(self, size: Any) -> None:
        """Puts the entries of a dictionary in the order of these keys, or that of before; what came since is last."""
        if self.is_dictionary and not self.holder.registered:
            keys = size if isinstance(size, list) else [*self._all]
            if _is_out_of_order(self._source, {key: number for number, key in enumerate(keys)}):
                reorder(self._source, keys)

    def had(self, key: Any) -> bool:
        """Whether there was a value."""
        return key in self._before

    def now(self, key: Any) -> Any:
        """The value as it is; `ABSENT` where there is none."""
        if isinstance(self._source, dict):
            return _entry(self._source, key)
        try:
            return self._source.cell_contents if isinstance(self._source, CellType) else self._source[key]
        except (LookupError, ValueError):
            return ABSENT

    def added(self) -> list[Any]:
        """Keys that were not there, those of a list from its end."""
        if self.size is None:
            return []
        if isinstance(self._source, list | deque):
            return list(range(len(self._source) - 1, self.size - 1, -1))
        return [key for key in self._source if key not in self._all and self.holder.counts(key)]


def reorder(source: MutableMapping[Any, Any], keys: Iterable[Any]) -> None:
    """Puts the entries of a dictionary in an order; others than those named come last."""
    for key in [key for key in dict.fromkeys([*keys, *source]) if key in source]:
        source[key] = source.pop(key)


def _is_out_of_order(source: Iterable[Any], places: Mapping[Any, int]) -> bool:
    return any(first > second for first, second in pairwise(places[key] for key in source if key in places))


def registered_with(root: nn.Module | Optimizer) -> Iterator[Tensor]:
    """Parameters and buffers, or what an optimiser keeps of each parameter."""
    if isinstance(root, nn.Module):
        yield from root.parameters()
        yield from root.buffers()
        return
    for group in root.param_groups:
        yield from group["params"]
    for entry in root.state.values():
        yield from (value for value in entry.values() if isinstance(value, Tensor)) if isinstance(entry, dict) else ()


def _reader(source: Any, keys: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Looks up all keys in one call; a single one twice, since the call gives a tuple from the second on."""
    if not keys:
        return lambda _: ()
    if isinstance(source, CellType):
        return attrgetter("cell_contents", "cell_contents")
    if hasattr(type(source), "__missing__"):
        return lambda source: tuple(_entry(source, key) for key in keys)
    return itemgetter(*keys) if len(keys) > 1 else itemgetter(*keys, *keys)


def _entry(source: dict[Any, Any], key: Any) -> Any:
    """What stands in a dictionary, which is not asked to make what does not, as a `defaultdict` would."""
    return dict.get(source, key, ABSENT)


def _names_registered(owner: Any) -> list[str]:
    return [*owner._parameters, *owner._buffers, *owner._modules] if isinstance(owner, nn.Module) else []


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or type(value) is Tensor or value is ABSENT


def _never(value: Any) -> bool:
    return False


def _in_words(value: Any) -> str:
    return spelled(value) if isinstance(value, PLAIN) or value is ABSENT else f"a {type(value).__name__}"
