"""The evaluations of a run: the latest as `evaluation.json` and `.npz`, earlier ones beside it, none overwritten."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ppl_vae.averages import mean_stderr, population_stderr
from ppl_vae.errors import DataError, StorageError
from ppl_vae.rundir.directory import FIGURES, RunDirectory, tidy
from ppl_vae.rundir.records import Bounds, Evaluation, Kind, Method, fingerprint, read_record, record_as_bytes
from ppl_vae.storage import EVALUATION_LOCK, arrays, as_name, calls, files, locked

__all__ = [
    "EVALUATION_FIGURE",
    "described_estimate",
    "finite_or_none",
    "is_of_evaluation",
    "outdate_evaluation",
    "read_arrays",
    "read_evaluation",
    "write_bounds",
    "write_evaluation",
]

EVALUATION_FIGURE = "log-likelihood"
_NAME, _BOUNDS = "evaluation", "bounds"
_SUFFIXES = (".npz", ".json")  # in this order: a record is there only after its arrays
_MAX_BYTES = 2**30
_ROUNDING = 1e-6  # of a mean in single precision
_PATIENCE = 60.0  # seconds until another evaluation is written; that takes a fraction of one
_ABSENT = {"exact": False, "rounded": False, "rounding": 0.0}  # in files of earlier versions, and of some methods
_ARRAYS = ("value", "stderr", "trusted", "ess", "khat", "elbo", "zero_weights", "acceptance", *_ABSENT)


def read_evaluation(root: Path) -> Evaluation:
    """Read the latest evaluation.

    Raises:
        DataError: There is none, the file does not hold an evaluation, or it is one of other parameters than the run
            has now.
    """
    record = _read(root)
    if not _is_current(root, record) and RunDirectory(root).has_parameters:
        raise DataError(
            f"{root / _NAME}.json: expected an evaluation of the parameters of the run, found one of others: run "
            f"`ppl-vae evaluate {root}`"
        )
    return record


def _read(root: Path) -> Evaluation:
    return read_record(Evaluation, root / f"{_NAME}.json", f"an evaluated run; run `ppl-vae evaluate {root}`")


def _is_current(root: Path, record: Evaluation | Bounds) -> bool:
    """Whether a record is of the parameters that the run has now, as far as it tells."""
    return record.parameters_sha256 in ("", RunDirectory(root).parameters_sha256())


def read_arrays(root: Path, names: Sequence[str], record: Evaluation | None = None) -> list[np.ndarray]:
    """Read arrays of the latest evaluation, with NaN where an error cannot be told.

    Args:
        root: The run directory.
        names: Of the arrays.
        record: The evaluation, where it has been read: its arrays and no others.

    Raises:
        DataError: The file is missing, damaged, not that of `evaluation.json`, or without one of them.
    """
    path, record = root / f"{_NAME}.npz", record or _read(root)
    try:
        content = files.read(path, _MAX_BYTES)
        if (found := calls.summed([content]).sha256) != record.arrays_sha256:
            raise StorageError(f"SHA-256 {found} for the {record.arrays_sha256} of evaluation.json")
        read = arrays.from_bytes(content, names, (record.num_data,), path, _ABSENT)
        _check_mean(record, dict(zip(names, read, strict=True)).get("value"))
    except StorageError as error:
        raise DataError(
            f"{path}: expected the arrays {', '.join(names)} of evaluation.json, found damage ({error}): run "
            f"`ppl-vae evaluate {root}`"
        ) from error
    return read


def _check_mean(record: Evaluation, value: np.ndarray | None) -> None:
    recorded = -math.inf if record.mean is None else record.mean
    if value is not None and not math.isclose(mean := float(value.mean()), recorded, rel_tol=_ROUNDING):
        raise StorageError(f"a mean of {mean:g} for the {recorded:g} of evaluation.json")


def write_evaluation(
    root: Path, record: Evaluation, result: Any, draw: Callable[[], object] = lambda: None
) -> Path | None:
    """Write an evaluation as the latest one of a run, with the arrays of its data (those of `result`).

    An earlier one by another method, or with other settings, another K, seed, other data or parameters, is kept under a
    name of its own; the same one is replaced, and goes when the new one is whole.

    Args:
        root: The run directory.
        record: The evaluation.
        result: What has the arrays: `value`, `stderr` and `trusted`, and others that it may have.
        draw: Draws its figure, before another evaluation is written.

    Returns:
        The new name of the earlier evaluation, if one was kept.

    Raises:
        LockedError: Another process has been writing one for a minute.
        DataError: The parameters are no longer those that were evaluated: the evaluation is kept under a name of its
            own.
        StorageError: The disk refuses, or a number of the record is not finite; the earlier evaluation stays, under a
            name of its own where the arrays of the new one have taken the place of its.
    """
    contents = _contents(record, {name: getattr(result, name) for name in _ARRAYS if hasattr(result, name)})
    with _alone(root):
        _refuse_outdated(root, _name_of(record), record, contents)
        old = _old(root)
        is_same = old is not None and _identity(old) == _identity(record)
        kept = _put_in_place(root, _NAME, contents, _name_of(old), is_kept=not is_same)
        draw()
    return kept


def write_bounds(root: Path, record: Bounds, lower: np.ndarray, upper: np.ndarray) -> None:
    """Write bounds on data simulated from the model: `bounds.json` and `.npz`. Earlier ones are replaced.

    Raises:
        LockedError, DataError, StorageError: As with `write_evaluation`.
    """
    contents = _contents(record, {"lower": lower, "upper": upper})
    with _alone(root):
        _refuse_outdated(root, _BOUNDS, record, contents)
        _put_in_place(root, _BOUNDS, contents, f"{_BOUNDS}-earlier", is_kept=False)


def _refuse_outdated(root: Path, name: str, record: Evaluation | Bounds, contents: Mapping[str, bytes]) -> None:
    """Keeps what was found of parameters that a run has left behind meanwhile, and says that it is not the run's."""
    if _is_current(root, record):
        return
    name = _free(root, f"{name}-of-other-parameters")
    _write(root, name, contents)
    raise DataError(
        f"{root}: expected the parameters that were evaluated, found others or none: the training has gone on "
        f"meanwhile; what was found of the earlier ones is kept in {name}.json; evaluate again when the training is "
        "finished"
    )


