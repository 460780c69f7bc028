"""The description of a run, `run.json`: written before the training starts, and read back with distrust."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from ppl_vae.errors import DataError, PplVaeError, StorageError
from ppl_vae.options import LARGEST
from ppl_vae.rundir.specs import DataSpec, EvaluationSpec, PairSpec, TrainingSpec, check_range
from ppl_vae.storage import files, plain

__all__ = [
    "Bounds",
    "Evaluation",
    "Kind",
    "Method",
    "RunRecord",
    "fingerprint",
    "read_record",
    "read_run",
    "record_as_bytes",
    "write_json",
    "write_record",
    "write_run",
]

T = TypeVar("T")

Kind = Literal["probability", "density"]
Method = Literal["is", "ais", "exact"]

RUN = "run.json"
_MAX_BYTES = 2**24
_INDENT = 2
_MOST = sys.float_info.max
_ROUNDED = 1 + 1e-6  # an effective size of all samples, as a ratio of sums
_EXACT = 2.0**53  # below it double precision holds every whole number
_SPECS: dict[str, type] = {"pair": PairSpec, "data": DataSpec}
_OPTIONAL_SPECS: dict[str, type] = {"training": TrainingSpec, "evaluation": EvaluationSpec}


@dataclass(frozen=True)
class RunRecord:
    """`run.json`: the command of a fit, what it was given, how far it came and what it cost.

    Raises:
        DataError: A number is out of its range.
    """

    command: tuple[str, ...]
    """The command line."""
    pair: PairSpec
    """The pair."""
    data: DataSpec
    """The data; a file by its absolute path."""
    data_sha256: str
    """Fingerprint of the test data: another split, or another file of the same name, is noticed."""
    device: str
    """Where it trained."""
    num_parameters: int
    """Number of trained scalars."""
    training: TrainingSpec | None = None
    """How it trains; None where that was no command's."""
    evaluation: EvaluationSpec | None = None
    """The evaluation at the end, if there is one."""
    status: Literal["training", "finished", "interrupted", "failed"] = "training"
    """How far the training came; one that was killed stays at "training"."""
    steps: int = 0
    """Steps done; of a run that did not finish, those of its parameters, or of its newest checkpoint."""
    best_step: int = 0
    """Step of the parameters kept."""
    seconds: float = 0.0
    """Wall time of training."""
    parameters_sha256: str = ""
    """SHA-256 of the `parameters.safetensors` that the fit has left; empty where it has left none."""

    def __post_init__(self) -> None:
        """Looks at the numbers."""
        check_range(self, ("num_parameters", "steps", "best_step", "seconds"), least=0, most=_MOST)


@dataclass(frozen=True)
class Evaluation:
    """`evaluation.json`: the log-likelihood of test data, in nats per datum.

    Raises:
        DataError: There are no data or samples, or another number is out of its range.
    """

    data: str
    """What was evaluated, in words."""
    data_sha256: str
    """Hash of the data: only equal data are compared."""
    num_data: int
    """Number of data N."""
    event_size: int
    """Number of dimensions of a datum; 0 where masks leave more of some data than of others."""
    kind: Kind
    """What p(x) is: numbers of one kind are not compared with those of the other."""
    method: Method
    """Importance sampling, annealed importance sampling, or exact."""
    settings: str
    """Its settings in words."""
    num_samples: int | None
    """K, samples or chains for each datum; absent where it is exact."""
    seed: int
    """Of the samples."""
    mean: float | None
    """Mean of log p(x); absent where it is minus infinity, since a datum has probability 0."""
    mean_stderr: float | None
    """Its Monte Carlo standard error on these data, 0 where it is exact; absent where K = 1."""
    population_stderr: float | None
    """Its standard error as an estimate for new data; absent where N = 1."""
    elbo: float | None
    """Mean ELBO; absent where the method does not tell, or where it is minus infinity, since a draw was impossible."""
    ess: float | None
    """Median effective sample size; absent where it is exact."""
    khat_threshold: float | None
    """Largest k-hat that is trusted at this K, min(1 - 1/log10 K, 0.7); absent up to K = 10, or without k-hat."""
    share_untrusted: float
    """Share of the data of which neither the estimate nor its error can be trusted."""
    seconds: float
    """Wall time of the evaluation."""
    verdict: str
    """The same in a sentence."""
    parameters_sha256: str = ""
    """SHA-256 of the `parameters.safetensors` that was evaluated; empty where there was no such file."""
    arrays_sha256: str = ""
    """SHA-256 of `evaluation.npz`; `write_evaluation` puts it in."""

    def __post_init__(self) -> None:
        """Looks at the numbers."""
        check_range(self, ("num_data", "num_samples"), least=1)
        check_range(self, ("event_size",), least=0)
        check_range(self, ("mean_stderr", "population_stderr", "seconds"), least=0, most=_MOST)
        check_range(self, ("ess",), least=0, most=_MOST if self.num_samples is None else self.num_samples * _ROUNDED)
        check_range(self, ("khat_threshold", "share_untrusted"), least=0, most=1)


