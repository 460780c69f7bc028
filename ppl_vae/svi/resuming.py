"""Where a fit begins: in a directory of its own, or at the newest checkpoint of one."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_vae.distributed import Group
from ppl_vae.errors import CheckpointError, DataError, PplVaeError, first_line
from ppl_vae.options import whole_number
from ppl_vae.rundir import RunDirectory, is_of_evaluation, tidy
from ppl_vae.storage import Checkpoint, check_storable, locked, newest, remove_debris, steps
from ppl_vae.storage.files import make_folder
from ppl_vae.storage.plain import encode
from ppl_vae.svi.facts import Change, differences, other_programs
from ppl_vae.svi.kept import moved_values, named
from ppl_vae.svi.loop import Keeper
from ppl_vae.svi.saving import BAD_STEPS, CHECKPOINTS, Every, Following, Saving, check_folders, say_skipped
from ppl_vae.svi.signals import Signals, heard
from ppl_vae.svi.state import State, check_plain, random_states
from ppl_vae.svi.stepper import Stepper

__all__ = ["Resume", "check_options", "keeping", "shared", "storable"]

Resume = Literal["auto"] | bool


@contextmanager
def keeping(
    root: Path | None, stepper: Stepper, facts: Mapping[str, Any], resume: Resume, every: Every
) -> Iterator[Keeper]:
    """Context of a fit: signals wait for its steps, and process 0 keeps checkpoints, where there is a directory.

    Args:
        root: The run directory, with no link in it, or None.
        stepper: Takes the steps.
        facts: What the run is about, see `facts_of`.
        resume: Whether to go on.
        every: Steps, or time, between two checkpoints.

    Raises:
        LockedError: Another process is in the directory.
        PplVaeError: It is neither free nor that of a run to resume, or cannot be made.
        CheckpointError: No checkpoint could hold the pair, or see `_found`.
    """
    if root is None:
        yield Keeper()
        return
    with heard(alone=stepper.group.size == 1) as signals:
        stepper.heed(signals)
        if stepper.group.leads:
            with _opened(root, stepper, facts, resume, every, signals) as saving:
                yield saving
        else:
            yield Following(signals)


@contextmanager
def _opened(
    root: Path, stepper: Stepper, facts: Mapping[str, Any], resume: Resume, every: Every, signals: Signals
) -> Iterator[Saving]:
    """Context of a fit into a run directory, which no other process may enter meanwhile."""
    try:
        for tensors in (named(stepper.pair), stepper.pair.state_dict()):
            check_storable(tensors)
    except ValueError as error:
        raise CheckpointError(f"{root}: no checkpoint could hold the pair: {error}; leave out run_dir") from error
    random_states()
    if resume is True:
        _refuse_nothing(root / CHECKPOINTS)  # before a folder is made
    make_folder(root)
    with locked(root) as hold:
        check_folders(root)
        found = _found(root / CHECKPOINTS, resume, facts)
        if found is None:
            _look_for_lost(RunDirectory(root))
            directory = RunDirectory.create(root, stepper.settings, stepper.device, again=resume == "auto")
        else:
            directory = RunDirectory(root)
        tidy(root, lambda name: not is_of_evaluation(name))
        for folder in (root / CHECKPOINTS, root / BAD_STEPS):
            remove_debris(folder)
        yield Saving(directory, hold, every, facts, signals, found)


def storable(root: Path, facts: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The facts of a run, see `facts_of`, which a checkpoint can hold.

    Raises:
        CheckpointError: None could: an option is no text, has too many levels or digits, or stands in itself.
    """
    try:
        found = facts()
        encode({"facts": found})
    except PplVaeError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{root}: no checkpoint could hold the options: {first_line(error)}; keep whole characters, at most 4300 "
            "digits and few levels in the fields of objective, schedule and optimizer, or leave out run_dir"
        ) from error
    return found


