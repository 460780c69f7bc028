"""Which modules of Python, and which files, are a library's and not the user's."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

__all__ = ["is_installed_file", "is_known", "is_library", "is_ours", "is_standard"]

_KNOWN = {"torch", "pyro", "numpy", "builtins", "collections", "functools", "typing", "zuko"}
_PYRO = ("pyro", "ppl_vae")
_FOLDERS = ("site-packages", "dist-packages")


def is_known(module: Any) -> bool:
    """Whether a module, by its name, is of a library of which we know what its objects hold."""
    return _top(module) in _KNOWN


def is_standard(module: Any) -> bool:
    """Whether a module, by its name, is of Python itself."""
    return _top(module) in sys.stdlib_module_names


def is_ours(module: Any) -> bool:
    """Whether a module, by its name, is of ppl_vae."""
    return _top(module) == "ppl_vae"


def is_library(module: Any) -> bool:
    """Whether a module, by its name, is of a library: one that we know, or an installed one that uses no Pyro.

    A package that uses Pyro or ppl_vae holds programs, installed or not. What compiled extensions give for a module,
    which need not be a text, is a library's.

    Example:
        >>> is_library("torch.nn"), is_library("pytest"), is_library("__main__"), is_library(None)
        (True, True, False, False)
    """
    if not isinstance(module, str | None):
        return True
    # A package may load more of its modules, and Pyro with them, between two calls.
    return is_known(module) or _is_installed(_top(module), len(sys.modules))


def is_installed_file(path: Path) -> bool:
    """Whether a file lies where packages are installed."""
    return any(part in _FOLDERS for part in path.parts)


def _top(module: Any) -> str:
    return _first_part(module) if isinstance(module, str) else ""


@functools.lru_cache(maxsize=4096)
def _first_part(module: str) -> str:
    return module.split(".")[0]


@functools.lru_cache(maxsize=1024)
def _is_installed(package: str, _: int) -> bool:
    module = sys.modules.get(package)
    if module is None or package == "__main__":
        return False
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    installed = any(is_installed_file(Path(place)) for place in places if isinstance(place, str))
    return installed and not _uses_pyro(package)


def _uses_pyro(package: str) -> bool:
    loaded = [m for name, m in sys.modules.copy().items() if name == package or name.startswith(f"{package}.")]
    values = (value for m in loaded for value in getattr(m, "__dict__", {}).copy().values())
    return any(_is_of_pyro(value) for value in values)


def _is_of_pyro(value: Any) -> bool:
    if isinstance(value, ModuleType):
        return _top(vars(value).get("__name__")) in _PYRO
    return isinstance(value, type | FunctionType) and _top(value.__module__) in _PYRO
