"""The training loop: epochs, history, held-out data, patience."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.errors import EstimateError, located
from ppl_vae.history import History, Record
from ppl_vae.pair import frozen_modes, kept_state
from ppl_vae.progress import Progress
from ppl_vae.rng import key, seeded
from ppl_vae.svi.dividing import Divided
from ppl_vae.svi.feed import Serving
from ppl_vae.svi.gradient import Metrics
from ppl_vae.svi.guard import NotFiniteError
from ppl_vae.svi.kept import kept, put_back
from ppl_vae.svi.nonfinite import Policy
from ppl_vae.svi.state import Best, State
from ppl_vae.svi.stepper import Stepper
from ppl_vae.svi.usage import kl_of_scalars

__all__ = ["Course", "Keeper", "Loop"]

_VALIDATION_BLOCK = 512
_VALIDATION = -2  # key of noise that belongs to no step


class Keeper:
    """Keeps what a fit leaves; this one keeps nothing, as the fit of a pair that nobody wants on disk."""

    state: State | None = None
    """What the fit goes on from, in the process that has read it."""

    def at_start(self, loop: Loop) -> None:
        """Is called before the first step."""

    def after_step(self, loop: Loop) -> None:
        """Is called between two steps; what it raises ends the fit."""

    def after_bad_step(self, loop: Loop, error: NotFiniteError) -> None:
        """Is called when a step is not finite, before anything is done about it."""

    def after_roll_back(self, loop: Loop) -> None:
        """Is called when the fit has gone back, before it takes steps again."""

    def after_epoch(self, record: Record) -> None:
        """Is called with the record of every epoch, and with that of the last one where it is left unfinished."""

    def after_last_step(self, loop: Loop) -> None:
        """Is called after the last step, before an unfinished epoch is judged, of which a longer fit knows nothing."""

    def at_end(self, loop: Loop) -> None:
        """Is called at the end, before the best parameters are put back; what it raises ends the fit."""

    def close(self, loop: Loop) -> None:
        """Is called when the fit has ended, whatever has ended it."""


class Course(NamedTuple):
    """How a fit went."""

    steps: int
    """Steps done."""
    best_step: int
    """Step of the parameters left in the pair."""
    stopped_early: bool
    """Whether patience ran out."""


class HeldOut(NamedTuple):
    """What the held-out data say after an epoch, by the names of `Record`; NaN without them."""

    validation_kl: Mapping[str, tuple[float, ...]]
    """KL of each latent scalar by site, where it is recorded; a dictionary of its own for each epoch."""
    validation_elbo: float = math.nan
    """True ELBO, in nats per datum."""
    validation_distortion: float = math.nan
    """-E log p(x given z), in nats per datum."""
    validation_rate: float = math.nan
    """KL(q, prior), in nats per datum."""


class Loop:
    """State of one fit, between two steps: `step`, whole epochs (`epoch`), and the metrics of the steps of this one.

    `is_whole` says whether it is between two steps: within one, some parameters have moved and others have not.

    Args:
        stepper: Takes the steps.
        held_out: Validation data.
        start: When the fit began, by the monotonic clock.
    """

    def __init__(self, stepper: Stepper, held_out: Rows | None, start: float) -> None:
        self.stepper, self.held_out = stepper, held_out
        self.pair, self.settings, self.device = stepper.pair, stepper.settings, stepper.device
        self.history = History()
        self.best: Best | None = None
        self.step = self.epoch = self.seen = 0
        self.sums = torch.zeros(len(Metrics._fields), dtype=torch.float64, device=self.device)
        self.seconds_before, self._start = 0.0, start
        self.is_whole = True
        self.policy = Policy(self)
        self._divided = Divided(stepper.layout)

    @property
    def seconds(self) -> float:
        """Training time so far, that of processes before this one included."""
        return self.seconds_before + time.monotonic() - self._start

    def run(self, progress: bool, keeper: Keeper) -> Course:
        """Takes every step that is left, keeps the history and leaves the best parameters in the pair."""
        if self.held_out is not None:
            _ = self.stepper.values  # to know later what the programs have changed
        keeper.at_start(self)
        try:
            self._take_all(progress, keeper)
            keeper.at_end(self)
            return Course(self.step, self._restore_best(self.step), self._out_of_patience())
        finally:
            keeper.close(self)

    def _take_all(self, progress: bool, keeper: Keeper) -> None:
        total = self.settings.total_steps(len(self.stepper.feed.rows))
        self.policy.remember()
        with Progress("fit", total, progress, "step") as bar:
            while (self.step < total or self._is_before_end_of_epoch) and not self._out_of_patience():
                try:
                    self._epoch(total, bar, keeper)
                except NotFiniteError as error:
                    keeper.after_bad_step(self, error)
                    self.policy.roll_back(error)
                    keeper.after_roll_back(self)
            keeper.after_last_step(self)
            if self._is_within_epoch:
                keeper.after_epoch(self._noted(bar))

    @property
    def _is_within_epoch(self) -> bool:
        """Whether steps have been taken since the last record."""
        return self.step > (self.history[-1].step if len(self.history) else 0)

    @property
    def _is_before_end_of_epoch(self) -> bool:
        """Whether all steps of an epoch have been taken, and its end has yet to come."""
        return self._is_within_epoch and self.step % self.stepper.feed.order.per_epoch == 0

    def _servings(self, total: int) -> Iterator[Serving]:
        """What is left of this pass over the data; nothing where only its end is."""
        if self._is_before_end_of_epoch:
            return iter(())
        done_epochs, done = divmod(self.step, self.stepper.feed.order.per_epoch)
        return self.stepper.feed.epoch(done_epochs, total - self.step, done)

    def _epoch(self, total: int, bar: Progress, keeper: Keeper) -> None:
        """The steps of this epoch that are left, and its end if it gets there."""
        for serving in self._servings(total):
            self._take(serving, keeper)
            if bar.due:
                bar.update(self.step, _progress_text(self.epoch + 1, self.sums / self.seen))
            keeper.after_step(self)
        self.stepper.finish(self.step)
        if self._is_before_end_of_epoch:
            self._end_epoch(bar, keeper)

    def _take(self, serving: Serving, keeper: Keeper) -> None:
        rows = self.stepper.feed.order.size(self.step)
        self.is_whole = False
        try:
            self.sums += rows * self.stepper(self.step, serving)
            self.seen += rows
        except NotFiniteError as error:
            self.is_whole = True  # the step was not taken
            if self.settings.on_nonfinite == "skip":
                keeper.after_bad_step(self, error)
            self.policy.skip(error)
        self.step += 1
        self.is_whole = True

    def _end_epoch(self, bar: Progress, keeper: Keeper) -> None:
        record = self._noted(bar)
        self.epoch += 1
        self.sums.zero_()
        self.seen = 0
        keeper.after_epoch(record)
        self.policy.remember()

    def _noted(self, bar: Progress) -> Record:
        """The record of this epoch, whole or as far as the fit goes."""
        means = self.sums / self.seen
        record = self._record(self.epoch + 1, self.step, Metrics(*means.tolist()))
        self.history.append(record)
        bar.update(self.step, _progress_text(self.epoch + 1, means))
        return record

    def _record(self, epoch: int, step: int, means: Metrics) -> Record:
        return Record(
            epoch=epoch,
            step=step,
            objective=means.objective,
            elbo=means.elbo,
            distortion=means.distortion,
            rate=means.rate,
            grad_norm=means.norm,
            beta=float(self.stepper.beta_at(step - 1)),
            learning_rate=self.stepper.update.learning_rate,
            seconds=self.seconds,
            **self._judged(step)._asdict(),
        )

    def _judged(self, step: int) -> HeldOut:
        if self.held_out is None:
            return HeldOut({})
        with seeded(0, self.device), torch.no_grad(), frozen_modes(self.pair), kept_state(self.pair):
            watched, found = self._validate(step)
            if self.settings.record_kl:
                layout, seed = self.stepper.layout, key(self.settings.seed, _VALIDATION)
                size = layout.largest_batch(_VALIDATION_BLOCK)
                kl = kl_of_scalars(self.pair, self.held_out, self._divided, layout, size, seed, self.device)
                found = found._replace(validation_kl=kl)
        if self.best is None or watched > self.best.bound:
            self.best = Best(watched, step, len(self.history) + 1, kept(self.stepper))
        return found

    def _validate(self, step: int) -> tuple[float, HeldOut]:
        """The bound to watch, and the true ELBO, of the held-out data with fixed noise."""
        assert self.held_out is not None
        judge, layout = self.settings.objective.judge(), self.stepper.layout
        means = torch.zeros(4, dtype=torch.float64, device=self.device)
        size, group = layout.largest_batch(_VALIDATION_BLOCK), self.stepper.group
        blocks = range(0, len(self.held_out), size)
        for start in blocks[group.share(len(blocks))]:
            batch = self.held_out.take(slice(start, start + size), self.device)
            seed = key(self.settings.seed, _VALIDATION, start)
            with located(f"validation after step {step}, rows {start} to {start + len(batch[0]) - 1}"):
                values = self._divided(lambda rows: judge.evaluate(self.pair, rows, layout, 1.0)[1:], batch, seed)
            share = len(batch[0]) / len(self.held_out)
            means += share * values
        watched, *terms = (group.sum(means) if group.size > 1 else means).tolist()
        if not math.isfinite(watched):
            raise EstimateError(
                f"step {step}: the bound of the validation data is not finite: look for values there that training "
                "data lack, or give scales a lower bound"
            )
        return watched, HeldOut({}, *terms)

    def _restore_best(self, step: int) -> int:
        if self.best is None:
            return step
        self.is_whole = False
        put_back(self.stepper, self.best.state.tensors, self.best.state.values)
        self.is_whole = True
        return self.best.step

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.best is not None and self.epoch - self.best.epoch >= patience


def _progress_text(epoch: int, means: Tensor) -> str:
    _, objective, elbo, distortion, rate, _ = means.tolist()
    if math.isnan(elbo):
        return f"epoch {epoch}  objective {objective:.2f}"
    return f"epoch {epoch}  ELBO {elbo:.2f} = -({distortion:.2f} distortion + {rate:.2f} rate)"
