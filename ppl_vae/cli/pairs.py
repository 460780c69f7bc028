"""A pair by its name on the command line: a recipe, `path/to/file.py:factory` or `package.module:factory`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from ppl_vae.errors import PairError, PplVaeError
from ppl_vae.recipes import RECIPES
from ppl_vae.rng import key, seeded

__all__ = ["PairSpec", "is_binary", "make_pair"]

_INITIAL = 0x1217
_PROGRAMS = ("model", "guide")


@dataclass(frozen=True)
class PairSpec:
    """Which pair, as the user named it."""

    name: str
    """A recipe, `path/to/file.py:factory` or `package.module:factory`."""
    latent_dim: int = 50
    """Dimension of z of a recipe."""
    hidden: tuple[int, ...] = (200, 200)
    """Hidden layers of a recipe."""
    seed: int = 0
    """Of the initial parameters."""

    @property
    def is_recipe(self) -> bool:
        """Whether the name is that of a built-in pair, which needs no code of the user's."""
        return self.name in RECIPES


def is_binary(spec: PairSpec) -> bool:
    """Return whether the pair is a recipe for binary data."""
    return spec.is_recipe and RECIPES[spec.name].binary


def make_pair(spec: PairSpec, x: Tensor) -> Any:
    """Make the pair for data like x (N, *event); its initial parameters depend on the seed alone.

    A user's factory is called without arguments, or with D, the number of entries of a datum, if it takes one argument.

    Raises:
        PairError: There is no such recipe, file, module or factory; the factory fails, or returns no pair.
    """
    with seeded(key(spec.seed, _INITIAL)):
        if spec.is_recipe:
            return RECIPES[spec.name].build(x, spec.latent_dim, spec.hidden)
        return _made_by_user(spec.name, x[0].numel())


def _made_by_user(name: str, event_size: int) -> Any:
    place, colon, factory_name = name.rpartition(":")
    if not (colon and place and factory_name):
        raise PairError(
            f"pair {name!r}: expected {', '.join(RECIPES)}, path/to/file.py:factory or package.module:factory"
        )
    with _importing_from(Path(place).resolve().parent if place.endswith(".py") else Path.cwd()):
        with _as_pair_error(f"pair {name!r}: importing {place} failed"):
            module = _module(place)
        factory = getattr(module, factory_name, None)
        if not callable(factory):
            known = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
            raise PairError(f"pair {name!r}: expected a function {factory_name!r} in {place}, found {known or 'none'}")
        arguments = _arguments(name, factory, event_size)
        with _as_pair_error(f"pair {name!r}: {factory_name}({', '.join(map(str, arguments))}) failed"):
            pair = factory(*arguments)
    if not all(callable(getattr(pair, program, None)) for program in _PROGRAMS):
        raise PairError(
            f"pair {name!r}: expected {factory_name} to return a pair (with .model and .guide), found "
            f"{type(pair).__name__}: return ppl_vae.Pair(model, guide)"
        )
    return pair


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place)
    if not path.is_file():
        raise PairError(f"{place}: expected a Python file, found none")
    name = f"ppl_vae_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _arguments(name: str, factory: Callable[..., Any], event_size: int) -> tuple[int, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p for p in inspect.signature(factory).parameters.values() if p.kind in kinds]
    required = [p for p in parameters if p.default is p.empty]
    if len(required) > 1:
        names = ", ".join(p.name for p in required)
        raise PairError(f"pair {name!r}: expected a factory of no argument or one, the data's size, found ({names})")
    return (event_size,) if required or len(parameters) == 1 else ()


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let the user's code import its neighbours, as a script may."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _as_pair_error(what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into one `PairError` with the line that raised."""
    try:
        yield
    except PplVaeError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise PairError(f"{what}: {type(error).__name__}: {error} ({last.filename}, line {last.lineno})") from error
