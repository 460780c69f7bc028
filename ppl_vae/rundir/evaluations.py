"""The evaluations of a run: the latest as `evaluation.json` and `.npz`, earlier ones beside it, none overwritten."""

from __future__ import annotations

import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ppl_vae.errors import DataError
from ppl_vae.rundir.records import Evaluation, Kind, fingerprint, read_record, write_json
from ppl_vae.storage import as_name, files

__all__ = ["read_evaluation", "write_evaluation"]

_NAME = "evaluation"
_ARRAYS = ("value", "stderr", "ess", "khat", "elbo", "zero_weights")


def read_evaluation(root: Path) -> Evaluation:
    """Read the latest evaluation.

    Raises:
        DataError: There is none, or the file does not hold an evaluation.
    """
    expected = f"an evaluated run; run `ppl-vae evaluate {root}`"
    return read_record(Evaluation, root / f"{_NAME}.json", expected)


def write_evaluation(
    root: Path,
    result: Any,
    batch: tuple[Tensor, ...],
    data: str,
    kind: Kind,
    seed: int,
    khat_threshold: float,
) -> Path | None:
    """Write a `LogLikelihood` as the latest evaluation of a run.

    An evaluation with another K, seed or other data is kept under a name of its own; the same one is replaced.

    Args:
        root: The run directory.
        result: The `LogLikelihood`.
        batch: The data evaluated.
        data: The same in words.
        kind: Whether p(x) is a probability or a density.
        seed: Of the samples.
        khat_threshold: Largest k-hat that is trusted at this K.

    Returns:
        The new name of the earlier evaluation, if one was kept.
    """
    record = _summary(result, batch, data, kind, seed, khat_threshold)
    kept = _set_aside(root, record)
    arrays = io.BytesIO()
    np.savez(arrays, **{name: getattr(result, name) for name in _ARRAYS})
    files.replace(root / f"{_NAME}.npz", [arrays.getvalue()])
    write_json(root / f"{_NAME}.json", asdict(record))
    return kept


def _summary(
    result: Any, batch: tuple[Tensor, ...], data: str, kind: Kind, seed: int, khat_threshold: float
) -> Evaluation:
    return Evaluation(
        data=data,
        data_sha256=fingerprint(*batch),
        num_data=len(batch[0]),
        event_size=result.num_dimensions,
        kind=kind,
        num_samples=result.num_samples,
        seed=seed,
        mean=result.mean,
        mean_stderr=_finite(result.mean_stderr),
        population_stderr=_finite(result.population_stderr),
        elbo=float(result.elbo.mean()),
        ess=float(np.median(result.ess)),
        khat_threshold=_finite(khat_threshold),
        share_untrusted=float((~result.trusted).mean()),
        seconds=result.seconds,
        verdict=str(result),
    )


def _set_aside(root: Path, new: Evaluation) -> Path | None:
    if not (root / f"{_NAME}.json").is_file():
        return None
    try:
        old = read_evaluation(root)
    except DataError:  # of another version, or damaged: not ours to judge
        name = f"{_NAME}-earlier"
    else:
        if _identity(old) == _identity(new):
            return None
        name = as_name(f"{_NAME}-K{old.num_samples}-N{old.num_data}-seed{old.seed}")
    for suffix in (".npz", ".json"):
        if (root / f"{_NAME}{suffix}").is_file():
            files.move(root / f"{_NAME}{suffix}", root / f"{name}{suffix}")
    return root / f"{name}.json"


def _identity(evaluation: Evaluation) -> tuple[int, int, str]:
    return evaluation.num_samples, evaluation.seed, evaluation.data_sha256


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
