"""Finds where Python keeps values within reach of a module and its programs: attributes, entries, variables."""

from __future__ import annotations

import argparse
import functools
import inspect
import queue
import types
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ppl_vae.discovery import LARGEST_CONTAINER, globals_in, names_in, variables
from ppl_vae.libraries import is_known, is_library, is_ours, is_standard
from ppl_vae.naming import Names, is_named

__all__ = ["Holder", "hides", "holders", "is_option", "is_users", "reached"]

_MODULE_STATE = {name for name in vars(nn.Module()) if name.startswith("_")}
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
_CONTAINERS = (UserDict, UserList, ChainMap, queue.Queue)  # of the standard library, which keep others as attributes
_BY_PARAMETER = {"state", "param_groups"}  # of an optimiser
_LAST_RATES = "_last_lr"  # of a scheduler
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
    """Whether these are parameters or buffers that belong to what was started from, and are kept with it."""
    spell: Callable[[Any], str] = str
    """What a key is called."""

    def counts(self, key: Any) -> bool:
        """Whether a key is neither machinery nor a cache, such as transforms keep of their last pair."""
        return self.owner is None or bool(_attributes(self.owner, [key]))


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


class _LastRates(MutableMapping[int, Any]):
    """The last learning rates of a scheduler, which keeps them in another list after each step."""

    def __init__(self, owner: LRScheduler) -> None:
        self._owner = owner

    def __getitem__(self, key: int) -> Any:
        return self._owner._last_lr[key]

    def __setitem__(self, key: int, value: Any) -> None:
        self._owner._last_lr[key] = value

    def __delitem__(self, key: int) -> None:
        del self._owner._last_lr[key]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return len(self._owner._last_lr)


def holders(root: nn.Module | Optimizer, name: str = "") -> list[Holder]:
    """Every place within reach of a module by attributes, containers, closures, globals and methods.

    Of libraries (see `is_library`) only modules, distributions, transforms, optimisers and schedulers of torch and some
    containers are entered, and what they show: a frozen distribution of SciPy or a DataFrame is not. Containers of more
    than a thousand entries are not, nor hooks of modules (what they record is meant to stay), nor what a program
    reaches in another way than by name. Of an optimiser, torch's own or not, it is what its attributes and hooks keep,
    and its groups beside numbers, text, tensors and tuples of such, but not the state of each parameter.

    Args:
        root: Where to start.
        name: What its names begin with.
    """
    names = Names(root)
    everything = _reached(root, name, names)
    spaces: dict[int, tuple[dict[str, Any], set[str]]] = {}
    for space, used in (space for _, value in everything for space in _spaces_of(value)):
        spaces.setdefault(id(space), (space, set()))[1].update(used)
    own = _own(root)
    found = [_below_unnamed(name, holder) for name, value in everything for holder in _holders_of(name, value, own)]
    found = [h._replace(spell=names.of) if isinstance(h.source, dict) else h for h in found]
    in_order = sorted(spaces.values(), key=lambda space: str(space[0].get("__name__")))
    return found + [Holder("", space, sorted(used), whole=False) for space, used in in_order]


def reached(root: nn.Module | Optimizer, name: str = "") -> list[tuple[str, Any]]:
    """Everything within reach, by the names that lead there: what is named in the same order in every process."""
    return _reached(root, name, Names(root))


def _reached(root: nn.Module | Optimizer, name: str, names: Names) -> list[tuple[str, Any]]:
    left: deque[tuple[str, Any]] = deque([(name, root)])
    unnamed: deque[tuple[str, Any]] = deque()  # what is only reached through what has no name comes last
    seen: dict[int, Any] = {}
    found: list[tuple[str, Any]] = []
    while left or unnamed:
        name, value = (left or unnamed).popleft()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        found.append((name, value))
        inside = _reached_from(name, value, names)
        inside += [(key, space[key]) for space, used in _spaces_of(value) for key in sorted(used)]
        if is_named(name):
            left += (entry for entry in inside if is_named(entry[0]))
            unnamed += (entry for entry in inside if not is_named(entry[0]))
        else:
            unnamed += ((_under(name, label), entry) for label, entry in inside)
    return found