def check_options(resume: Resume, every: Every, run_dir: str | Path | None) -> None:
    """Refuses options of checkpoints that mean nothing.

    Raises:
        ValueError: There is no run directory to keep them in, or it is no path; `resume` is none of its values; or the
            interval is neither a whole number of steps, at least one, nor a positive time.
    """
    if not isinstance(run_dir, str | os.PathLike | None):
        raise ValueError(f"run_dir: expected a path as text or a pathlib.Path, found {run_dir!r}")
    if resume is not True and resume is not False and resume != "auto":  # 1 equals True, and is not True below
        raise ValueError(f"resume: expected 'auto', True or False, found {resume!r}")
    if run_dir is None and (resume or every is not None):
        raise ValueError("resume, checkpoint_every: expected run_dir=..., where checkpoints are kept, found none")
    if isinstance(every, timedelta):
        if not every > timedelta():
            raise ValueError(f"checkpoint_every: expected a positive time, found {every}")
    elif every is not None:
        whole_number("checkpoint_every", every, least=1)


def _found(folder: Path, resume: Resume, facts: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint to go on from; None where the fit begins.

    Raises:
        CheckpointError: There is none and has to be one, none can be used, or it is that of another run: the first
            fact that differs is named.
    """
    if resume is True:
        _refuse_nothing(folder)
    if resume is False or not steps(folder):
        return None
    found = newest(folder)
    say_skipped(found)
    known = found.plain.pop("facts", {})
    _refuse_another(found.path, differences(known, facts, "run"))
    try:
        check_plain(found.plain, found.step)
    except CheckpointError as error:
        raise CheckpointError(
            f"{found.path}: expected the state of a fit that this version has saved, found one that ppl_vae "
            f"{found.library} has left: {error}"
        ) from error
    moved = moved_values(found.plain["values"], found.plain["lost"], found.tensors)
    _refuse_another(found.path, other_programs(known, facts, moved))
    if changes := differences(known, facts, "machine"):
        said = ", ".join(f"{change.name} was {change.before!r} and is {change.now!r}" for change in changes)
        warnings.warn(f"the run goes on, but not bit by bit as it would have: {said}", UserWarning, stacklevel=2)
    if lost := found.plain["lost"]:
        warnings.warn(
            f"the run goes on, and not bit by bit as it would have if the programs read {', '.join(map(repr, lost))}: "
            "they had changed what no checkpoint holds",
            UserWarning,
            stacklevel=2,
        )
    return found


def _refuse_another(path: Path, changes: Sequence[Change]) -> None:
    for change in changes[:1]:
        raise CheckpointError(
            f"{path}: this run began with {change.name} = {change.before!r}, found {change.now!r}: resume with "
            "what it began with, or choose another run_dir"
        )


def _look_for_lost(directory: RunDirectory) -> None:
    """Refuses to begin anew where a run was saved, and warns where it was at work.

    Raises:
        CheckpointError: There are parameters, which are left only beside a checkpoint.
    """
    folder, reached = directory.root / CHECKPOINTS, _reached(directory)
    if directory.has_parameters:
        raise CheckpointError(
            f"{folder}: expected a checkpoint of the run, which has left parameters and had got to "
            f"{reached or 'no record'}, found none: bring its checkpoints back, choose another run_dir, or remove the "
            "directory to begin anew"
        )
    if reached:
        warnings.warn(
            f"{folder}: found no checkpoint of the run, which had got to {reached}: it begins anew",
            UserWarning,
            stacklevel=2,
        )


def _reached(directory: RunDirectory) -> str:
    """The last step in the history of a run, in words; empty if it has none."""
    try:
        history = directory.read_history()
    except DataError:
        return "a step that its damaged history does not tell"
    return f"step {history[-1]['step']}" if len(history) else ""


def _refuse_nothing(folder: Path) -> None:
    if not steps(folder):
        raise CheckpointError(f"{folder}: expected a checkpoint to resume from, found none; use resume='auto'")


def shared(state: State | None, group: Group, device: torch.device) -> State | None:
    """The state of process 0 in every process of a group."""
    text = group.texts(json.dumps(None if state is None else state.plain), device)[0]
    tensors: dict[str, Tensor] = {} if state is None else state.tensors
    values = json.loads(text)
    return None if values is None else State(group.gather(tensors, device)[0], values)
