"""Finds the modules and parameters that a program can reach without running it."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

__all__ = ["Program", "reachable"]

Program = Callable[..., Any]

_LARGEST_CONTAINER = 1000
_KEPT = (nn.Module, nn.Parameter, list, tuple, dict)
_LIBRARIES = ("torch", "pyro", "numpy", "builtins", "collections", "functools", "typing", "zuko")


def reachable(role: str, program: Program, closed: type) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Yields (name, module or parameter) for everything a program can reach without running it.

    Objects of the type `closed` are not entered.
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
    of_library = _module_of(value).split(".")[0] in _LIBRARIES
    if inspect.isfunction(value):
        return [] if of_library else _variables(value)
    if isinstance(value, dict) and len(value) <= _LARGEST_CONTAINER:
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, list | tuple) and len(value) <= _LARGEST_CONTAINER:
        return [(f"{name}_{i}", item) for i, item in enumerate(value)]
    if hasattr(value, "__dict__") and not of_library and not isinstance(value, type | types.ModuleType):
        return [*vars(value).items(), *_of_classes(type(value))]
    return _of_classes(value) if isinstance(value, type) else []


def _of_classes(owner: type) -> list[tuple[str, Any]]:
    """What a class and its bases keep that is no method: a module or parameter as a class attribute, say."""
    own = [base for base in owner.__mro__ if base.__module__.split(".")[0] not in _LIBRARIES]
    found = [(name, item) for base in own for name, item in vars(base).items() if not name.startswith("__")]
    return [(name, item) for name, item in found if isinstance(item, _KEPT)]


def _module_of(value: Any) -> str:
    return (value.__module__ if inspect.isfunction(value) else type(value).__module__) or ""


def _variables(function: types.FunctionType) -> list[tuple[str, Any]]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    nonlocals = [(name, cell.cell_contents) for name, cell in cells if _is_filled(cell)]
    known = function.__globals__
    globals_ = [(name, known[name]) for name in _names(function.__code__) if name in known]
    wrapped = [("wrapped", function.__wrapped__)] if hasattr(function, "__wrapped__") else []
    return nonlocals + globals_ + wrapped


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _names(code: types.CodeType) -> list[str]:
    nested = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return list(code.co_names) + [name for inner in nested for name in _names(inner)]
