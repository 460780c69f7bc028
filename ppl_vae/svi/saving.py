"""Checkpoints of a fit: when they are written, and what is in them."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from ppl_vae.errors import CheckpointError, StorageError
from ppl_vae.history import Record
from ppl_vae.rundir import RunDirectory, outdate_evaluation, record_as_plain, status_after
from ppl_vae.storage import Checkpoint, Hold, discard_after, newest, prune, steps, write
from ppl_vae.storage.exact import of_exact
from ppl_vae.storage.files import refuse_link, remove_if_there
from ppl_vae.svi.guard import NotFiniteError, OverflowedError
from ppl_vae.svi.kept import put_back
from ppl_vae.svi.loop import Keeper, Loop
from ppl_vae.svi.signals import Signals
from ppl_vae.svi.state import State, bundle, captured

__all__ = ["BAD_STEPS", "CHECKPOINTS", "Every", "Following", "Saving", "check_folders", "say_skipped"]

CHECKPOINTS, BAD_STEPS = "checkpoints", "bad-steps"
Every = int | timedelta | None

# By default a checkpoint is due once the steps since the last one took two hundred times what it took to write.
_SHARE, _LEAST_SECONDS = 200.0, 10.0
_KEPT, _BAD_STEPS_KEPT = 2, 3


class Saving(Keeper):
    """Writes a checkpoint between two steps when one is due, when a signal asks the fit to stop, and at the end.

    Args:
        directory: Of the run.
        hold: Of its lock: where it does not last any longer, another process may be at work, and nothing is written.
        every: Steps, or time, between two checkpoints; None so rarely that they cost half a hundredth of the time.
        facts: What the run is about; a process that goes on has to be given the same.
        signals: What asks the fit to stop.
        found: The checkpoint that the fit goes on from.
    """

    def __init__(
        self,
        directory: RunDirectory,
        hold: Hold,
        every: Every,
        facts: Mapping[str, Any],
        signals: Signals,
        found: Checkpoint | None,
    ) -> None:
        self.directory, self.folder, self._found = directory, directory.root / CHECKPOINTS, found
        self._hold = hold
        self.state = None if found is None else State(found.tensors, found.plain)
        self._every, self._facts, self._signals = every, dict(facts), signals
        self._last: tuple[int, int] = (0, 0) if found is None else (found.plain["step"], found.plain["epoch"])
        self._lost: set[str] = set()
        self._is_done = False
        self._last_time, self._cost = time.monotonic(), _LEAST_SECONDS / _SHARE

    def at_start(self, loop: Loop) -> None:
        """Takes back, in the directory, what came after the checkpoint; remembers what programs and optimiser keep.

        What was said there of the parameters until then is not of those to come: evaluations are set aside, and the
        description of a command's run says that it trains.
        """
        _ = loop.stepper.values, loop.stepper.update.values  # to know later what they have changed
        self._check_place()
        self._hold.begin()
        if self._found is None:
            remove_if_there(self.directory.root / BAD_STEPS)  # of a run that was given up
        else:
            self._set_evaluation_aside(loop.step)
            self.directory.describe(status="training", parameters_sha256="")
            discard_after(self._found.path)
            self.directory.write_history([record_as_plain(record) for record in loop.history])

    def after_step(self, loop: Loop) -> None:
        """Writes a checkpoint if one is due; ends the fit if a signal has asked for it."""
        asked = self._signals.agreed is not None
        if asked:
            loop.stepper.settle(loop.step)  # as all processes do
        if asked or self._is_due(loop.step):
            self.keep(loop)
            self._signals.obey(f"step {loop.step} is done and saved in {self.folder}")

    def after_bad_step(self, loop: Loop, error: NotFiniteError) -> None:
        """Leaves what it takes to do the step again, of the first few; nothing where its parameters are lost."""
        self._check_place()
        folder = self.directory.root / BAD_STEPS
        known = steps(folder)
        is_new = error.bad.step not in known  # to a run that met it before and was started again
        if is_new and len(known) < _BAD_STEPS_KEPT and not isinstance(error, OverflowedError):
            _write(folder, error.bad.step, bundle(loop, error.bad), {"facts": self._facts})

    def after_roll_back(self, loop: Loop) -> None:
        """Gives up the checkpoints of the steps that the fit has taken back: it would go on from them otherwise."""
        self.keep(loop, alone=True)

    def after_last_step(self, loop: Loop) -> None:
        """Writes the last checkpoint: in the middle of an unfinished epoch, as one that is due there."""
        if (loop.step, loop.epoch) != self._last:
            self.keep(loop)

    def at_end(self, loop: Loop) -> None:
        """Ends the fit if a signal has asked for it since the last step."""
        loop.stepper.consult()
        self._signals.obey(f"all steps are done and saved in {self.folder}")
        self._is_done = True

    def close(self, loop: Loop) -> None:
        """Leaves parameters that belong together: none for who insists on an end at once, and waits for no disk.

        Raises:
            StorageError: A file cannot be written. What had ended the fit before is said beside it.
        """
        cause = sys.exception()
        try:
            self._leave(loop)
        except StorageError as error:
            if cause is None or isinstance(cause, StorageError):
                raise
            before = f"{type(cause).__name__}: {cause}".removesuffix(": ")
            raise type(error)(f"{error}; what had ended the fit: {before}") from cause

    def _leave(self, loop: Loop) -> None:
        self._check_place()
        left = 0
        try:
            if not self._signals.insisted:
                left = self._leave_parameters(loop)
        finally:
            if self._signals.insisted:
                self.directory.remove_parameters()
        told = {"seconds": loop.seconds, "parameters_sha256": self.directory.parameters_sha256()}
        if self._is_done and not self._signals.insisted:
            best = loop.step if loop.best is None else loop.best.step
            self.directory.describe(status="finished", steps=loop.step, best_step=best, **told)
        else:
            status = status_after(sys.exception())
            reached = left or max(steps(self.folder), default=0)
            self.directory.describe(status=status, steps=reached, best_step=reached, **told)

    def _leave_parameters(self, loop: Loop) -> int:
        """Writes those of the pair, and returns after how many steps they are; 0 where none are left.

        Within a step, or not finite, the pair gets those of the newest checkpoint before. Parameters without a
        checkpoint would be lost to a run that begins anew: the first one is written beside them, and where it cannot
        be, none are left.
        """
        if loop.is_whole and loop.stepper.is_settled() and not steps(self.folder):
            self.keep(loop)
        if not steps(self.folder):
            return 0
        left = loop.step
        if not (loop.is_whole and loop.stepper.is_finite()):
            found = newest(self.folder)
            say_skipped(found)
            put_back(loop.stepper, found.tensors, of_exact(found.plain["values"]))
            left = found.step
        self.directory.write_parameters(loop.pair, loop.stepper.values.taken())
        return left

    def after_epoch(self, record: Record) -> None:
        """Adds the line of an epoch to the history."""
        self._check_place()
        self.directory.append_history(record)

    def _check_place(self) -> None:
        """Refuses to leave anything where others may be at work, or where a link would lead it to another run.

        Raises:
            LockedError: The lock is lost, as `Hold.check` says.
            StorageError: As `check_folders`.
        """
        self._hold.check()
        check_folders(self.directory.root)

    def keep(self, loop: Loop, alone: bool = False) -> None:
        """Writes a checkpoint, reads it back, and removes older ones, and later ones if it is to be the last.

        What is not finite is never kept: one process alone says so at once, several the next time that they all look.

        Args:
            loop: The fit.
            alone: Whether checkpoints of later steps are to go.
        """
        if loop.stepper.group.size == 1:
            loop.stepper.settle(loop.step)
        elif not loop.stepper.is_settled():
            return
        start = time.monotonic()
        state = captured(loop)
        self._check_place()
        path = _write(self.folder, loop.step, state, {"facts": self._facts})
        self._say_lost(state.plain["lost"])
        if alone:
            discard_after(path)
        prune(self.folder, _KEPT)
        self._last, self._last_time = (loop.step, loop.epoch), time.monotonic()
        self._cost = max(self._last_time - start, _LEAST_SECONDS / _SHARE)

    def _say_lost(self, names: Sequence[str]) -> None:
        """Says once of each value that the programs have changed and no checkpoint holds."""
        if new := [name for name in names if name not in self._lost]:
            self._lost.update(new)
            warnings.warn(
                f"checkpoints do not hold {', '.join(map(repr, new[:5]))}{' and more' * (len(new) > 5)}, which the "
                "programs change: a fit that resumes begins with what the programs make anew, and its numbers will be "
                "others if they are read; keep numbers, text, tensors, arrays, lists of numbers and text, or other "
                "lists and dictionaries of such that are changed in place, as by append, del and d[key] = value",
                UserWarning,
                stacklevel=2,
            )

    def _set_evaluation_aside(self, step: int) -> None:
        for kept in outdate_evaluation(self.directory.root, step):
            warnings.warn(f"{kept}: of the parameters that the run goes on from", UserWarning, stacklevel=2)

    def _is_due(self, step: int) -> bool:
        waited = time.monotonic() - self._last_time
        if self._every is None:
            return waited > self._cost * _SHARE
        if isinstance(self._every, timedelta):
            return waited > self._every.total_seconds()
        return step - self._last[0] >= self._every


class Following(Keeper):
    """What other processes than the first do meanwhile: they stop where it stops.

    Args:
        signals: What the processes have agreed on.
    """

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def after_step(self, loop: Loop) -> None:
        """Ends the fit if a signal has asked for it."""
        if self._signals.agreed is not None:
            loop.stepper.settle(loop.step)
        self._signals.obey(f"step {loop.step} is done")

    def at_end(self, loop: Loop) -> None:
        """Ends the fit if a signal has asked for it since the last step."""
        loop.stepper.consult()
        self._signals.obey("all steps are done")


def say_skipped(found: Checkpoint) -> None:
    """Warns of newer checkpoints that were damaged."""
    for reason in found.skipped:
        warnings.warn(f"a checkpoint was skipped: {reason}", UserWarning, stacklevel=2)


def check_folders(root: Path) -> None:
    """Refuses links in the place of the folders that a fit writes and prunes in a run directory.

    Raises:
        StorageError: There is one, or the system does not tell.
    """
    for name in (CHECKPOINTS, BAD_STEPS):
        refuse_link(root / name)


def _write(folder: Path, step: int, state: State, more: Mapping[str, Any]) -> Path:
    try:
        return write(folder, step, state.tensors, {**state.plain, **more})
    except ValueError as error:
        raise CheckpointError(f"step {step}: no checkpoint written, earlier ones are as they were: {error}") from error
