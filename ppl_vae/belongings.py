"""What programs keep beside parameters and buffers, taken out as named tensors and plain values, and put back."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppl_vae.attributes import ABSENT, Attributes, Place, registered_with, reorder
from ppl_vae.contents import ArrayContent, SetContent, TensorContent, is_same, memory
from ppl_vae.discovery import LARGEST_CONTAINER
from ppl_vae.naming import is_named, is_text
from ppl_vae.portable import ARRAY, GONE, LIST, ON_DEVICE, TENSOR, VALUE, Portable, can_hold, content, entry, fill, fits
from ppl_vae.storage.plain import HALVES

__all__ = ["Belongings", "Taken"]

# What a name begins with beside the kinds of what stands in a place: what else is said of one, and contents written to.
_SIZE, _SET, _INTO_TENSOR, _INTO_ARRAY = "size", "set", "into tensor", "into array"
_INTO, _VALUES = (_INTO_TENSOR, _INTO_ARRAY), (VALUE, LIST, TENSOR, ON_DEVICE, ARRAY)
_CONTENTS, _IN_PLACES = (_SET, *_INTO), (GONE, *_VALUES)
_NAME = re.compile(r"(?s)([a-z ]+) ([0-9]{1,9}):(.*)")
_LONGEST = 900  # of the names of tensors in a file
_LONGEST_PLACE = 9  # digits of a place in a list; Python reads no text of thousands


class Taken(NamedTuple):
    """What is not as it was."""

    plain: dict[str, Any]
    """Numbers and text, lists of such, the entries of sets, and None for what is gone."""
    tensors: dict[str, Tensor]
    """Tensors, and arrays of NumPy as such."""
    lost: tuple[str, ...]
    """Names of what has changed to something that can be none of these."""


class Belongings:
    """Values that a module and its programs keep, as they are now: what changes can be taken to another process.

    Those are numbers, text, tensors, arrays and lists of numbers and text under the names of `Attributes`, whether
    others take their place or they are written to, entries that come to lists and dictionaries of such or go from them,
    and the entries of sets. Of what is registered with the module, whose numbers are kept with it, they are buffers of
    another shape or type.

    Args:
        root: See `Attributes`. In the other process it has to be made in the same way.
        name: What the names of what it leads to begin with.
    """

    def __init__(self, root: nn.Module | torch.optim.Optimizer, name: str = "") -> None:
        self._attributes = Attributes(root, name)
        self._places = sorted(self._attributes.places, key=lambda place: place.holder.registered)
        self._forms = self._forms_now()
        self._device = next((t.device for t in registered_with(root)), torch.device("cpu"))
        self._before: set[str] = set()  # names of what has been other than it was, here or in another process

    def taken(self) -> Taken:
        """What is not as it was, or was not when it was `taken` before or put here."""
        plain: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        lost: list[str] = []
        for name, value in self._changes():
            if isinstance(value, _Lost) or not _can_be_name(str(name), value):
                lost.append(HALVES.sub("\ufffd", name.label))
            elif isinstance(value, Tensor):
                tensors[str(name)] = value
            else:
                plain[str(name)] = value
        self._before |= {*plain, *tensors}
        return Taken(plain, tensors, tuple(dict.fromkeys(lost)))

    def misplaced(self, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
        """A name of what was `taken` that leads to no such value here; empty if all do."""
        return next((name for name, value in {**plain, **tensors}.items() if not self._fits(name, value)), "")

    def remade(self, root: nn.Module, names: Iterable[str]) -> set[str]:
        """The buffers of the module among what was `taken`, by their names in it: `put` gives them another form."""
        found = [(self._places[name.number], name) for name in map(_Name.of, names) if name.kind in _IN_PLACES]
        places = {(id(p.holder.source), _key(p, name.label)) for p, name in found if p.holder.registered}
        if not places:
            return set()
        homes = [(where, module._buffers) for where, module in root.named_modules(remove_duplicate=False)]
        return {f"{where}.{key}".lstrip(".") for where, home in homes for key in home if (id(home), key) in places}

    def put(self, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Puts what was `taken` in its place, which it has, see `misplaced`; all else becomes what it was."""
        self._attributes.restore()
        self._before |= {*plain, *tensors}
        self._put({**plain, **tensors}, (*_CONTENTS, *_IN_PLACES, _SIZE))

    def put_back(self, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Gives numbers, text, tensors and arrays the values that they had when this was `taken` here, those gone too.

        Records stay: what has come to containers since, and what no name can be given.
        """
        now = self.taken()
        for name in map(_Name.of, (*now.plain, *now.tensors)):
            if name.kind in _INTO:
                self._content(name).restore()
            elif name.kind in _IN_PLACES:
                place = self._places[name.number]
                place.undo(_key(place, name.label))
        sizes = {name.number: size for name, size in _sizes(plain)}
        for number, place in enumerate(self._places):
            place.refill(sizes.get(number, place.size))
        self._put({**plain, **tensors}, (*_INTO, *_IN_PLACES))
        for number, place in enumerate(self._places):
            place.arrange(sizes.get(number, place.size))

    def _put(self, values: Mapping[str, Any], kinds: tuple[str, ...]) -> None:
        """Fills what is there, then puts values in places, those of a list in order; sizes come last."""
        named = [(_Name.of(name), value) for name, value in values.items()]
        chosen = [(name, value) for name, value in named if name.kind in kinds]
        for name, value in sorted(chosen, key=lambda item: item[0].rank):
            if name.kind in _CONTENTS:
                fill(self._content(name), value)
                continue
            place = self._places[name.number]
            if name.kind == _SIZE:
                _resize(place, value)
            elif name.kind == GONE:
                place.take_away(_key(place, name.label))
            else:
                place.put(_key(place, name.label), Portable(name.kind, value).unpacked(self._device))

    def _changes(self) -> Iterator[tuple[_Name, Any]]:
        """Names and values of what is not as it was; `_Lost` for those that no other process can be given."""
        shared = Counter(map(_mark, _standing(self._attributes.places).values()))
        once = {mark for mark, count in shared.items() if count == 1}
        own = (once - self._attributes.registered - {list}) | {None, 0}
        forms = self._forms_now()
        for number, place in enumerate(self._places):
            changes = (
                self._remade_in(number, place, forms)
                if place.holder.registered
                else self._changes_of(number, place, own)
            )
            yield from changes
        for kind, held in self._contents():
            name = _Name(kind, held[0], held[1].name)
            if held[1].differs() or str(name) in self._before:
                found = content(held[1])
                yield name, _Lost() if found is None else found

    def _contents(self) -> Iterator[tuple[str, tuple[int, TensorContent | ArrayContent | SetContent]]]:
        for number, tensor in enumerate(self._attributes.tensors):
            yield _INTO_TENSOR, (number, tensor)
        for number, found in enumerate(self._attributes.contents):
            yield _SET if isinstance(found, SetContent) else _INTO_ARRAY, (number, found)

    def _forms_now(self) -> dict[tuple[int, Any], Any]:
        """Of what is registered with the module: shape and type, and the places where the same tensor stands."""
        registered = [place for place in self._places if place.holder.registered]
        found = {(id(place.holder.source), key): place.now(key) for place in registered for key in place.keys}
        places: dict[int, list[tuple[int, Any]]] = {}
        for where, value in found.items():
            places.setdefault(id(value), []).append(where)
        return {where: _form(value, places[id(value)]) for where, value in found.items()}

    def _remade_in(self, number: int, place: Place, forms: Mapping[Any, Any]) -> Iterator[tuple[_Name, Any]]:
        """Buffers of a module that have another shape or type than they had, or are gone, or come where none was.

        So do those that were one tensor and no longer are; two that come to be one would be two again, which is said.
        """
        for key in place.keys:
            where, now = (id(place.holder.source), key), place.now(key)
            name, value = _named(number, place, key, {memory(now)} if isinstance(now, Tensor) else set())
            if forms[where] != self._forms[where] or self._again(name):
                yield name, value
                if isinstance(now, Tensor) and len(forms[where].places) > 1:
                    yield name, _Lost()

    def _changes_of(self, number: int, place: Place, own: set[Any]) -> Iterator[tuple[_Name, Any]]:
        """What has changed in a place; of a container that is of another size or order, whatever stands in it."""
        size = None
        if resized := self._is_resized(number, place):
            size = _size(place)
            yield _Name(_SIZE, number, place.holder.name), _Lost() if size is None else size
        for key, before in zip(place.keys, place.before, strict=True):
            name, value = _named(number, place, key, own)
            changed = not is_same(before, place.now(key)) or self._again(name)
            if size is not None and name.kind == GONE:
                continue  # the size tells
            if _key(place, name.label) is ABSENT:
                value = _Lost()
            if changed or (resized and not isinstance(value, _Lost | list)):  # a list is still the one that it was
                yield name, value
        added = place.added()
        in_order = isinstance(place.holder.source, list | deque)
        for key in sorted(added) if in_order else added:
            found = _key(place, place.label(key))
            if len(added) > LARGEST_CONTAINER or found is ABSENT or found != key:
                yield _Name(VALUE, number, place.holder.name or place.label(key)), _Lost()
                return
            name, value = _named(number, place, key, own)
            yield name, value
            if isinstance(value, _Lost) and in_order:
                return  # no place leads to what stands behind it

    def _is_resized(self, number: int, place: Place) -> bool:
        """Whether entries have come to a container, gone from it or changed places, here or in another process."""
        if place.size is None or place.holder.owner is not None or any(isinstance(v, nn.Module) for v in place.before):
            return False
        moved = bool(place.added()) or any(place.now(key) is ABSENT for key in place.keys) or place.is_reordered()
        return moved or str(_Name(_SIZE, number, place.holder.name)) in self._before

    def _again(self, name: _Name) -> bool:
        return any(str(name._replace(kind=kind)) in self._before for kind in _IN_PLACES)

    def _fits(self, text: str, value: Any) -> bool:
        try:
            name = _Name.of(text)
            if name.kind in _CONTENTS:
                held = self._content(name)
                return held.name == name.label and can_hold(held, value)
            place = self._places[name.number]
            if name.kind == _SIZE:
                return place.holder.name == name.label and _can_be(place, value)
            key = _key(place, name.label)
        except (LookupError, ValueError):
            return False
        if place.holder.registered:  # a buffer of the module
            is_buffer = place.had(key) and not isinstance(place.now(key), nn.Parameter)
            if not is_buffer or not (value is None or isinstance(value, Tensor) or name.kind == GONE):
                return False
        return key is not ABSENT and (name.kind != GONE or place.had(key)) and fits(name.kind, value)

    def _content(self, name: _Name) -> TensorContent | ArrayContent | SetContent:
        own = self._attributes
        found = own.tensors[name.number] if name.kind == _INTO_TENSOR else own.contents[name.number]
        if isinstance(found, SetContent) != (name.kind == _SET):
            raise ValueError(name.kind)
        return found


class _Form(NamedTuple):
    """What a tensor is beside its numbers."""

    shape: torch.Size
    dtype: torch.dtype
    places: list[tuple[int, Any]]


def _form(value: Any, places: list[tuple[int, Any]]) -> Any:
    return _Form(value.shape, value.dtype, places) if isinstance(value, Tensor) else value


class _Lost:
    """Stands for a value that no other process can be given."""


class _Name(NamedTuple):
    """Where a value stands."""

    kind: str
    """What it is: one of the kinds above."""
    number: int
    """Of the place, or of the content, among those that the module reaches."""
    label: str
    """The names that lead there."""

    @classmethod
    def of(cls, text: str) -> _Name:
        """The name that a text is.

        Raises:
            ValueError: It is none.
        """
        if (found := _NAME.fullmatch(text)) is None or found[1] not in (*_IN_PLACES, *_CONTENTS, _SIZE):
            raise ValueError(text)
        return cls(found[1], int(found[2]), found[3])

    def __str__(self) -> str:
        return f"{self.kind} {self.number}:{self.label}"

    @property
    def rank(self) -> tuple[bool, bool, bool, int, int]:
        """Contents come first, sizes last; what goes goes from the end of a list, what comes comes to it in order."""
        last = self.label.rpartition(".")[2]
        place = int(last) if last.isdecimal() and len(last) <= _LONGEST_PLACE else 0  # a longer one is a key
        gone = self.kind == GONE
        return self.kind == _SIZE, self.kind in _IN_PLACES, not gone, self.number, -place if gone else place


def _can_be_name(text: str, value: Any) -> bool:
    """Whether a value has a name, which JSON may hold, or that of a tensor a file of such, see `check_storable`."""
    if not is_named(text):
        return False
    if not isinstance(value, Tensor):
        return HALVES.search(text) is None
    return len(text) <= _LONGEST and text == text.encode(errors="replace").decode()


def _named(number: int, place: Place, key: Any, own: set[Any]) -> tuple[_Name, Any]:
    """The name and the value that another process can be given of what stands in a place now."""
    now = place.now(key)
    found = entry(now, _mark(now) in own)
    name = _Name(VALUE if found is None else found.kind, number, place.label(key))
    return name, _Lost() if found is None else found.value


def _mark(value: Any) -> Any:
    """What tells a tensor or a list from others; None of what needs none; that of too long a list is no one's."""
    if type(value) is Tensor:
        return memory(value)
    if type(value) is list:
        return (list, id(value)) if len(value) <= LARGEST_CONTAINER else list
    return None


def _sizes(plain: Mapping[str, Any]) -> list[tuple[_Name, Any]]:
    named = [(_Name.of(text), value) for text, value in plain.items()]
    return [(name, value) for name, value in named if name.kind == _SIZE]


def _key(place: Place, label: str) -> Any:
    """The key of a place that a label names, or would name there if it is a text or a number; `ABSENT` if none does."""
    if label in place.labelled:
        return place.labelled[label]
    last = label.removeprefix(place.holder.name).removeprefix(".")
    if place.size is None or place.label(last) != label:
        return ABSENT
    if isinstance(place.holder.source, MutableMapping):
        return last if place.holder.counts(last) and is_text(last) else ABSENT
    return int(last) if last.isdecimal() and int(last) >= place.size else ABSENT


def _standing(places: Iterable[Place]) -> dict[tuple[int, Any], Any]:
    """What stands where: a variable of two functions is one place."""
    return {(id(p.holder.source), key): p.now(key) for p in places for key in (*p.keys, *p.added())}


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
    texts = isinstance(size, list) and all(type(key) is str for key in size) and not place.holder.registered
    return texts and isinstance(place.holder.source, MutableMapping) and place.holder.owner is None


def _resize(place: Place, size: Any) -> None:
    """Takes away what a list of this size, or a dictionary of these keys, does not have, and puts it in order."""
    source = place.holder.source
    if isinstance(source, list | deque):
        for key in range(len(source) - 1, size - 1, -1):
            del source[key]
    else:
        for key in [key for key in source if key not in size]:
            del source[key]
        reorder(source, size)