def described_estimate(
    result: Any,
    batch: tuple[Tensor, ...],
    data: str,
    kind: Kind,
    seed: int,
    *,
    method: Method = "is",
    settings: str = "the guide as proposal",
    num_samples: int | None = None,
    khat_threshold: float = math.nan,
    parameters_sha256: str = "",
) -> Evaluation:
    """The record of an estimate, such as a `LogLikelihood`.

    Args:
        result: The estimate.
        batch: The data evaluated.
        data: The same in words.
        kind: Whether p(x) is a probability or a density.
        seed: Of the samples.
        method: How it was made.
        settings: Its settings in words.
        num_samples: K.
        khat_threshold: Largest k-hat that is trusted at this K.
        parameters_sha256: Of the `parameters.safetensors` that was evaluated, if there is one.
    """
    elbo, ess = (getattr(result, name, None) for name in ("elbo", "ess"))
    return Evaluation(
        data=data,
        data_sha256=fingerprint(*batch),
        num_data=len(batch[0]),
        event_size=result.num_dimensions,
        kind=kind,
        method=method,
        settings=settings,
        num_samples=num_samples,
        seed=seed,
        mean=finite_or_none(result.value.mean()),
        mean_stderr=finite_or_none(mean_stderr(result.stderr)),
        population_stderr=finite_or_none(population_stderr(result.value)),
        elbo=None if elbo is None else finite_or_none(elbo.mean()),
        ess=None if ess is None else float(np.median(ess)),
        khat_threshold=finite_or_none(khat_threshold),
        share_untrusted=result.share_untrusted,
        seconds=result.seconds,
        verdict=str(result),
        parameters_sha256=parameters_sha256,
    )


