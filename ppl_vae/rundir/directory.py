"""The directory a run leaves: configuration, environment, history and parameters, under fixed names."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import platform
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from ppl_vae.distributed import current
from ppl_vae.errors import DataError, PplVaeError
from ppl_vae.history import Record
from ppl_vae.pair import Pair, misfit
from ppl_vae.rundir.records import RUN, RunRecord, write_json, write_run
from ppl_vae.storage import LOCK
from ppl_vae.storage.files import replace as replace_file

__all__ = ["RunDirectory", "check_free", "described", "plain"]

_CONFIG, _PARAMETERS, _HISTORY = "config.json", "parameters.safetensors", "history.jsonl"
_OWN = {RUN, LOCK, _CONFIG, _PARAMETERS, _HISTORY, "environment.json", "checkpoints"}
_PACKAGES = ("ppl-vae", "torch", "pyro-ppl", "numpy")


class RunDirectory:
    """`config.json`, `environment.json`, `history.jsonl` (a line an epoch), `parameters.safetensors`."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @classmethod
    def create(
        cls, root: str | Path, settings: Any, device: torch.device | None = None, again: bool = False
    ) -> RunDirectory:
        """Makes a new run directory, or takes one that holds its description alone, and writes the configuration.

        Args:
            root: Its path.
            settings: Of the fit, a dataclass.
            device: Of the fit.
            again: Take one, too, that a run has left before its first checkpoint.

        Raises:
            PplVaeError: There is something else in it, or it cannot be made.
        """
        path = Path(root)
        check_free(path, allowed=_OWN if again else {RUN, LOCK})
        _make(path)
        run = cls(path)
        run.write_json(_CONFIG, plain(settings) | ({} if device is None else {"device": str(device)}))
        run.write_json("environment.json", _environment())
        run.write_history([])
        return run

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of the run."""
        write_json(self.root / name, value)

    def append_history(self, record: Record) -> None:
        """Adds the line of an epoch to the history."""
        with (self.root / _HISTORY).open("a", encoding="utf-8") as file:
            file.write(json.dumps({k: _finite(v) for k, v in record._asdict().items()}) + "\n")

    def write_history(self, records: Sequence[Sequence[float | None]]) -> None:
        """Writes the whole history anew: a run that goes on has no line of what came after its checkpoint."""
        lines = (json.dumps(dict(zip(Record._fields, record, strict=True))) + "\n" for record in records)
        replace_file(self.root / _HISTORY, [line.encode() for line in lines])

    def write_parameters(self, pair: Pair) -> None:
        """Writes every parameter and buffer of the pair."""
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in pair.state_dict().items()}
        part = self.root / f"{_PARAMETERS}.part"  # a kill while saving leaves what was there before
        save_file(state, part)
        part.replace(self.root / _PARAMETERS)

    def read_parameters(self, pair: Pair) -> None:
        """Loads the parameters of the run into a pair of the same programs.

        Raises:
            PplVaeError: There are none yet.
            DataError: The file is damaged, or its parameters are not those of the pair; the first one is named.
        """
        path = self.root / _PARAMETERS
        if not path.is_file():
            raise PplVaeError(f"{path}: expected the parameters of a finished or interrupted run, found no such file")
        try:
            state = load_file(path)
        except Exception as error:
            raise DataError(f"{path}: expected readable parameters, found damage ({error})") from error
        if found := misfit(pair, state):
            raise DataError(f"{path}: these parameters do not fit the pair: {found}; give it the pair that was trained")
        pair.load_state_dict(state)

    def read_history(self) -> list[dict[str, Any]]:
        """The records of the history; none before the end of the first epoch, and without a line that is torn."""
        if not (self.root / _HISTORY).is_file():
            return []
        lines = (self.root / _HISTORY).read_text(encoding="utf-8").splitlines()
        return [record for line in lines if (record := _parsed(line)) is not None]


@contextmanager
def described(root: Path, record: RunRecord) -> Iterator[None]:
    """Context of a fit into `root`, whose description stands there before the first step, whatever ends it.

    A fit that is refused before it begins leaves nothing behind; one that is interrupted or fails says so.
    """
    check_free(root)
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    _make(root)
    write_run(root, record)
    try:
        yield
    except BaseException as error:
        if (root / _CONFIG).exists():
            write_run(root, _ended(root, record, error))
        else:
            (root / RUN).unlink()
            for folder in made:
                folder.rmdir()
        raise


def check_free(root: Path, allowed: Collection[str] = ()) -> None:
    """Refuses a run directory that holds something.

    Raises:
        PplVaeError: There is a file in it, or in its place.
    """
    if root.exists() and (not root.is_dir() or {path.name for path in root.iterdir()} - set(allowed)):
        raise PplVaeError(f"run directory {root}: expected a new or empty directory, found files; choose another name")


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PplVaeError(f"run directory {root}: cannot be made ({error.strerror}): choose another run_dir") from error


def _ended(root: Path, record: RunRecord, error: BaseException) -> RunRecord:
    """The description of a run that did not finish: its parameters are those of the moment, or there are none."""
    history = RunDirectory(root).read_history()
    last: dict[str, Any] = history[-1] if history else {"step": 0, "seconds": 0.0}
    status: Literal["interrupted", "failed"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    return replace(record, status=status, steps=last["step"], best_step=last["step"], seconds=last["seconds"])


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "processes": current().size,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def plain(value: Any) -> Any:
    """A value as JSON: dataclasses become their class and fields, callables their name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, functools.partial):
        return {"partial": plain(value.func), "args": plain(list(value.args)), "keywords": plain(value.keywords)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__qualname__", None) or type(value).__name__


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
