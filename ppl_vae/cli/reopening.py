"""A run opened again: its pair with its parameters, and its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer

from ppl_vae.cli.inputs import Batch, Splits, load_splits
from ppl_vae.cli.pairs import is_recipe, make_pair, naming_the_line
from ppl_vae.data import is_there
from ppl_vae.device import choose_device
from ppl_vae.errors import DataError, PairError
from ppl_vae.pair import as_pair
from ppl_vae.rundir import DataSpec, RunDirectory, RunRecord, fingerprint, read_run
from ppl_vae.storage.files import is_file
from ppl_vae.svi.edited import edited_programs

__all__ = ["as_parameters", "made_again", "reopen", "reopen_named"]


def reopen(
    root: Path, pair_name: str | None, data_dir: str | None, device: str | torch.device = "cpu"
) -> tuple[Any, Splits]:
    """Make the pair of a run again, with its parameters, on the device where it will run, and load its data.

    Tensors that programs keep as attributes come to where the pair is, and no later move takes them along.

    Raises:
        PairError: The pair is code of the user's own that is not named, or cannot be made.
        DataError: The data of the run cannot be had, or are not the same; or its parameters cannot be read.
    """
    record = read_run(root)
    if record.status != "finished":
        typer.echo(f"{root}: {_unfinished(record)}", err=True)
    pair, splits = made_again(root, record, pair_name, data_dir)
    edited = [] if is_recipe(pair_name or record.pair.name) else edited_programs(as_pair(pair), root)
    with naming_the_line(f"pair {record.pair.name!r} failed on the data of {root}"):
        as_pair(pair).prepare(*as_parameters(pair, tuple(x[:1] for x in splits.test)))
    RunDirectory(root).read_parameters(as_pair(pair).to(choose_device(device)))
    _check_parameters(root, record)
    if edited:
        typer.echo(
            f"caution: {root}: {', '.join(edited[:3])} {'is' if len(edited) == 1 else 'are'} not what was trained: "
            "what follows is of other programs with the parameters of this run",
            err=True,
        )
    return pair, splits


def _check_parameters(root: Path, record: RunRecord) -> None:
    """Refuses parameters that the fit of this run has not left."""
    if record.parameters_sha256 not in ("", RunDirectory(root).parameters_sha256()):
        anew = "fit again" if record.status == "finished" else f"`ppl-vae resume {root}`, which writes parameters anew"
        raise DataError(
            f"{root}: expected the parameters that its fit has left, found others in parameters.safetensors: they, or "
            f"run.json, are of another run; bring the file back, or {anew}"
        )


def made_again(root: Path, record: RunRecord, pair_name: str | None, data_dir: str | None) -> tuple[Any, Splits]:
    """Make the pair of a run again, with its first parameters, and load its data.

    Code of the user's runs only because the user names it here: never by a name that stands in a file.

    Raises:
        PairError: The pair is code of the user's own that is not named, or cannot be made.
        DataError: The data of the run cannot be had, or are not the same.
    """
    spec = record.pair if pair_name is None else replace(record.pair, name=pair_name)
    if not is_recipe(spec.name) and pair_name is None:
        raise PairError(
            f"{root}: the pair of this run is your own code, which runs only if you name it: add --pair FILE.py:NAME "
            f"(the run was made with {spec.name!r})"
        )
    if record.data.is_file and not is_file(Path(record.data.name)):
        raise DataError(
            f"{root}: expected the data of the run, {record.data.name}, found no such file: bring it back to that path"
        )
    splits = load_splits(_data_of(root, record.data, data_dir))
    if fingerprint(*splits.test) != record.data_sha256:
        raise DataError(
            f"{root}: the data are not those of the run ({record.data.name} has changed): its test rows may have been "
            "training rows; fit again, or bring the old file back"
        )
    return make_pair(spec, splits.train), splits


def _data_of(root: Path, spec: DataSpec, data_dir: str | None) -> DataSpec:
    """The data of a run; a folder that a file names is read, but never made or filled."""
    if data_dir is not None:
        return replace(spec, data_dir=data_dir)
    if spec.data_dir is not None and not is_there(spec.name, spec.data_dir):
        raise DataError(
            f"{root}: expected the data of the run, {spec.name}, in {spec.data_dir[:200]!r}, found none: name their "
            "folder by --data-dir; what is missing is downloaded to it"
        )
    return spec


def reopen_named(
    root: Path, pair_names: Sequence[str], data_dir: str | None, device: str | torch.device = "cpu"
) -> tuple[Any, Splits]:
    """`reopen` with the name of the run's pair among those that the user has named."""
    name = read_run(root).pair.name
    return reopen(root, name if name in pair_names else None, data_dir, device)


def as_parameters(pair: Any, batch: Batch) -> Batch:
    """A batch in the floating type of the parameters, where they are."""
    dtype, device = as_pair(pair).dtype, as_pair(pair).device
    return tuple(x.to(device, dtype if x.is_floating_point() else None) for x in batch)


def _unfinished(record: RunRecord) -> str:
    """What became of a run that did not finish."""
    if record.status == "training":
        return "the training is still going on, or was killed"
    return (
        f"the training {'was interrupted' if record.status == 'interrupted' else 'failed'} after {record.steps} steps"
    )
