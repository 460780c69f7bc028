"""Finds where Python keeps values within reach of a module and its programs: attributes, entries, variables."""

from __future__ import annotations

import argparse
import functools
import inspect
import types
from collections import deque
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from ppl_vae.discovery import LARGEST_CONTAINER, names_in, variables
from ppl_vae.libraries import is_known, is_library, is_ours, is_standard

__all__ = ["Holder", "hides", "holders", "is_users", "reached"]

_MODULE_STATE = {name for name in vars(nn.Module()) if name.startswith("_")}
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
# What torch and Pyro keep of the last call in objects whose class may be the user's.
_CACHES = ("_cached", "_inv")


class Holder(NamedTuple):
    """A place that keeps values by key."""

    name: str
    """The names that lead there."""
    source: Any
    """Attributes, a container, an array, variables of a Python module, or a cell of a closure: the thing itself."""
    keys: Sequence[Any]
    """What in it counts; nothing of arrays and sets, which count as they are."""
    owner: Any = None
    """The object or class whose attributes these are."""
    whole: bool = True
    """Whether what is added counts too."""
    registered: bool = False
    """Whether these are parameters or buffers of a module."""

    def counts(self, key: Any) -> bool:
        """Whether a key is neither machinery nor a cache, such as transforms keep of their last pair."""
        return self.owner is None or _counts(self.owner, key)


class _Slots(MutableMapping[str, Any]):
    """The attributes that an object keeps in `__slots__`."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(self._owner, key)
        except AttributeError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self._owner, key, value)

    def __delitem__(self, key: str) -> None:
        delattr(self._owner, key)

    def __iter__(self) -> Iterator[str]:
        return (key for key in _slots(type(self._owner)) if hasattr(self._owner, key))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def holders(root: nn.Module) -> list[Holder]:
    """Every place within reach of a module by attributes, containers, closures, globals and methods.

    Of libraries (see `is_library`) only modules, distributions and transforms are entered, and what they show: a frozen
    distribution of SciPy or a DataFrame is not. Containers of more than a thousand entries are not, nor hooks (what
    they record is meant to stay), nor what a program reaches in another way than by name.
    """
    everything = reached(root)
    spaces: dict[int, tuple[dict[str, Any], set[str]]] = {}
    for space, names in (space for _, value in everything for space in _spaces_of(value)):
        spaces.setdefault(id(space), (space, set()))[1].update(names)
    found = [holder for name, value in everything for holder in _holders_of(name, value)]
    return found + [Holder("", space, sorted(names), whole=False) for space, names in spaces.values()]


def reached(root: nn.Module) -> list[tuple[str, Any]]:
    """Everything within reach, by the names that lead there, in the same order in every process."""
    queue: deque[tuple[str, Any]] = deque([("", root)])
    seen: dict[int, Any] = {}
    found: list[tuple[str, Any]] = []
    while queue:
        name, value = queue.popleft()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        found.append((name, value))
        queue += _reached_from(name, value)
        queue += [(key, space[key]) for space, names in _spaces_of(value) for key in sorted(names)]
    return found


def _holders_of(name: str, value: Any) -> Iterator[Holder]:
    if _has_attributes(value):
        whole = not isinstance(value, type | Distribution | Transform)  # distributions add what they compute when asked
        yield from (Holder(name, home, _attributes(value, home), value, whole) for home in _homes(value))
    if isinstance(value, nn.Module):
        hooks = (value._forward_hooks, value._forward_pre_hooks)
        yield from (Holder(f"{name}.forward_hooks", home, list(home)) for home in hooks)
        homes = {"_parameters": True, "_buffers": True, "_modules": False}
        named = ((vars(value)[home], registered) for home, registered in homes.items())
        yield from (Holder(name, home, list(home), registered=registered) for home, registered in named if home)
    elif isinstance(value, dict | list | deque) and len(value) <= LARGEST_CONTAINER:
        yield Holder(name, value, list(value) if isinstance(value, dict) else range(len(value)))
    elif isinstance(value, tuple) and any(type(item) is Tensor for item in value):
        yield Holder(name, value, range(len(value)), whole=False)
    elif isinstance(value, np.ndarray) or (isinstance(value, set) and len(value) <= LARGEST_CONTAINER):
        yield Holder(name, value, (), whole=False)
    elif inspect.isfunction(value) and _is_entered(value.__module__):
        yield from (Holder(key, cell, [""], whole=False) for key, cell in _cells(value))


def _reached_from(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, functools.partial):
        return [(name, value.func), (name, value.args), (name, value.keywords)]
    if inspect.ismethod(value):
        return [("self", value.__self__), (name, value.__func__)]
    if isinstance(value, staticmethod | classmethod | property | functools.cached_property):
        return [(name, getattr(value, key, None)) for key in ("__func__", "fget", "func")]
    if inspect.isfunction(value):
        defaults = (value.__defaults__, value.__kwdefaults__)
        return [*variables(value), *((name, d) for d in defaults)] if _is_entered(value.__module__) else []
    if isinstance(value, dict | list | tuple | deque | set | frozenset):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return _below(name, items) if len(value) <= LARGEST_CONTAINER else []
    if not _has_attributes(value):
        return []
    inside = _below(name, [(key, home[key]) for home in _homes(value) for key in _attributes(value, home)])
    if isinstance(value, nn.Module):
        inside += _below(name, value._modules.items())
    classes = value.__bases__ if isinstance(value, type) else (type(value),)
    return inside + [(c.__name__, c) for c in classes]


def _below(name: str, inside: Iterable[tuple[Any, Any]]) -> list[tuple[str, Any]]:
    return [(f"{name}.{key}".lstrip("."), item) for key, item in inside]


def _spaces_of(value: Any) -> Iterator[tuple[dict[str, Any], set[str]]]:
    """The globals that a function mentions, and the variables of the user's modules among them."""
    if not inspect.isfunction(value) or not is_users(value.__globals__.get("__name__", "")):
        return
    mentioned = set(names_in(value.__code__))
    spaces = [value.__globals__]
    for name in mentioned & value.__globals__.keys():
        found = value.__globals__[name]
        if isinstance(found, types.ModuleType) and is_users(found.__name__):
            spaces.append(vars(found))
    yield from ((space, mentioned & space.keys()) for space in spaces)