def is_of_evaluation(name: str) -> bool:
    """Whether a file of a run is of an evaluation: those have a lock of their own, and are written while it trains."""
    return name.startswith((_NAME, _BOUNDS, EVALUATION_FIGURE))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Context in which no other process writes evaluations of the run; it may train meanwhile."""
    with locked(root, EVALUATION_LOCK, patience=_PATIENCE):
        tidy(root, is_of_evaluation)
        yield


def _contents(record: Evaluation | Bounds, found: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """What the files of a pair hold, by suffix; a record that no file can hold is refused before any is written."""
    content = arrays.to_bytes(found)
    told = record_as_bytes(replace(record, arrays_sha256=calls.summed([content]).sha256))
    return dict(zip(_SUFFIXES, (content, told), strict=True))


def _write(root: Path, name: str, contents: Mapping[str, bytes]) -> None:
    """Writes arrays, then the record with their hash: what stops it between leaves a pair that is seen to be none."""
    for suffix in _SUFFIXES:
        files.replace(root / f"{name}{suffix}", [contents[suffix]])


def _put_in_place(root: Path, name: str, contents: Mapping[str, bytes], earlier: str, is_kept: bool) -> Path | None:
    """Writes a pair in the place of an earlier one, of which a copy stands at least until the new one is whole."""
    if not files.is_file(root / f"{name}.json"):
        _write(root, name, contents)
        return None
    copy = _copy(root, name, earlier)
    _write(root, name, contents)
    if is_kept:
        return copy
    _remove(root, copy.stem)
    return None


def finite_or_none(value: float) -> float | None:
    """The number, or None where JSON has none for it."""
    return float(value) if math.isfinite(value) else None


def outdate_evaluation(root: Path, steps: int) -> list[Path]:
    """Set evaluation and bounds aside whose parameters the run will leave behind, those after some steps.

    The figure of the evaluation and the parameters go: an evaluation of these that is written from now on is seen to be
    of others.

    Returns:
        Their new names.
    """
    with _alone(root):
        kept = [_outdated(root, name, steps) for name in (_NAME, _BOUNDS) if files.is_file(root / f"{name}.json")]
        RunDirectory(root).remove_parameters()
    return kept


def _outdated(root: Path, name: str, steps: int) -> Path:
    described = _name_of(_old(root)) if name == _NAME else name
    kept = _copy(root, name, f"{described}-step{steps}")
    _remove(root, name)
    picture = root / FIGURES / f"{EVALUATION_FIGURE}.png"
    if name == _NAME and not picture.parent.is_symlink() and files.is_file(picture):
        files.remove([picture])
    return kept


def _remove(root: Path, name: str) -> None:
    files.remove([path for suffix in _SUFFIXES[::-1] if files.is_file(path := root / f"{name}{suffix}")])


def _old(root: Path) -> Evaluation | None:
    """The latest evaluation; None where it is of another version, or damaged: not ours to judge."""
    try:
        return _read(root)
    except DataError:
        return None


def _name_of(old: Evaluation | None) -> str:
    if old is None:
        return f"{_NAME}-earlier"
    method = "" if old.method == "is" else f"-{old.method}"
    samples = "" if old.num_samples is None else f"-K{old.num_samples}"
    return as_name(f"{_NAME}{method}{samples}-N{old.num_data}-seed{old.seed}")


def _copy(root: Path, name: str, new: str) -> Path:
    """Copies the latest pair of files to the first name that is free: whatever stops it, one of the two is whole."""
    free = _free(root, new)
    for suffix in _SUFFIXES:
        if files.is_file(path := root / f"{name}{suffix}"):
            _copy_file(path, root / f"{free}{suffix}")
    return root / f"{free}.json"


def _free(root: Path, name: str) -> str:
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(n for n in names if not any(os.path.lexists(root / f"{n}{suffix}") for suffix in _SUFFIXES))


def _copy_file(path: Path, target: Path) -> None:
    try:
        content = files.read(path, _MAX_BYTES)
    except StorageError:  # a link, or too large: not ours to judge
        files.move(path, target)
    else:
        files.replace(target, [content])


def _identity(evaluation: Evaluation) -> tuple[str, str, int | None, int, str, str]:
    return (
        evaluation.method,
        evaluation.settings,
        evaluation.num_samples,
        evaluation.seed,
        evaluation.data_sha256,
        evaluation.parameters_sha256,
    )
