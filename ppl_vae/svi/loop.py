"""The training loop: epochs, history, held-out data, patience."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.errors import EstimateError, located
from ppl_vae.history import History, Record
from ppl_vae.pair import frozen_modes, kept_state
from ppl_vae.progress import Progress
from ppl_vae.rng import key, reseed, seeded
from ppl_vae.rundir import RunDirectory
from ppl_vae.svi.gradient import Metrics
from ppl_vae.svi.stepper import Stepper
from ppl_vae.svi.usage import kl_of_scalars

__all__ = ["Course", "Loop"]

_VALIDATION_BLOCK = 512
_VALIDATION = -2  # key of noise that belongs to no step


class Course(NamedTuple):
    """How a fit went."""

    steps: int
    """Steps done."""
    best_step: int
    """Step of the parameters left in the pair."""
    stopped_early: bool
    """Whether patience ran out."""


class Best(NamedTuple):
    """The best state so far, as the held-out data judge it."""

    bound: float
    """Bound that is watched, in nats per datum."""
    step: int
    """Steps done."""
    epoch: int
    """Epochs done."""
    state: list[Tensor]
    """Copies of parameters and buffers."""


class HeldOut(NamedTuple):
    """What the held-out data say after an epoch, by the names of `Record`; NaN without them."""

    validation_elbo: float = math.nan
    """True ELBO, in nats per datum."""
    validation_distortion: float = math.nan
    """-E log p(x given z), in nats per datum."""
    validation_rate: float = math.nan
    """KL(q, prior), in nats per datum."""
    validation_kl: Mapping[str, tuple[float, ...]] = MappingProxyType({})
    """KL of each latent scalar by site, where it is recorded."""


class Loop:
    """State of one fit."""

    def __init__(self, stepper: Stepper, held_out: Rows | None, start: float) -> None:
        self.stepper, self.held_out, self.start = stepper, held_out, start
        self.pair, self.settings, self.device = stepper.pair, stepper.settings, stepper.device
        self.history = History()
        self.best: Best | None = None

    def run(self, progress: bool, directory: RunDirectory | None) -> Course:
        """Takes every step, keeps the history and leaves the best parameters in the pair."""
        total = self.settings.total_steps(len(self.stepper.feed.rows))
        step = epoch = 0
        with Progress("fit", total, progress, "step") as bar:
            while step < total and not self._out_of_patience(epoch):
                sums, seen = torch.zeros(len(Metrics._fields), dtype=torch.float64, device=self.device), 0
                for serving in self.stepper.feed.epoch(epoch, total - step):
                    rows = self.stepper.feed.order.size(step)
                    sums += rows * self.stepper(step, serving)
                    step, seen = step + 1, seen + rows
                    if bar.due:
                        bar.update(step, _progress_text(epoch + 1, sums / seen))
                self.stepper.finish()
                epoch += 1
                means = Metrics(*(sums / seen).tolist())
                record = self._record(epoch, step, means)
                self.history.append(record)
                bar.update(step, _progress_text(epoch, sums / seen))
                if directory is not None:
                    directory.append_history(record)
        return Course(step, self._restore_best(step), self._out_of_patience(epoch))

    def _record(self, epoch: int, step: int, means: Metrics) -> Record:
        return Record(
            epoch=epoch,
            step=step,
            objective=means.objective,
            elbo=means.elbo,
            distortion=means.distortion,
            rate=means.rate,
            grad_norm=means.norm,
            beta=self.stepper.beta_at(step - 1),
            learning_rate=self.stepper.update.learning_rate,
            **self._judged(step)._asdict(),
            seconds=time.monotonic() - self.start,
        )

    def _judged(self, step: int) -> HeldOut:
        if self.held_out is None:
            return HeldOut()
        with seeded(0, self.device), torch.no_grad(), frozen_modes(self.pair), kept_state(self.pair):
            found = self._validate(step)
            if not self.settings.record_kl:
                return found
            layout, seed = self.stepper.layout, key(self.settings.seed, _VALIDATION)
            size = layout.largest_batch(_VALIDATION_BLOCK)
            kl = kl_of_scalars(self.pair, self.held_out, layout, size, seed, self.device)
            return found._replace(validation_kl=kl)

    def _validate(self, step: int) -> HeldOut:
        """True ELBO of the held-out data with fixed noise; keeps the parameters if the bound to watch is the best."""
        assert self.held_out is not None
        judge, layout = self.settings.objective.judge(), self.stepper.layout
        means = torch.zeros(4, dtype=torch.float64, device=self.device)
        size, group = layout.largest_batch(_VALIDATION_BLOCK), self.stepper.group
        blocks = range(0, len(self.held_out), size)
        for start in blocks[group.share(len(blocks))]:
            batch = self.held_out.take(slice(start, start + size), self.device)
            reseed(key(self.settings.seed, _VALIDATION, start), self.device)
            with located(f"validation after step {step}, rows {start} to {start + len(batch[0]) - 1}"):
                values = judge.evaluate(self.pair, batch, layout, 1.0)
            share = len(batch[0]) / len(self.held_out)
            means += share * torch.stack([*values[1:]]).detach().double()
        watched, *terms = (group.sum(means) if group.size > 1 else means).tolist()
        if not math.isfinite(watched):
            raise EstimateError(
                f"step {step}: the bound of the validation data is not finite: look for values there that training "
                "data lack, or give scales a lower bound"
            )
        if self.best is None or watched > self.best.bound:
            self.best = Best(watched, step, len(self.history) + 1, [t.detach().clone() for t in self._state()])
        return HeldOut(*terms)

    def _state(self) -> list[Tensor]:
        return [*self.stepper.parameters, *self.pair.buffers()]

    def _restore_best(self, step: int) -> int:
        if self.best is None:
            return step
        with torch.no_grad():
            for tensor, kept in zip(self._state(), self.best.state, strict=True):
                tensor.copy_(kept)
        return self.best.step

    def _out_of_patience(self, epoch: int) -> bool:
        patience = self.settings.patience
        return patience is not None and self.best is not None and epoch - self.best.epoch >= patience


def _progress_text(epoch: int, means: Tensor) -> str:
    _, objective, elbo, distortion, rate, _ = means.tolist()
    if math.isnan(elbo):
        return f"epoch {epoch}  objective {objective:.2f}"
    return f"epoch {epoch}  ELBO {elbo:.2f} = -({distortion:.2f} distortion + {rate:.2f} rate)"