def _under(name: str, label: str) -> str:
    return label if not is_named(label) else f"{name}.{label}"


def _below_unnamed(name: str, holder: Holder) -> Holder:
    return holder if is_named(name) else holder._replace(name=_under(name, holder.name))


def _own(root: nn.Module | Optimizer) -> Callable[[nn.Module], bool]:
    """Whether a module is among those registered with a root, or has parameters that an optimiser moves.

    One in a list, say, is not: nothing but the list knows it.
    """
    if isinstance(root, nn.Module):
        modules = {*map(id, root.modules())}
        return lambda module: id(module) in modules
    moved = {id(p) for group in root.param_groups for p in group["params"]}
    return lambda module: any(id(p) in moved for p in module._parameters.values())


def _holders_of(name: str, value: Any, own: Callable[[nn.Module], bool]) -> Iterator[Holder]:
    if _has_attributes(value):
        whole = not isinstance(value, type | Distribution | Transform)  # distributions add what they compute when asked
        yield from (
            Holder(label, home, _attributes(value, home), value, whole) for label, home in _named_homes(name, value)
        )
    if isinstance(value, Optimizer):
        yield from (Holder(label, group, keys, whole=False) for label, group, keys in _other_options(name, value))
    if isinstance(value, nn.Module):
        hooks = (value._forward_hooks, value._forward_pre_hooks)
        yield from (Holder(f"{name}.forward_hooks", home, list(home)) for home in hooks)
        homes = ((value._parameters, own(value)), (value._buffers, own(value)), (value._modules, False))
        yield from (Holder(name, home, list(home), registered=registered) for home, registered in homes if home)
    elif isinstance(value, dict | list | deque) and len(value) <= LARGEST_CONTAINER:
        yield Holder(name, value, list(value) if isinstance(value, dict) else range(len(value)))
    elif isinstance(value, tuple) and any(type(item) is Tensor for item in value):
        yield Holder(name, value, range(len(value)), whole=False)
    elif isinstance(value, np.ndarray) or (isinstance(value, set) and len(value) <= LARGEST_CONTAINER):
        yield Holder(name, value, (), whole=False)
    elif inspect.isfunction(value) and _is_entered(value.__module__):
        yield from (Holder(key, cell, [""], whole=False) for key, cell in _cells(value))


def _reached_from(name: str, value: Any, names: Names) -> list[tuple[str, Any]]:
    if isinstance(value, functools.partial):
        return [(name, value.func), (name, value.args), (name, value.keywords)]
    if inspect.ismethod(value):
        return [("self", value.__self__), (name, value.__func__)]
    if isinstance(value, staticmethod | classmethod | property | functools.cached_property):
        return [(name, getattr(value, key, None)) for key in ("__func__", "fget", "func")]
    if inspect.isfunction(value):
        defaults = (value.__defaults__, value.__kwdefaults__)
        own = _below(name, vars(value).items())
        return [*variables(value), *((name, d) for d in defaults), *own] if _is_entered(value.__module__) else []
    if isinstance(value, dict | list | tuple | deque | set | frozenset):
        return _below(name, _items(value, names)) if len(value) <= LARGEST_CONTAINER else []
    if not _has_attributes(value):
        return []
    homes = _named_homes(name, value)
    inside = [
        entry for label, home in homes for entry in _below(label, [(k, home[k]) for k in _attributes(value, home)])
    ]
    if isinstance(value, nn.Module):
        inside += _below(name, value._modules.items())
    if isinstance(value, Optimizer):
        inside += [
            e
            for label, group, keys in _other_options(name, value)
            for e in _below(label, [(k, group[k]) for k in keys])
        ]
    classes = value.__bases__ if isinstance(value, type) else (type(value),)
    return inside + [(c.__name__, c) for c in classes]


def _items(container: Any, names: Names) -> Iterator[tuple[Any, Any]]:
    if isinstance(container, dict):
        return ((names.of(key), item) for key, item in container.items())
    return names.entries(container) if isinstance(container, set | frozenset) else iter(enumerate(container))


def _below(name: str, inside: Iterable[tuple[Any, Any]]) -> list[tuple[str, Any]]:
    return [(f"{name}.{key}".lstrip("."), item) for key, item in inside]


