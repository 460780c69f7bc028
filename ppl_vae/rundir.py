"""The directory a run leaves: configuration, environment, history and parameters, under fixed names."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ppl_vae.errors import DataError, PplVaeError
from ppl_vae.history import Record
from ppl_vae.pair import Pair

__all__ = ["RunDirectory"]

_PACKAGES = ("ppl-vae", "torch", "pyro-ppl", "numpy")


class RunDirectory:
    """`config.json`, `environment.json`, `history.jsonl` (a line an epoch), `parameters.safetensors`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def create(cls, root: str | Path, settings: Any) -> RunDirectory:
        """Makes a new run directory and writes what is known before the first step."""
        path = Path(root)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise PplVaeError(
                f"run directory {path}: expected a new or empty directory, found files; choose another name"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PplVaeError(f"run directory {path}: cannot be made: {error.strerror}") from error
        run = cls(path)
        run.write_json("config.json", _plain(settings))
        run.write_json("environment.json", _environment())
        return run

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of the run."""
        (self.root / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    def append_history(self, record: Record) -> None:
        """Adds the line of an epoch to the history."""
        with (self.root / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({k: _finite(v) for k, v in record._asdict().items()}) + "\n")

    def write_parameters(self, pair: Pair) -> None:
        """Writes every parameter and buffer of the pair."""
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in pair.state_dict().items()}
        save_file(state, self.root / "parameters.safetensors")

    def read_parameters(self, pair: Pair) -> None:
        """Loads the parameters of the run into a pair of the same programs."""
        path = self.root / "parameters.safetensors"
        if not path.is_file():
            raise PplVaeError(f"{path}: expected the parameters of a finished run, found no such file")
        try:
            pair.load_state_dict(load_file(path))
        except Exception as error:
            raise DataError(f"{path}: these parameters do not fit the pair: {error}") from error

    def read_history(self) -> list[dict[str, Any]]:
        """The records of the history."""
        lines = (self.root / "history.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    """A value as JSON: dataclasses become their class and fields, callables their name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, functools.partial):
        return {"partial": _plain(value.func), "args": _plain(list(value.args)), "keywords": _plain(value.keywords)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__qualname__", None) or type(value).__name__


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
