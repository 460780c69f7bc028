"""What the programs of a pair are: the code that they run, and what they hold when a fit begins, by name."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae.attributes import PLAIN, Place
from ppl_vae.contents import memory, spelled
from ppl_vae.holders import Holder, hides, holders, is_users, reached
from ppl_vae.pair import Pair
from ppl_vae.svi.code import CODE, code_of, names_within

__all__ = ["facts_of_programs"]

_PROGRAMS = {"model", "guide", "forward", "__call__"}
# Methods that make, describe and compare objects, which data classes generate from their fields.
_NO_OPERATORS = {
    *("__new__", "__init__", "__post_init__", "__replace__", "__repr__", "__str__", "__eq__", "__hash__"),
    *("__setattr__", "__delattr__", "__getstate__", "__setstate__", "__annotate__", "__annotate_func__"),
}
_WRAPPED = (staticmethod, classmethod, property, functools.cached_property, functools.partial, MethodType)
_LARGEST, _LONGEST = 1 << 20, 60
_Function = tuple[str, FunctionType, frozenset[str]]  # its name; it is used where one of the words is mentioned
_KEY = re.compile(r"(?s)\[.*?\](?=\.|$)")
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|auto)(:\d+)?")


def facts_of_programs(pair: Pair) -> dict[str, str]:
    """Hashes of the code of programs and of what they call by name, and the values that they mention, in words.

    Of the user's classes that they name it is the code of all methods (the backward pass of a `Function`, or what a
    distribution does when it is drawn from), of objects that they name that of operators, of modules that of hooks.

    Values are those of `Attributes`: of modules and distributions of libraries all, of what is the user's those whose
    name stands in that code, so that options of a script that travel with a module do not count. Nor do parameters and
    buffers, which a checkpoint holds, modes of training, and names of devices.
    """
    used, mentioned = _used(_functions(reached(pair)))
    registered = {memory(t) for t in (*pair.parameters(), *pair.buffers())}
    found: dict[str, list[str]] = {}
    for name, function in used:
        found.setdefault(f"{CODE}{name}", []).append(code_of(function))
    for name, value in _values(holders(pair), mentioned):
        found.setdefault(name, []).append(_described(value, registered))
    return {name: ", ".join(sorted(words)) for name, words in sorted(found.items())}


def _functions(everything: Iterable[tuple[str, Any]]) -> Iterator[_Function]:
    """Functions by their names; those of a class by its name too, since autograd and operators call them by none."""
    for name, value in everything:
        if isinstance(value, FunctionType):
            yield name, value, frozenset({_last(name), value.__name__})
        kind = _class(value)
        for base in kind.__mro__ if is_users(kind.__module__) else ():
            words = frozenset({_last(name), kind.__name__} if kind is value else {_last(name)})
            for key, entry in vars(base).items() if kind is value else filter(_is_operator, vars(base).items()):
                yield from ((f"{base.__name__}.{key}", f, words) for f in _within(entry))
        if isinstance(value, nn.Module):
            hooks = (*value._forward_pre_hooks.values(), *value._forward_hooks.values())
            yield from ((f"{name}.hooks", f, frozenset(_PROGRAMS)) for hook in hooks for f in _within(hook))


def _is_operator(entry: tuple[str, Any]) -> bool:
    return entry[0].startswith("__") and entry[0] not in _NO_OPERATORS


def _within(entry: Any) -> list[Any]:
    """A function, or those of a method or a property."""
    keys = ("__func__", "fget", "fset", "fdel", "func")
    parts = [getattr(entry, key, None) for key in keys] if isinstance(entry, _WRAPPED) else [entry]
    return [part for part in parts if isinstance(part, FunctionType)]


def _used(functions: Iterable[_Function]) -> tuple[list[tuple[str, FunctionType]], set[str]]:
    """The programs, whatever they mention by name, and so on; and all names that these mention."""
    used: dict[tuple[str, FunctionType], None] = {}
    left, mentioned = [entry for entry in functions if is_users(entry[1].__module__)], set(_PROGRAMS)
    while more := {(name, f): None for name, f, words in left if words & mentioned}:
        used |= more
        left = [entry for entry in left if not entry[2] & mentioned]
        mentioned.update(*(names_within(f.__code__) for _, f in more))
    return [*used], mentioned


def _values(places: Iterable[Holder], mentioned: set[str]) -> Iterator[tuple[str, Any]]:
    for holder in places:
        if isinstance(holder.source, np.ndarray | set) and _last(holder.name) in mentioned:
            yield holder.name, holder.source
        place = Place(holder)
        for key, value in () if holder.registered else zip(place.keys, place.before, strict=True):
            label = place.label(key)
            of_library = holder.owner is not None and hides(_class(holder.owner).__module__)
            if key != "training" and (of_library or isinstance(value, nn.Module) or _last(label) in mentioned):
                yield label, value


def _class(owner: Any) -> type:
    return owner if isinstance(owner, type) else type(owner)


def _last(name: str) -> str:
    """The last part of a name that code may mention: entries of a list, or of keys that are no text, go by its name."""
    parts = [part for part in _KEY.sub("", name).split(".") if part and not part.isdecimal()]
    return parts[-1] if parts else ""


def _described(value: Any, registered: set[int | None]) -> str:
    if isinstance(value, str) and _DEVICE.fullmatch(value):
        return "a device"
    if isinstance(value, PLAIN):
        words = spelled(value)
        return words if len(words) <= _LONGEST else f"{type(value).__name__} {_hash(words.encode(errors='replace'))}"
    if isinstance(value, tuple | set | frozenset):
        parts = [_described(entry, registered) for entry in value]
        return f"({', '.join(parts if isinstance(value, tuple) else sorted(parts))})"
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return f"array {value.dtype} {list(value.shape)} {_hash(value.tobytes()) if value.size <= _LARGEST else ''}"
    if type(value) is Tensor and value.layout is torch.strided and memory(value) not in registered:
        return f"tensor {value.dtype} {list(value.shape)} {_numbers(value)}"
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _numbers(tensor: Tensor) -> str:
    """A hash of a copy: a tensor of which NumPy has seen the memory can no longer be resized."""
    if tensor.numel() > _LARGEST or tensor.is_meta or tensor.is_quantized:
        return ""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return _hash(plain.view(-1).view(torch.uint8).numpy().tobytes())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