def _cells(function: types.FunctionType) -> Iterator[tuple[str, types.CellType]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if cell != types.CellType():  # an empty one
            yield name, cell


def _has_attributes(value: Any) -> bool:
    if isinstance(value, nn.Module | Distribution | Transform):
        return True
    if isinstance(value, type):
        return is_users(value.__module__)
    if isinstance(value, types.ModuleType) or not _homes(value):
        return False
    return isinstance(value, _NAMESPACES) or _is_entered(type(value).__module__)


def _homes(owner: Any) -> list[Any]:
    """Where an object keeps its attributes."""
    own = [vars(owner)] if hasattr(owner, "__dict__") else []
    return own + ([_Slots(owner)] if _slots(type(owner)) else [])


def _slots(kind: type) -> list[str]:
    bases = [base for base in kind.__mro__ if _is_entered(base.__module__)]
    return [key for base in bases for key, item in vars(base).items() if inspect.ismemberdescriptor(item)]


def _attributes(owner: Any, home: Iterable[Any]) -> list[Any]:
    return [key for key in home if _counts(owner, key)]


def _counts(owner: Any, key: Any) -> bool:
    known = isinstance(owner, Distribution | Transform)
    if (known or isinstance(owner, nn.Module)) and hides(type(owner).__module__) and str(key).startswith("_"):
        return False
    return key not in _MODULE_STATE and not str(key).startswith(("__", *_CACHES) if known else "__")


def hides(module: Any) -> bool:
    """Whether a Python module is of a library whose objects hide machinery behind an underscore."""
    return is_known(module) or is_ours(module)


def is_users(module: Any) -> bool:
    """Whether a Python module is the user's: of no library, and none of ours."""
    return _is_entered(module) and not is_ours(module)


def _is_entered(module: Any) -> bool:
    return not (is_library(module) or is_standard(module))
