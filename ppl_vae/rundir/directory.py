"""The directory a run leaves: configuration, environment, history and parameters, under fixed names."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import platform
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from ppl_vae.arrays import as_python
from ppl_vae.belongings import Taken
from ppl_vae.distributed import current
from ppl_vae.errors import DataError, PplVaeError, StorageError
from ppl_vae.history import Record
from ppl_vae.pair import as_pair
from ppl_vae.rundir.parameters import load_parameters, parameters_of
from ppl_vae.rundir.records import RUN, RunRecord, read_run, write_json, write_run
from ppl_vae.storage import EVALUATION_LOCK, LOCK, Hold, calls, files, lent, plain, tensors
from ppl_vae.storage.versions import version_of

__all__ = [
    "FIGURES",
    "RunDirectory",
    "as_plain",
    "check_free",
    "described",
    "described_again",
    "record_as_plain",
    "status_after",
    "tidy",
]

FIGURES = "figures"

_CONFIG, _HISTORY, _PARAMETERS = "config.json", "history.jsonl", "parameters.safetensors"
_LOCKS = {LOCK, EVALUATION_LOCK}
_OWN = {RUN, *_LOCKS, _CONFIG, _PARAMETERS, _HISTORY, "environment.json", "checkpoints", "bad-steps"}
_MAX_HISTORY = 2**30
_PACKAGES = ("ppl-vae", "torch", "pyro-ppl", "numpy")


class RunDirectory:
    """`config.json`, `environment.json`, `history.jsonl` (a line an epoch), `parameters.safetensors`."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def has_parameters(self) -> bool:
        """Whether a fit that has ended has left its parameters."""
        return files.is_file(self.root / _PARAMETERS)

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
        check_free(path, allowed=_OWN if again else {RUN})
        _make(path)
        run = cls(path)
        run.write_json(_CONFIG, as_plain(settings) | ({} if device is None else {"device": str(device)}))
        run.write_json("environment.json", _environment())
        run.write_history([])
        return run

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of the run."""
        write_json(self.root / name, value)

    def describe(self, **changes: Any) -> None:
        """Changes fields of the description that a command has left of the run, where there is one that can be read."""
        if files.is_file(self.root / RUN):
            with suppress(DataError):  # of another version, or damaged: not ours to mend
                write_run(self.root, replace(read_run(self.root), **changes))

    def append_history(self, record: Record) -> None:
        """Adds the line of an epoch to the history, which ends in its own SHA-256."""
        files.append(self.root / _HISTORY, plain.seal(record_as_plain(record)).decode())

    def write_history(self, records: Sequence[dict[str, Any]]) -> None:
        """Writes the whole history anew: a run that goes on has no line of what came after its checkpoint."""
        files.replace(self.root / _HISTORY, map(plain.seal, records))

    def write_parameters(self, pair: Any, kept: Taken | None = None) -> None:
        """Writes every parameter and buffer of the pair; whatever stops it leaves what was there before.

        Args:
            pair: The pair.
            kept: What training has changed of what its programs keep beside them, if anything.

        Raises:
            StorageError: The disk refuses, or there is a tensor that no file can hold; its name is said.
        """
        path = self.root / _PARAMETERS
        try:
            chunks = tensors.sealed(parameters_of(as_pair(pair), kept))
        except ValueError as error:
            raise StorageError(f"{path}: not written: {error}") from error
        files.replace(path, chunks)

    def remove_parameters(self) -> None:
        """Removes the file of the parameters, if there is one: they would be those of an earlier step."""
        files.remove_if_there(self.root / _PARAMETERS)

    def parameters_sha256(self) -> str:
        """SHA-256 of the file of the parameters; empty where there is none.

        Raises:
            StorageError: The system does not let it be read.
        """
        if not self.has_parameters:
            return ""
        return calls.summed(calls.pieces(self.root / _PARAMETERS, tensors.MAX_BYTES)).sha256

    def read_parameters(self, pair: Any) -> None:
        """Loads the parameters of the run into a new pair of the same programs, a `Pair` or anything that `fit` takes.

        What training had changed of what the programs keep beside parameters and buffers, such as a running mean in an
        attribute, is as it was then, too; a warning names what no file can hold.

        Raises:
            PplVaeError: There are none yet.
            StorageError: The system does not let the file be read, or it is larger than any that was written.
            DataError: The file is damaged, or its parameters are not those of the pair, in shape and dtype; the first
                one is named.
        """
        path, pair = self.root / _PARAMETERS, as_pair(pair)
        if not files.is_file(path):
            raise PplVaeError(
                f"{path}: expected the parameters of a finished or interrupted run, found no such file: resume the run"
            )
        content = files.read(path, tensors.MAX_BYTES)
        try:
            state = tensors.from_sealed(content, path)
        except StorageError as error:
            raise DataError(
                f"{path}: expected readable parameters, found damage ({error}), or those of an earlier version"
            ) from error
        load_parameters(pair, state, path)

    def read_history(self) -> list[dict[str, Any]]:
        """The records of the history: none before the end of the first epoch, and not the last if its line is torn.

        Raises:
            DataError: Another line is damaged: it does not hold what its SHA-256 says.
        """
        path = self.root / _HISTORY
        try:
            if not files.is_file(path):
                return []
            *lines, _torn = files.read(path, _MAX_HISTORY).split(b"\n")
            return [plain.unseal(line + b"\n", Path(f"{path}, line {n}")) for n, line in enumerate(lines, 1)]
        except StorageError as error:
            raise DataError(str(error)) from error


def record_as_plain(record: Record) -> dict[str, Any]:
    """A record as JSON, which knows neither NaN nor infinity."""
    return {name: _number(value) for name, value in record._asdict().items()}


@contextmanager
def described(root: Path, record: RunRecord) -> Iterator[Hold]:
    """Context of a fit into `root`, whose description stands there before the first step, whatever ends it.

    A fit that is refused before it begins leaves nothing behind; one that is interrupted or fails says so. The lock of
    the directory is held from before the description is written until it is written for the last time, and lent to the
    fit: of several processes that begin at once one goes on, and the others touch nothing. The context gives the hold
    of it, to be checked before the run is described as finished.

    Raises:
        LockedError: Another process is at work in it.
        PplVaeError: There is something in it, or it cannot be made.
    """
    check_free(root)
    made = _make(root)
    try:
        with lent(root) as hold:
            check_free(root)  # again, now that nobody else can write in it
            write_run(root, record)
            with _told_how_it_ended(root, record, hold):
                yield hold
    except BaseException:
        with suppress(StorageError):  # not empty: it has begun, or another process has
            for folder in made:
                files.remove_empty(folder)
        raise


@contextmanager
def described_again(root: Path, record: RunRecord) -> Iterator[Hold]:
    """Context of a fit that goes on in `root`: it trains again, whatever ends it.

    A fit that is refused before it begins changes nothing. One that finds another process at work there leaves the
    description to that one. The context gives the hold of the lock, as `described` does.

    Args:
        root: The run directory.
        record: Its description.

    Raises:
        LockedError: Another process is at work there.
    """
    begun = []

    def begin() -> None:
        begun.append(record)
        write_run(root, replace(record, status="training"))

    with lent(root, begin) as hold:
        try:
            yield hold
        except BaseException as error:
            if begun and hold.lasts:
                write_run(root, _ended(root, record, error))
            raise


@contextmanager
def _told_how_it_ended(root: Path, record: RunRecord, hold: Hold) -> Iterator[None]:
    """Context of a fit that may be refused before it begins: then it takes its description away again."""
    try:
        yield
    except BaseException as error:
        if not hold.lasts:
            raise  # what is there now may be another one's
        if files.is_file(root / _CONFIG):
            write_run(root, _ended(root, record, error))
        else:
            files.remove([root / RUN])
        raise


def check_free(root: Path, allowed: Collection[str] = ()) -> None:
    """Refuses a run directory that holds something.

    Raises:
        PplVaeError: There is a file in it, or in its place.
    """
    if os.path.lexists(root) and (not files.is_folder(root) or _names_in(root) - set(allowed) - _LOCKS):
        raise PplVaeError(f"run directory {root}: expected a new or empty directory, found files; choose another name")


def tidy(root: Path, of: Callable[[str], bool]) -> None:
    """Removes what processes that were killed have left half-written in a run directory and among its figures.

    Args:
        root: The run directory.
        of: What only this process writes there, by name, which a lock makes sure of.

    Raises:
        StorageError: The disk refuses.
    """
    for folder in (root, root / FIGURES):
        if folder == root or not folder.is_symlink():  # a link leads to what is not of the run
            files.remove_debris(folder, of)


def _names_in(root: Path) -> set[str]:
    """What is in a folder but what processes that were killed have left half-written."""
    return {name for name in files.listed(root) if not files.is_debris(name)}


def _make(root: Path) -> list[Path]:
    try:
        return files.make_folder(root)
    except StorageError as error:
        raise StorageError(f"run directory {error}: choose another run_dir") from error


def status_after(error: BaseException | None) -> Literal["interrupted", "failed"]:
    """The status of a run that did not finish."""
    return "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"  # by SIGINT, by SIGTERM


def _ended(root: Path, record: RunRecord, error: BaseException) -> RunRecord:
    """The description of a run that did not finish: what the fit has written of itself, else what its history tells."""
    status = status_after(error)
    with suppress(DataError):
        if (told := read_run(root)).status != "training":
            return replace(told, status=status)
    with suppress(DataError, LookupError):  # of a damaged history: what has ended the fit is the news
        if history := RunDirectory(root).read_history():
            step, seconds = history[-1]["step"], history[-1]["seconds"]
            return replace(record, status=status, steps=step, best_step=step, seconds=seconds)
    return replace(record, status=status)


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version_of(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "processes": current().size,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def as_plain(value: Any) -> Any:
    """A value as JSON: dataclasses become their class and fields, callables their name."""
    value = as_python(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: as_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, functools.partial):
        return {
            "partial": as_plain(value.func),
            "args": as_plain(list(value.args)),
            "keywords": as_plain(value.keywords),
        }
    if isinstance(value, dict):
        return {str(k): as_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__qualname__", None) or type(value).__name__


def _number(value: Any) -> Any:
    """A number of a record as JSON, which knows neither NaN nor infinity; what is recorded by site is a dictionary."""
    if isinstance(value, Mapping):
        return {name: [_number(float(number)) for number in numbers] for name, numbers in value.items()}
    return None if math.isnan(value) else value if math.isfinite(value) else str(value)
