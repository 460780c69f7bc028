"""A pair by its name on the command line: a recipe, `path/to/file.py:factory` or `package.module:factory`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ppl_vae.errors import DataError, PairError, PplVaeError
from ppl_vae.libraries import is_installed_file
from ppl_vae.recipes import RECIPES
from ppl_vae.rng import key, reseed, seeded
from ppl_vae.rundir import PairSpec
from ppl_vae.svi.signals import Terminated

__all__ = ["first_use", "is_binary", "is_recipe", "make_pair", "naming_the_line"]

_INITIAL, _FIRST_USE = 0x1217, 0x1218
_PROGRAMS = ("model", "guide")
_SINGLE = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)
_ROOT = Path(__file__).resolve().parents[1]


def is_recipe(name: str) -> bool:
    """Return whether the name is that of a built-in pair, which needs no code of the user's."""
    return name in RECIPES


def is_binary(spec: PairSpec) -> bool:
    """Return whether the pair is a recipe for binary data."""
    return is_recipe(spec.name) and RECIPES[spec.name].binary


def make_pair(spec: PairSpec, batch: tuple[Tensor, ...]) -> Any:
    """Make the pair for data like `batch`, arrays (N, *event); its initial parameters depend on the seed alone.

    A user's factory is called with the number of entries of a datum, one for each array, as far as it has arguments
    without a default.

    Raises:
        PairError: There is no such recipe, file, module or factory; the factory fails, or returns no pair.
        DataError: A recipe is given several arrays, or data that it cannot score.
    """
    with seeded(key(spec.seed, _INITIAL)):
        if not is_recipe(spec.name):
            return _made_by_user(spec.name, [x[0].numel() for x in batch])
        if len(batch) > 1:
            raise DataError(f"pair {spec.name!r}: expected one array, found {len(batch)}: name a pair of your own")
        if spec.latent_dim is None or spec.hidden is None:
            raise PairError(f"pair {spec.name!r}: expected the sizes of a recipe, found none: name a pair of your own")
        return RECIPES[spec.name].build(batch[0], spec.latent_dim, spec.hidden)


@contextmanager
def first_use(spec: PairSpec) -> Iterator[None]:
    """Context in which parameters that `pyro.param` makes on first use depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        reseed(key(spec.seed, _FIRST_USE))
        yield


@contextmanager
def naming_the_line(what: str, of_user: bool = False) -> Iterator[None]:
    """Turn whatever the user's code raises into one `PairError` that says where in that code.

    An error that arose in no line of theirs is none of theirs, unless `of_user` says that it must be.
    """
    try:
        yield
    except PairError as error:
        if error.__cause__ is None:
            raise
        raise PairError(f"{error}{_line(error.__cause__)}") from error
    except PplVaeError:
        raise
    except Terminated:
        raise
    except SystemExit as error:
        raise PairError(f"{what}: it ends Python by SystemExit({error.code}){_line(error)}: let it return") from error
    except Exception as error:
        line = _line(error)
        if not (line or of_user):
            raise
        raise PairError(f"{what}: {type(error).__name__}: {error}{line}") from error


def _made_by_user(name: str, sizes: list[int]) -> Any:
    place, colon, factory_name = name.rpartition(":")
    if not (colon and place and factory_name):
        raise PairError(
            f"pair {name!r}: expected {', '.join(RECIPES)}, path/to/file.py:factory or package.module:factory"
        )
    with _importing_from(Path(place).resolve().parent if place.endswith(".py") else Path.cwd()):
        with naming_the_line(f"pair {name!r}: importing {place} failed", of_user=True):
            module = _module(place)
        factory = getattr(module, factory_name, None)
        if not callable(factory):
            known = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
            raise PairError(
                f"pair {name!r}: expected a function {factory_name!r} in {place}, found {', '.join(known) or 'none'}"
            )
        arguments = _arguments(name, factory, sizes)
        with naming_the_line(f"pair {name!r}: {factory_name}({', '.join(map(str, arguments))}) failed", of_user=True):
            pair = factory(*arguments)
    if not all(callable(getattr(pair, program, None)) for program in _PROGRAMS):
        raise PairError(
            f"pair {name!r}: expected {factory_name} to return a pair (with .model and .guide), found "
            f"{type(pair).__name__}: return ppl_vae.Pair(model, guide)"
        )
    objective = getattr(pair, "objective", None)
    if objective is not None and (isinstance(objective, type) or not callable(getattr(objective, "evaluate", None))):
        raise PairError(
            f"pair {name!r}: expected pair.objective to be what trains it, such as ppl_vae.ELBO(), found "
            f"{objective!r}: give what else is meant another name"
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


def _arguments(name: str, factory: Callable[..., Any], sizes: list[int]) -> list[int]:
    """The sizes that the factory asks for; an argument with a default keeps it, for it may mean anything."""
    required = [p for p in inspect.signature(factory).parameters.values() if p.default is p.empty and p.kind in _SINGLE]
    if len(required) > len(sizes) or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise PairError(
            f"pair {name!r}: expected a factory of no argument, or of one for each array, the number of entries of a "
            f"datum; found ({', '.join(p.name for p in required)}): give the others a default"
        )
    return sizes[: len(required)]


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let the user's code import its neighbours, as a script may; the command stays in its folder."""
    sys.path.insert(0, str(folder))
    try:
        with chdir(os.curdir):
            yield
    finally:
        sys.path.remove(str(folder))


def _line(error: BaseException) -> str:
    """Where in the user's code an error arose, in words: the last line that belongs to no library."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _is_users(filename: str) -> bool:
    path = Path(filename)
    standard = Path(inspect.__file__).parent
    return path.is_file() and not (
        is_installed_file(path) or path.is_relative_to(_ROOT) or path.is_relative_to(standard)
    )
