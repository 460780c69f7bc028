"""Checkpoints of a fit: when they are written, and where another process goes on from."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_vae.distributed import Group
from ppl_vae.errors import CheckpointError
from ppl_vae.history import Record
from ppl_vae.options import whole_number
from ppl_vae.rundir import RunDirectory
from ppl_vae.storage import discard_after, locked, newest, prune, remove_debris, step_folder, steps, write
from ppl_vae.storage.files import make_folder
from ppl_vae.svi.facts import first_difference
from ppl_vae.svi.guard import BadStep
from ppl_vae.svi.loop import Loop
from ppl_vae.svi.settings import FitSettings
from ppl_vae.svi.signals import Signals
from ppl_vae.svi.state import FIELDS, State, bundle, captured

__all__ = ["BAD_STEPS", "CHECKPOINTS", "Every", "Following", "Resume", "Saving", "check_options", "opened", "shared"]

CHECKPOINTS, BAD_STEPS = "checkpoints", "bad-steps"
Every = int | timedelta | None
Resume = Literal["auto"] | bool

# By default a checkpoint is due once the steps since the last one took a hundred times what it took to write.
_SHARE, _LEAST_SECONDS = 100.0, 10.0
_KEPT, _BAD_STEPS_KEPT = 2, 3


class Saving:
    """Writes a checkpoint between two steps when one is due, when a signal asks the fit to stop, and at the end.

    Args:
        directory: Of the run.
        every: Steps, or time, between two checkpoints; None so rarely that they cost a hundredth of the time at most.
        facts: What the run is about; a process that goes on has to be given the same.
        signals: What asks the fit to stop.
        state: What the fit goes on from.
    """

    def __init__(
        self, directory: RunDirectory, every: Every, facts: Mapping[str, Any], signals: Signals, state: State | None
    ) -> None:
        self.directory, self.folder, self.state = directory, directory.root / CHECKPOINTS, state
        self._every, self._facts, self._signals = every, dict(facts), signals
        self._last: tuple[int, int] = (0, 0) if state is None else (state.plain["step"], state.plain["epoch"])
        self._last_time, self._cost = time.monotonic(), _LEAST_SECONDS / _SHARE

    def at_start(self, loop: Loop) -> None:
        """Remembers what the programs keep, to know later what they have changed."""
        _ = loop.stepper.values

    def after_step(self, loop: Loop) -> None:
        """Writes a checkpoint if one is due; ends the fit if a signal has asked for it."""
        if self._signals.agreed is not None or self._is_due(loop.step):
            self.keep(loop)
        self._signals.obey(f"step {loop.step} is done and saved in {self.folder}")

    def after_bad_step(self, loop: Loop, bad: BadStep) -> None:
        """Leaves what it takes to do the step again, of the first few."""
        folder = self.directory.root / BAD_STEPS
        if len(steps(folder)) < _BAD_STEPS_KEPT:
            write(folder, bad.step, *bundle(loop, bad))

    def after_roll_back(self, loop: Loop) -> None:
        """Gives up the checkpoints of the steps that the fit has taken back: it would go on from them otherwise."""
        self.keep(loop)
        discard_after(step_folder(self.folder, loop.step))

    def at_end(self, loop: Loop) -> None:
        """Writes the last checkpoint."""
        if (loop.step, loop.epoch) != self._last:
            self.keep(loop)

    def after_epoch(self, record: Record) -> None:
        """Adds the line of an epoch to the history."""
        self.directory.append_history(record)

    def keep(self, loop: Loop) -> None:
        """Writes a checkpoint, reads it back, and removes older ones."""
        loop.stepper.settle(loop.step)  # what is not finite is never kept
        start = time.monotonic()
        tensors, values = captured(loop)
        write(self.folder, loop.step, tensors, values | {"facts": self._facts})
        prune(self.folder, _KEPT)
        self._last, self._last_time = (loop.step, loop.epoch), time.monotonic()
        self._cost = max(self._last_time - start, _LEAST_SECONDS / _SHARE)

    def _is_due(self, step: int) -> bool:
        if isinstance(self._every, int):
            return step - self._last[0] >= self._every
        waited = time.monotonic() - self._last_time
        return waited > (self._cost * _SHARE if self._every is None else self._every.total_seconds())


class Following:
    """What other processes than the first do meanwhile: they stop where it stops.

    Args:
        signals: What the processes have agreed on.
    """

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def at_start(self, loop: Loop) -> None:
        """Does nothing."""

    def after_step(self, loop: Loop) -> None:
        """Ends the fit if a signal has asked for it."""
        self._signals.obey(f"step {loop.step} is done")

    def after_bad_step(self, loop: Loop, bad: BadStep) -> None:
        """Does nothing."""

    def after_roll_back(self, loop: Loop) -> None:
        """Does nothing."""

    def after_epoch(self, record: Record) -> None:
        """Does nothing."""

    def at_end(self, loop: Loop) -> None:
        """Does nothing."""


@contextmanager
def opened(
    root: Path,
    settings: FitSettings,
    device: torch.device,
    facts: Mapping[str, Any],
    resume: Resume,
    every: Every,
    signals: Signals,
) -> Iterator[Saving]:
    """Context of a fit into a run directory, which no other process may enter meanwhile.

    Raises:
        LockedError: Another process is in it.
        PplVaeError: The directory is neither free nor that of a run to resume, or cannot be made.
        CheckpointError: See `found_state`.
    """
    if resume is True:
        _refuse_nothing(root / CHECKPOINTS)  # before a folder is made
    make_folder(root)
    with locked(root):
        for folder in (root, root / CHECKPOINTS):
            remove_debris(folder)
        state = found_state(root / CHECKPOINTS, resume, facts)
        if state is None:
            directory = RunDirectory.create(root, settings, device, again=resume == "auto")
        else:
            directory = RunDirectory(root)
            directory.write_history(state.plain["history"])
        yield Saving(directory, every, facts, signals, state)


def check_options(resume: Resume, every: Every, has_directory: bool) -> None:
    """Refuses options of checkpoints that mean nothing.

    Raises:
        ValueError: There is no run directory to keep them in; `resume` is none of its values; or the interval is
            neither a whole number of steps, at least one, nor a positive time.
    """
    if resume not in (True, False, "auto"):
        raise ValueError(f"resume: expected 'auto', True or False, found {resume!r}")
    if not has_directory and (resume or every is not None):
        raise ValueError("resume, checkpoint_every: expected run_dir=..., where checkpoints are kept, found none")
    if isinstance(every, timedelta):
        if not every > timedelta():
            raise ValueError(f"checkpoint_every: expected a positive time, found {every}")
    elif every is not None:
        whole_number("checkpoint_every", every, least=1)


def found_state(folder: Path, resume: Resume, facts: Mapping[str, Any]) -> State | None:
    """The state to go on from; None where the fit begins.

    Raises:
        CheckpointError: There is none and has to be one, none can be used, or it is that of another run: the first
            fact that differs is named.
    """
    if resume is True:
        _refuse_nothing(folder)
    if resume is False or not _any(folder):
        return None
    found = newest(folder)
    for reason in found.skipped:
        warnings.warn(f"a checkpoint was skipped: {reason}", UserWarning, stacklevel=2)
    known = found.plain.pop("facts", {})
    if (change := first_difference(known, facts, "run")) is not None:
        raise CheckpointError(
            f"{found.path}: this run began with {change.name} = {change.before!r}, found {change.now!r}: resume with "
            "what it began with, or choose another run_dir"
        )
    if (change := first_difference(known, facts, "machine")) is not None:
        warnings.warn(
            f"the run goes on, but not bit by bit as it would have: {change.name} was {change.before!r} and is "
            f"{change.now!r}",
            UserWarning,
            stacklevel=2,
        )
    if missing := [name for name in FIELDS if name not in found.plain]:
        raise CheckpointError(
            f"{found.path}: expected the state of a fit that this version has saved, found none of its {missing[0]}"
        )
    discard_after(found.path)
    return State(found.tensors, found.plain)


def _any(folder: Path) -> bool:
    return folder.is_dir() and bool(steps(folder))


def _refuse_nothing(folder: Path) -> None:
    if not _any(folder):
        raise CheckpointError(f"{folder}: expected a checkpoint to resume from, found none; use resume='auto'")


def shared(state: State | None, group: Group, device: torch.device) -> State | None:
    """The state of process 0 in every process of a group."""
    text = group.texts(json.dumps(None if state is None else state.plain), device)[0]
    tensors: dict[str, Tensor] = {} if state is None else state.tensors
    values = json.loads(text)
    return None if values is None else State(group.gather(tensors, device)[0], values)
