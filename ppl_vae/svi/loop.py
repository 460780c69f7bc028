"""The training loop; `step` is a function of tensors and the only thing in the hot path."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.checking import CheckReport
from ppl_vae.diagnosis import explain_non_finite
from ppl_vae.errors import EstimateError, PairError
from ppl_vae.history import History, Record
from ppl_vae.objectives import Values
from ppl_vae.pair import Pair, frozen_modes
from ppl_vae.progress import Progress
from ppl_vae.rng import key, permutation, reseed, seeded
from ppl_vae.rundir import RunDirectory
from ppl_vae.schedules import Schedule
from ppl_vae.svi.guard import Guard
from ppl_vae.svi.settings import FitSettings

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


class Loop:
    """State of one fit."""

    def __init__(
        self,
        pair: Pair,
        rows: Rows,
        held_out: Rows | None,
        report: CheckReport,
        settings: FitSettings,
        device: torch.device,
        start: float,
    ) -> None:
        self.pair, self.rows, self.held_out, self.settings, self.device = pair, rows, held_out, settings, device
        self.report = report
        self.layout = report.layout
        self.start = start
        self.parameters = [p for p in pair.parameters() if p.requires_grad]
        if not self.parameters:
            raise PairError("expected parameters to train, found none in model or guide")
        self.optimizer = _make_optimizer(settings, self.parameters)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.guard = Guard(self.optimizer, device)
        self.history = History()
        self.best: Best | None = None

    def run(self, progress: bool, directory: RunDirectory | None) -> Course:
        """Takes every step, keeps the history and leaves the best parameters in the pair."""
        total = self.settings.total_steps(len(self.rows))
        step = epoch = 0
        with Progress("fit", total, progress, "step") as bar:
            while step < total and not self._out_of_patience(epoch):
                sums, seen = torch.zeros(5, dtype=torch.float64, device=self.device), 0
                for batch in self._batches(epoch, total - step):
                    values, norm = self.step(step, batch)
                    means = torch.stack([values.objective, values.elbo, values.distortion, values.rate, norm])
                    sums += len(batch[0]) * means
                    step, seen = step + 1, seen + len(batch[0])
                    if bar.due:
                        bar.update(step, _progress_text(epoch + 1, sums / seen))
                self._stop_at(self.guard.poll())
                epoch += 1
                record = self._record(epoch, step, (sums / seen).tolist())
                self.history.append(record)
                bar.update(step, _progress_text(epoch, sums / seen))
                if directory is not None:
                    directory.append_history(record)
        return Course(step, self._restore_best(step), self._out_of_patience(epoch))

    def step(self, step: int, batch: tuple[Tensor, ...]) -> tuple[Values, Tensor]:
        """One update; everything it draws depends on (seed, step) alone."""
        settings = self.settings
        reseed(key(settings.seed, step), self.device)
        if settings.binarize == "dynamic":
            batch = (torch.bernoulli(batch[0]), *batch[1:])
        values = settings.objective.evaluate(self.pair, batch, self.layout, _at(settings.objective.beta, step))
        self.optimizer.zero_grad(set_to_none=True)
        values.loss.backward()
        norm = _gradient_norm(self.parameters, settings.clip_norm)
        if settings.schedule is not None:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * settings.schedule(step)
        self._stop_at(self.guard.check(values.loss, norm, step))
        self.optimizer.step()
        return values, norm

    def _stop_at(self, bad_step: int | None) -> None:
        if bad_step is None:
            return
        reason = explain_non_finite(
            self.pair, self._batch_of(bad_step), self.layout, self.settings.objective.num_particles
        )
        raise EstimateError(
            f"step {bad_step + 1}: the loss or its gradient is not finite: {reason}. The parameters are those before "
            "the step; try a smaller learning_rate, clip_norm=..., or a lower bound on scales"
        )

    def _batch_of(self, step: int) -> tuple[Tensor, ...]:
        """The batch of a step, as the step saw it."""
        per_epoch = math.ceil(len(self.rows) / self.settings.batch_size)
        for position, batch in enumerate(self._batches(step // per_epoch, step % per_epoch + 1)):
            if position == step % per_epoch:
                reseed(key(self.settings.seed, step), self.device)
                return (torch.bernoulli(batch[0]), *batch[1:]) if self.settings.binarize == "dynamic" else batch
        raise AssertionError("a step has a batch")

    def _batches(self, epoch: int, limit: int) -> Iterator[tuple[Tensor, ...]]:
        order = permutation(len(self.rows), self.settings.seed, epoch)
        order = order if self.rows.mapped else order.to(self.device)
        for start in range(0, min(len(order), limit * self.settings.batch_size), self.settings.batch_size):
            yield self.rows.take(order[start : start + self.settings.batch_size], self.device)

    def _record(self, epoch: int, step: int, means: list[float]) -> Record:
        objective, elbo, distortion, rate, norm = means
        validation = self._validate(step) if self.held_out is not None else math.nan
        beta = _at(self.settings.objective.beta, step - 1)
        lr = self.optimizer.param_groups[0]["lr"]
        seconds = time.monotonic() - self.start
        return Record(epoch, step, objective, elbo, distortion, rate, norm, beta, lr, seconds, validation)

    def _validate(self, step: int) -> float:
        """True ELBO of the held-out data with fixed noise; keeps the parameters if the bound to watch is the best."""
        assert self.held_out is not None
        judge = self.settings.objective.judge()
        elbo = watched = 0.0
        with seeded(key(self.settings.seed, _VALIDATION), self.device), torch.no_grad(), frozen_modes(self.pair):
            for _, batch in self.held_out.blocks(self.layout.largest_batch(_VALIDATION_BLOCK), self.device):
                values = judge.evaluate(self.pair, batch, self.layout, 1.0)
                share = len(batch[0]) / len(self.held_out)
                elbo += share * float(values.elbo)
                watched += share * float(values.objective)
        if not math.isfinite(watched):
            raise EstimateError(
                f"step {step}: the bound of the validation data is not finite: look for values there that training "
                "data lack, or give scales a lower bound"
            )
        if self.best is None or watched > self.best.bound:
            self.best = Best(watched, step, len(self.history) + 1, [t.detach().clone() for t in self._state()])
        return elbo

    def _state(self) -> list[Tensor]:
        return [*self.parameters, *self.pair.buffers()]

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


def _make_optimizer(settings: FitSettings, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if settings.optimizer is None:
        return torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)
    made = settings.optimizer(parameters, lr=settings.learning_rate)
    if not isinstance(made, torch.optim.Optimizer):
        raise ValueError(f"optimizer: expected a torch optimizer class such as torch.optim.AdamW, got {made!r} from it")
    return made


def _gradient_norm(parameters: list[torch.nn.Parameter], clip_norm: float | None) -> Tensor:
    if clip_norm is not None:
        return torch.nn.utils.clip_grad_norm_(parameters, clip_norm, foreach=True)
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)


def _at(value: float | Schedule, step: int) -> float:
    return value(step) if callable(value) else value


def _progress_text(epoch: int, means: Tensor) -> str:
    objective, elbo, distortion, rate, _ = means.tolist()
    if math.isnan(elbo):
        return f"epoch {epoch}  objective {objective:.2f}"
    return f"epoch {epoch}  ELBO {elbo:.2f} = -({distortion:.2f} distortion + {rate:.2f} rate)"