def _spaces_of(value: Any) -> Iterator[tuple[dict[str, Any], set[str]]]:
    """The globals that a function mentions, and the variables of the user's modules among them."""
    if not inspect.isfunction(value) or not is_users(value.__globals__.get("__name__", "")):
        return
    space, own = value.__globals__, set(globals_in(value.__code__))
    yield space, own & space.keys()
    for found in (space[name] for name in sorted(own & space.keys())):
        if isinstance(found, types.ModuleType) and is_users(found.__name__):
            yield vars(found), set(names_in(value.__code__)) & vars(found).keys()


def _cells(function: types.FunctionType) -> Iterator[tuple[str, types.CellType]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if cell != types.CellType():  # an empty one
            yield name, cell


def _has_attributes(value: Any) -> bool:
    if isinstance(value, nn.Module | Distribution | Transform | Optimizer | LRScheduler):
        return True
    if isinstance(value, type):
        return is_users(value.__module__)
    if isinstance(value, types.ModuleType) or not _homes(value):
        return False
    if inspect.isfunction(value):
        return bool(vars(value)) and _is_entered(value.__module__)
    return isinstance(value, _NAMESPACES + _CONTAINERS) or _is_entered(type(value).__module__)


def _homes(owner: Any) -> list[Any]:
    """Where an object keeps its attributes."""
    own = [vars(owner)] if hasattr(owner, "__dict__") else []
    return own + ([_Slots(owner)] if _slots(type(owner)) else [])


def _named_homes(name: str, owner: Any) -> list[tuple[str, Any]]:
    """The same with the names that lead there; of an optimiser the state that belongs to no parameter, too."""
    homes = [(name, home) for home in _homes(owner)]
    if isinstance(owner, LRScheduler):
        homes.append((f"{name}.{_LAST_RATES}", _LastRates(owner)))
    return [*homes, (f"{name}.state", owner.state)] if isinstance(owner, Optimizer) else homes


def is_option(value: Any) -> bool:
    """Whether an option of a group of parameters is one that torch's optimisers have, and change."""
    if type(value) is tuple:
        return all(map(is_option, value))
    return isinstance(value, bool | int | float | str | Tensor | None)


def _other_options(name: str, owner: Optimizer) -> list[tuple[str, dict[str, Any], list[str]]]:
    """The groups of an optimiser, each with its name and the keys of other options, such as lists and objects."""
    groups = enumerate(owner.param_groups)
    return [(f"{name}.param_groups.{n}", g, [k for k in g if k != "params" and not is_option(g[k])]) for n, g in groups]


def _slots(kind: type) -> list[str]:
    bases = [base for base in kind.__mro__ if _is_entered(base.__module__)]
    return [key for base in bases for key, item in vars(base).items() if inspect.ismemberdescriptor(item)]


def _attributes(owner: Any, home: Iterable[Any]) -> list[Any]:
    left_out, machinery = _uncounted(owner)
    of_text = isinstance(owner, Optimizer)  # other keys are parameters
    return [
        key
        for key in home
        if key not in left_out and not str(key).startswith(machinery) and (not of_text or isinstance(key, str))
    ]


def _uncounted(owner: Any) -> tuple[set[str], tuple[str, ...]]:
    """Keys of an object that do not count, and what the names of others begin with."""
    known = isinstance(owner, Distribution | Transform)
    hidden = (known or isinstance(owner, nn.Module)) and hides(type(owner).__module__)
    machinery = ("_" if hidden else "__", *_CACHES * known)
    if isinstance(owner, Optimizer):
        return _MODULE_STATE | _BY_PARAMETER, machinery
    return _MODULE_STATE | {_LAST_RATES} if isinstance(owner, LRScheduler) else _MODULE_STATE, machinery


def hides(module: Any) -> bool:
    """Whether a Python module is of a library whose objects hide machinery behind an underscore."""
    return is_known(module) or is_ours(module)


def is_users(module: Any) -> bool:
    """Whether a Python module is the user's: of no library, and none of ours."""
    return _is_entered(module) and not is_ours(module)


def _is_entered(module: Any) -> bool:
    return not (is_library(module) or is_standard(module))
