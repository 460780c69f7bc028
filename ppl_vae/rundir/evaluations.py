"""The evaluations of a run: the latest as `evaluation.json` and `.npz`, earlier ones beside it, none overwritten."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from torch import Tensor

from ppl_vae.averages import mean_stderr, population_stderr
from ppl_vae.errors import DataError
from ppl_vae.rundir.records import Bounds, Evaluation, Kind, Method, fingerprint, read_record, write_json
from ppl_vae.storage import as_name, files

__all__ = [
    "described_estimate",
    "finite_or_none",
    "outdate_evaluation",
    "read_arrays",
    "read_evaluation",
    "write_bounds",
    "write_evaluation",
]

_NAME, _BOUNDS = "evaluation", "bounds"
_ARRAYS = ("value", "stderr", "trusted", "ess", "khat", "elbo", "zero_weights", "acceptance")


def read_evaluation(root: Path) -> Evaluation:
    """Read the latest evaluation.

    Raises:
        DataError: There is none, or the file does not hold an evaluation.
    """
    expected = f"an evaluated run; run `ppl-vae evaluate {root}`"
    return read_record(Evaluation, root / f"{_NAME}.json", expected)


def read_arrays(root: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Read arrays of the latest evaluation, with NaN where an error cannot be told.

    Raises:
        DataError: The file is missing, damaged, or without one of them.
    """
    path = root / f"{_NAME}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise DataError(
            f"{path}: expected the arrays {', '.join(names)}, found damage ({error}): run `ppl-vae evaluate {root}`"
        ) from error


def write_evaluation(root: Path, record: Evaluation, result: Any) -> Path | None:
    """Write an evaluation as the latest one of a run, with the arrays of its data (those of `result`).

    One by another method, or with another K, seed or other data, is kept under a name of its own; the same one is
    replaced.

    Args:
        root: The run directory.
        record: The evaluation.
        result: What has the arrays: `value`, `stderr` and `trusted`, and others that it may have.

    Returns:
        The new name of the earlier evaluation, if one was kept.
    """
    kept = _set_aside(root, record)
    _write_arrays(root / f"{_NAME}.npz", {name: getattr(result, name) for name in _ARRAYS if hasattr(result, name)})
    write_json(root / f"{_NAME}.json", asdict(record))
    return kept


def write_bounds(root: Path, record: Bounds, lower: np.ndarray, upper: np.ndarray) -> None:
    """Write bounds on data simulated from the model: `bounds.json` and `.npz`. Earlier ones are replaced."""
    _write_arrays(root / f"{_BOUNDS}.npz", {"lower": lower, "upper": upper})
    write_json(root / f"{_BOUNDS}.json", asdict(record))


def described_estimate(
    result: Any,
    batch: tuple[Tensor, ...],
    data: str,
    kind: Kind,
    seed: int,
    *,
    event_size: int,
    method: Method = "is",
    settings: str = "the guide as proposal",
    num_samples: int | None = None,
    khat_threshold: float = math.nan,
) -> Evaluation:
    """The record of an estimate, such as a `LogLikelihood`.

    Args:
        result: The estimate.
        batch: The data evaluated.
        data: The same in words.
        kind: Whether p(x) is a probability or a density.
        seed: Of the samples.
        event_size: Number of dimensions of a datum.
        method: How it was made.
        settings: Its settings in words.
        num_samples: K.
        khat_threshold: Largest k-hat that is trusted at this K.
    """
    elbo, ess = (getattr(result, name, None) for name in ("elbo", "ess"))
    return Evaluation(
        data=data,
        data_sha256=fingerprint(*batch),
        num_data=len(batch[0]),
        event_size=event_size,
        kind=kind,
        method=method,
        settings=settings,
        num_samples=num_samples,
        seed=seed,
        mean=float(result.value.mean()),
        mean_stderr=finite_or_none(mean_stderr(result.stderr)),
        population_stderr=finite_or_none(population_stderr(result.value)),
        elbo=None if elbo is None else float(elbo.mean()),
        ess=None if ess is None else float(np.median(ess)),
        khat_threshold=finite_or_none(khat_threshold),
        share_untrusted=float((~result.trusted).mean()),
        seconds=result.seconds,
        verdict=str(result),
    )


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    files.replace(path, [content.getvalue()])


def finite_or_none(value: float) -> float | None:
    """The number, or None where JSON has none for it."""
    return float(value) if math.isfinite(value) else None


def outdate_evaluation(root: Path, steps: int) -> Path | None:
    """Set an evaluation aside whose parameters the run will leave behind, those after some steps.

    Returns:
        Its new name; None where there is none.
    """
    if not (root / f"{_NAME}.json").is_file():
        return None
    return _move(root, f"{_name_of(_old(root))}-step{steps}")


def _set_aside(root: Path, new: Evaluation) -> Path | None:
    if not (root / f"{_NAME}.json").is_file():
        return None
    old = _old(root)
    return None if old is not None and _identity(old) == _identity(new) else _move(root, _name_of(old))


def _old(root: Path) -> Evaluation | None:
    """The latest evaluation; None where it is of another version, or damaged: not ours to judge."""
    try:
        return read_evaluation(root)
    except DataError:
        return None


def _name_of(old: Evaluation | None) -> str:
    if old is None:
        return f"{_NAME}-earlier"
    method = "" if old.method == "is" else f"-{old.method}"
    samples = "" if old.num_samples is None else f"-K{old.num_samples}"
    return as_name(f"{_NAME}{method}{samples}-N{old.num_data}-seed{old.seed}")


def _move(root: Path, name: str) -> Path:
    for suffix in (".npz", ".json"):
        if (root / f"{_NAME}{suffix}").is_file():
            files.move(root / f"{_NAME}{suffix}", root / f"{name}{suffix}")
    return root / f"{name}.json"


def _identity(evaluation: Evaluation) -> tuple[str, str, int | None, int, str]:
    return (
        evaluation.method,
        evaluation.settings,
        evaluation.num_samples,
        evaluation.seed,
        evaluation.data_sha256,
    )
