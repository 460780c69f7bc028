"""Finds the modules and parameters that a program can reach without running it."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from ppl_vae.libraries import is_known, is_library

__all__ = ["LARGEST_CONTAINER", "Program", "globals_in", "names_in", "reachable", "variables"]

Program = Callable[..., Any]

LARGEST_CONTAINER = 1000
# The body of a class looks a name up among its own first.
_OF_GLOBALS = {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_KEPT = (nn.Module, nn.Parameter, list, tuple, dict)


def reachable(role: str, program: Program, closed: type) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Yields (name, module or parameter) for everything a program can reach without running it.

    Objects of the type `closed` are not entered, and of those of a library only what they hold themselves.
    """
    queue: list[tuple[str, Any]] = [(role, program)]
    seen: set[int] = set()
    while queue:
        name, value = queue.pop(0)
        if id(value) in seen or isinstance(value, closed):
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module | nn.Parameter):
            yield name, value
        else:
            queue += _held_by(name, value)


def _held_by(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, functools.partial):
        return [(name, value.func), (name, value.args), (name, value.keywords)]
    if inspect.ismethod(value):
        return [("self", value.__self__), (name, value.__func__)]
    if inspect.isfunction(value):
        return [] if is_known(value.__module__) else variables(value)
    if isinstance(value, dict) and len(value) <= LARGEST_CONTAINER:
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, list | tuple) and len(value) <= LARGEST_CONTAINER:
        return [(f"{name}_{i}", item) for i, item in enumerate(value)]
    if isinstance(value, type):
        return _of_classes(value)
    if not hasattr(value, "__dict__") or isinstance(value, types.ModuleType) or is_known(type(value).__module__):
        return []
    own = vars(value).items()
    return _kept(own) if is_library(type(value).__module__) else [*own, *_of_classes(type(value))]


def _of_classes(owner: type) -> list[tuple[str, Any]]:
    """What a class and its bases keep that is no method: a module or parameter as a class attribute, say."""
    own = [base for base in owner.__mro__ if not is_library(base.__module__)]
    return _kept((name, item) for base in own for name, item in vars(base).items() if not name.startswith("__"))


def _kept(found: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(name, item) for name, item in found if isinstance(item, _KEPT)]


def variables(function: types.FunctionType) -> list[tuple[str, Any]]:
    """What a function finds in its closure and its globals, by name, and what it wraps."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    nonlocals = [(name, cell.cell_contents) for name, cell in cells if _is_filled(cell)]
    known = function.__globals__
    globals_ = [(name, known[name]) for name in globals_in(function.__code__) if name in known]
    wrapped = [("wrapped", function.__wrapped__)] if hasattr(function, "__wrapped__") else []
    return nonlocals + globals_ + wrapped


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def names_in(code: types.CodeType) -> list[str]:
    """Every name of a global or an attribute that a function mentions, inner functions included."""
    return [name for own in _with_inner(code) for name in own.co_names]


@functools.lru_cache(maxsize=4096)
def globals_in(code: types.CodeType) -> tuple[str, ...]:
    """Every name of a global that a function mentions, inner functions included; none of an attribute."""
    steps = (step for own in _with_inner(code) for step in dis.get_instructions(own))
    return tuple(dict.fromkeys(str(step.argval) for step in steps if step.opname in _OF_GLOBALS))


def _with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _with_inner(constant)