@dataclass(frozen=True)
class Bounds:
    """`bounds.json`: bounds on log p(x) from both sides, of data simulated from the model, in nats per datum.

    Raises:
        DataError: A number is out of its range.
    """

    data: str
    """The data whose form the simulated ones have, in words."""
    num_data: int
    """Number of simulated data."""
    settings: str
    """How it was annealed, in words."""
    seed: int
    """Of data and chains."""
    lower: float
    """Mean of the lower bounds."""
    upper: float
    """Mean of the upper bounds."""
    gap: float
    """Mean of upper - lower."""
    gap_stderr: float | None
    """Its standard error; absent where N = 1."""
    seconds: float
    """Wall time."""
    verdict: str
    """The same in a sentence."""
    parameters_sha256: str = ""
    """SHA-256 of the `parameters.safetensors` that was evaluated; empty where there was no such file."""
    arrays_sha256: str = ""
    """SHA-256 of `bounds.npz`; `write_bounds` puts it in."""

    def __post_init__(self) -> None:
        """Looks at the numbers."""
        check_range(self, ("num_data",), least=1)
        check_range(self, ("gap_stderr", "seconds"), least=0, most=_MOST)


def write_run(root: Path, record: RunRecord) -> None:
    """Write `run.json`."""
    write_record(root / RUN, record)


def read_run(root: Path) -> RunRecord:
    """Read `run.json`.

    Raises:
        DataError: There is none, or it does not hold a record of a run.
    """
    path = root / RUN
    fields = _fields(path, "a run directory of `ppl-vae fit`")
    specs: dict[str, Any] = {name: _record(kind, fields.get(name), path) for name, kind in _SPECS.items()}
    optional = {name: kind for name, kind in _OPTIONAL_SPECS.items() if fields.get(name) is not None}
    specs |= {name: _record(kind, fields[name], path) for name, kind in optional.items()}
    return _record(RunRecord, fields | specs, path)


def read_record(kind: type[T], path: Path, expected: str) -> T:
    """Read a file that holds the fields of a dataclass; `expected` says what a missing one should have been.

    Raises:
        DataError: There is none, or it holds something else.
    """
    return _record(kind, _fields(path, expected), path)


def write_record(path: Path, record: RunRecord | Evaluation | Bounds) -> None:
    """Write the fields of a record, and their SHA-256, that `read_record` compares.

    Raises:
        StorageError: The disk refuses, or a number is not finite; the file is whole, as with `files.replace`.
    """
    files.replace(path, [record_as_bytes(record)])


def record_as_bytes(record: RunRecord | Evaluation | Bounds) -> bytes:
    """Return what `write_record` writes.

    Raises:
        StorageError: A number is not finite; its field is named.
    """
    return plain.seal(asdict(record), _INDENT)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is whole or as it was before, whenever the process or the machine stops.

    Raises:
        StorageError: The disk refuses.
    """
    files.replace(path, [(json.dumps(value, indent=_INDENT, allow_nan=False) + "\n").encode()])


def fingerprint(*arrays: Tensor) -> str:
    """Return a hash of shapes and values, the same for the same data only, of whatever type they are."""
    digest = hashlib.sha256()
    for x in arrays:
        digest.update(str(tuple(x.shape)).encode())
        values = x.to("cpu", torch.float64)
        digest.update(values.contiguous().numpy().tobytes())
        if x.dtype == torch.int64 and bool((values.abs() >= _EXACT).any()):
            digest.update(x.to("cpu").contiguous().numpy().tobytes())
    return digest.hexdigest()


def _fields(path: Path, expected: str) -> dict[str, Any]:
    try:
        if not files.is_file(path):
            raise DataError(f"{path.parent}: expected {expected}, found no {path.name} in it")
        return plain.unseal(files.read(path, _MAX_BYTES), path, _INDENT)
    except StorageError as error:
        raise DataError(str(error)) from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _record(kind: type[T], fields: Any, path: Path) -> T:
    """Make a dataclass of JSON fields, each of which must have the type that the class declares."""
    hints = _hints(kind)  # type: ignore[arg-type]  # a class is hashable, whatever it makes
    if not isinstance(fields, Mapping) or set(fields) != set(hints):
        raise DataError(f"{path}: expected the fields {', '.join(hints)}, found others: it is of another version")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    if wrong := [name for name, value in values.items() if not _fits(value, hints[name])]:
        expected, found = _in_words(hints[wrong[0]], values[wrong[0]]), repr(values[wrong[0]])[:200]
        raise DataError(f"{path}: expected {wrong[0]} to be {expected}, found {found}")
    try:
        return kind(**values)
    except PplVaeError as error:
        raise DataError(f"{path}: {error}") from error


def _in_words(hint: Any, value: Any) -> str:
    """What a value has to be that does not fit: of a type, or a number of a range."""
    if type(value) is int and _fits(0, hint):
        kind = "number" if _fits(0.5, hint) else "whole number"
        return f"a {kind} from {-LARGEST} to {LARGEST}"
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(entry, get_args(hint)[0]) for entry in value)
    if type(value) is int:
        return hint in (int, float) and abs(value) <= LARGEST
    return type(value) is hint
