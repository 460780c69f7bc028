"""What the command writes into a run directory beside the files of `fit`, and reads back with distrust."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ppl_vae.cli.inputs import DataSpec
from ppl_vae.cli.pairs import PairSpec
from ppl_vae.errors import DataError

__all__ = ["Evaluation", "RunRecord", "read_evaluation", "read_run", "write_record"]

T = TypeVar("T")

_RUN, _EVALUATION = "run.json", "evaluation.json"


@dataclass(frozen=True)
class RunRecord:
    """`run.json`: the command of a finished fit, what it was given and what it cost."""

    command: tuple[str, ...]
    """The command line."""
    pair: PairSpec
    """The pair."""
    data: DataSpec
    """The data; a file by its absolute path."""
    data_sha256: str
    """Fingerprint of the test data: another split, or another file of the same name, is noticed."""
    num_parameters: int
    """Number of trained scalars."""
    steps: int
    """Steps done."""
    best_step: int
    """Step of the parameters kept."""
    seconds: float
    """Wall time of training."""


@dataclass(frozen=True)
class Evaluation:
    """`evaluation.json`: the importance-sampled log-likelihood of test data, in nats per datum."""

    data: str
    """What was evaluated, in words."""
    data_sha256: str
    """Hash of the data: only equal data are compared."""
    num_data: int
    """Number of data N."""
    event_size: int
    """Number of dimensions of a datum."""
    num_samples: int
    """K."""
    seed: int
    """Of the samples."""
    mean: float
    """Mean of log p(x)."""
    mean_stderr: float
    """Its Monte Carlo standard error on these data."""
    population_stderr: float | None
    """Its standard error as an estimate for new data; absent where N = 1."""
    elbo: float
    """Mean ELBO."""
    ess: float
    """Median effective sample size."""
    share_khat: float
    """Share of the data with k-hat above 0.7."""
    seconds: float
    """Wall time of the evaluation."""
    verdict: str
    """The same in a sentence."""


def write_record(root: Path, record: RunRecord | Evaluation) -> None:
    """Write a record as JSON under its fixed name."""
    name = _RUN if isinstance(record, RunRecord) else _EVALUATION
    text = json.dumps(asdict(record), indent=2, allow_nan=False)
    (root / name).write_text(text + "\n", encoding="utf-8")


def read_run(root: Path) -> RunRecord:
    """Read `run.json`.

    Raises:
        DataError: There is none, or it does not hold a record of a run.
    """
    path = root / _RUN
    fields = _json_object(path, "a run directory of a finished `ppl-vae fit`")
    specs = {"pair": _record(PairSpec, fields.get("pair"), path), "data": _record(DataSpec, fields.get("data"), path)}
    return _record(RunRecord, fields | specs, path)


def read_evaluation(root: Path) -> Evaluation:
    """Read `evaluation.json`.

    Raises:
        DataError: There is none, or it does not hold an evaluation.
    """
    path = root / _EVALUATION
    return _record(Evaluation, _json_object(path, f"an evaluated run; run `ppl-vae evaluate {root}`"), path)


def _json_object(path: Path, expected: str) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path.parent}: expected {expected}, found no {path.name} in it")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected JSON, found damage ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _record(kind: type[T], fields: Any, path: Path) -> T:
    """Make a dataclass of JSON fields, each of which must have the type that the class declares."""
    hints = get_type_hints(kind)
    if not isinstance(fields, Mapping) or set(fields) != set(hints):
        raise DataError(f"{path}: expected the fields {', '.join(hints)}, found others: it is of another version")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    if wrong := [name for name, value in values.items() if not _fits(value, hints[name])]:
        raise DataError(f"{path}: expected {wrong[0]} to be {hints[wrong[0]]}, found {values[wrong[0]]!r}")
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(entry, get_args(hint)[0]) for entry in value)
    return type(value) is hint or (hint is float and type(value) is int)
