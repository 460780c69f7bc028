"""The one training loop: stochastic variational inference for any pair, any objective, any torch optimiser."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.arrays import Rows, as_rows
from ppl_vae.checking import CheckReport, check, check_for_pyro, check_observations
from ppl_vae.device import choose_device
from ppl_vae.diagnosis import explain_non_finite
from ppl_vae.errors import DataError, EstimateError, PairError
from ppl_vae.history import History, Record
from ppl_vae.objectives import ELBO, FromPyro, Objective, Values
from ppl_vae.pair import Pair, as_pair, frozen_modes
from ppl_vae.progress import Progress
from ppl_vae.rng import key, permutation, reseed, seeded
from ppl_vae.rundir import RunDirectory
from ppl_vae.schedules import Schedule
from ppl_vae.supports import first_outside

__all__ = ["Fit", "FitSettings", "fit"]

OptimizerFactory = Callable[..., torch.optim.Optimizer]

_DEFAULT_EPOCHS = 50
_VALIDATION_BLOCK = 512
_POLL_STEPS = 50
_FIXED, _VALIDATION = -1, -2  # keys of noise that belongs to no step


@dataclass(frozen=True)
class FitSettings:
    """Everything that decides a fit besides pair and data; written into the run directory."""

    objective: Objective = ELBO()
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 1e-3
    optimizer: OptimizerFactory | None = None
    schedule: Schedule | None = None
    clip_norm: float | None = None
    binarize: Literal["dynamic", "fixed"] | None = None
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "learning_rate", "clip_norm", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected a positive number, found {value}")
        if self.binarize not in (None, "dynamic", "fixed"):
            raise ValueError(f"binarize: expected None, 'dynamic' or 'fixed', found {self.binarize!r}")
        if not hasattr(self.objective, "evaluate"):
            mend = "; wrap it as from_pyro(...)" if isinstance(self.objective, pyro.infer.ELBO) else ""
            raise ValueError(f"objective: expected an objective such as ELBO(), found {self.objective!r}{mend}")

    def total_steps(self, num_data: int) -> int:
        """Number of steps on a data set: the smaller of `epochs` and `steps`, 50 epochs if neither is given."""
        per_epoch = math.ceil(num_data / self.batch_size)
        epochs = _DEFAULT_EPOCHS if self.epochs is None and self.steps is None else self.epochs
        limits = [limit for limit in (self.steps, None if epochs is None else epochs * per_epoch) if limit is not None]
        return min(limits)


@dataclass(frozen=True)
class Fit:
    """What a fit did; the trained parameters are in the pair itself."""

    history: History
    """One record an epoch."""
    steps: int
    """Steps done."""
    seconds: float
    """Wall time of the training, in seconds, checks included."""
    best_step: int
    """Step of the parameters now in the pair: that of the best validation, or the last."""
    stopped_early: bool
    """Whether validation stopped improving for `patience` epochs."""
    report: CheckReport
    """What `check` said of the pair."""
    settings: FitSettings
    """The settings of the fit."""

    def __repr__(self) -> str:
        last = self.history[-1]
        return f"Fit(steps={self.steps}, seconds={self.seconds:.1f}, elbo={last.elbo:.3f} nats per datum)"


def fit(
    pair: Any,
    data: Any,
    *,
    objective: Objective = ELBO(),
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    optimizer: OptimizerFactory | None = None,
    schedule: Schedule | None = None,
    clip_norm: float | None = None,
    binarize: Literal["dynamic", "fixed"] | None = None,
    validation: Any = None,
    patience: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: Literal["auto"] | bool = "auto",
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> Fit:
    """Trains the parameters of a pair, in place, by stochastic variational inference.

    Every row is used once an epoch, in an order that is a function of (seed, epoch); the noise of a step is a function
    of (seed, step). The same seed on the same machine gives the same numbers, and torch's own random state is left
    as it was. A loss or gradient that is not finite stops the fit before the optimiser uses it.

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`.
        data: Tensor or numpy array (N, *event), a tuple of them (the arguments of the programs), a memory-mapped
            array, or a torch `Dataset`. Floating data are converted to the dtype of the parameters.
        objective: `ELBO(...)`, `IWAE(...)`, `Renyi(...)`, or `from_pyro(...)`.
        epochs: Passes over the data; 50 if neither `epochs` nor `steps` is given.
        steps: Number of steps; the first limit reached counts.
        batch_size: Rows a step; the last batch of an epoch may be smaller.
        learning_rate: Of the optimiser, times `schedule(step)`.
        optimizer: Called as `optimizer(parameters, lr=...)`; Adam by default, fused.
        schedule: Factor of the learning rate by step, such as `schedules.Cosine(1, 0, steps)`.
        clip_norm: Largest norm of the whole gradient.
        binarize: Read the first array, in [0, 1], as probabilities: "dynamic" draws new binary data every step,
            "fixed" once.
        validation: Held-out data of the same form; its ELBO is computed every epoch, and the parameters with the best
            one are kept. Under `binarize` it is binarised once.
        patience: Stop after this many epochs without a better validation.
        seed: Of the order of the data and of all noise.
        device: "auto" takes CUDA where there is one. Parameters stay where they were trained.
        compile: A compiled path is not in this version: "auto" and False run eagerly, True raises.
        run_dir: Directory to leave configuration, environment, history and parameters in; must be new or empty.
        progress: Show a progress bar where there is a terminal.

    Returns:
        A `Fit`.

    Raises:
        PairError: If the pair is not valid (see `check`).
        DataError: If data are not finite, empty, or outside the support of their site; the row is named.
        EstimateError: If the loss or a gradient stops being finite; site and rows are named.

    Reference:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014). Stochastic Backpropagation and Approximate
        Inference in Deep Generative Models (Rezende, Mohamed and Wierstra, 2014).

    Example:
        >>> import torch, ppl_vae as pv
        >>> x = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.1).sample(200).float()
        >>> decoder, encoder = pv.decoders.Gaussian.mlp(1, [8], 2), pv.encoders.DiagonalNormal.mlp(2, [8], 1)
        >>> vae = pv.VAE(pv.priors.StandardNormal(1), decoder, encoder)
        >>> result = pv.fit(vae, x, epochs=3, progress=False)
        >>> result.steps, len(result.history)
        (6, 3)
    """
    if compile is True:
        raise ValueError("compile=True: a compiled path is not in this version; use compile='auto' or False")
    settings = FitSettings(
        objective, epochs, steps, batch_size, learning_rate, optimizer, schedule, clip_norm, binarize, patience, seed
    )
    if patience is not None and validation is None:
        raise ValueError("patience: expected validation data to watch, found none; pass validation=...")
    start = time.monotonic()
    pair = as_pair(pair)
    target = choose_device(device)
    directory = RunDirectory.create(run_dir, settings) if run_dir is not None else None
    rows = _training_rows(pair, data, settings)
    held_out = None if validation is None else _validation_rows(pair, validation, settings)
    report = _checked(pair, rows, settings)
    if held_out is not None:
        check_observations(pair, held_out)
    pair.to(target)
    loop = _Loop(pair, rows.to(target), held_out and held_out.to(target), report, settings, target, start)
    with ExitStack() as stack:
        stack.enter_context(seeded(key(seed), target))
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(frozen_modes(pair, training=True))
        result = loop.run(progress, directory)
    if directory is not None:
        directory.write_parameters(pair)
    return result


class _Loop:
    """State of one fit; `step` is a function of tensors and the only thing in the hot path."""

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
        self.guard = _Guard(self.optimizer, device)
        self.history = History()
        self.best: tuple[float, int, list[Tensor]] | None = None

    def run(self, progress: bool, directory: RunDirectory | None) -> Fit:
        total = self.settings.total_steps(len(self.rows))
        step = epoch = 0
        with Progress("fit", total, progress, "step") as bar:
            while step < total and not self._out_of_patience(epoch):
                sums, seen = torch.zeros(5, device=self.device), 0
                for batch in self._batches(epoch, total - step):
                    values, norm = self.step(step, batch)
                    means = torch.stack([values.objective, values.elbo, values.distortion, values.rate, norm])
                    sums += len(batch[0]) * means
                    step, seen = step + 1, seen + len(batch[0])
                    if bar.due:
                        bar.update(step, _progress_text(epoch + 1, sums / seen))
                self.guard.poll(self, final=True)
                epoch += 1
                record = self._record(epoch, step, (sums / seen).tolist())
                self.history.append(record)
                bar.update(step, _progress_text(epoch, sums / seen))
                if directory is not None:
                    directory.append_history(record)
        best_step = self._restore_best(step)
        seconds = time.monotonic() - self.start
        stopped = self._out_of_patience(epoch)
        return Fit(self.history, step, seconds, best_step, stopped, self.report, self.settings)

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
            for group in self.optimizer.param_groups:
                group["lr"] = settings.learning_rate * settings.schedule(step)
        self.guard.check(values.loss, norm, step, self)
        self.optimizer.step()
        return values, norm

    def batch_of(self, step: int) -> tuple[Tensor, ...]:
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
            for _, batch in self.held_out.blocks(_VALIDATION_BLOCK, self.device):
                values = judge.evaluate(self.pair, batch, self.layout, 1.0)
                share = len(batch[0]) / len(self.held_out)
                elbo += share * float(values.elbo)
                watched += share * float(values.objective)
        if self.best is None or watched > self.best[0]:
            self.best = (watched, step, [t.detach().clone() for t in self._state()])
            self.best_epoch = len(self.history) + 1
        return elbo

    def _state(self) -> list[Tensor]:
        return [*self.parameters, *self.pair.buffers()]

    def _restore_best(self, step: int) -> int:
        if self.best is None:
            return step
        with torch.no_grad():
            for tensor, kept in zip(self._state(), self.best[2], strict=True):
                tensor.copy_(kept)
        return self.best[1]

    def _out_of_patience(self, epoch: int) -> bool:
        patience = self.settings.patience
        return patience is not None and self.best is not None and epoch - self.best_epoch >= patience


class _Guard:
    """Lets no number that is not finite reach the optimiser.

    On the CPU every step is looked at. On a GPU a look would stall it: there the fused optimiser is told to skip every
    step from the first bad one on, and the host looks now and then.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._lazy = device.type == "cuda" and bool(optimizer.defaults.get("fused"))
        self._first_bad = torch.full((), -1, device=device)

    def check(self, loss: Tensor, norm: Tensor, step: int, loop: _Loop) -> None:
        healthy = torch.isfinite(loss.detach() + norm)
        if not self._lazy:
            if not bool(healthy):
                self._stop(step, loop)
            return
        newly = (self._first_bad < 0) & ~healthy
        self._first_bad = torch.where(newly, step, self._first_bad)
        self._optimizer.found_inf = (self._first_bad >= 0).float()  # type: ignore[attr-defined]
        if step % _POLL_STEPS == 0:
            self.poll(loop)

    def poll(self, loop: _Loop, final: bool = False) -> None:
        if self._lazy and (bad := int(self._first_bad)) >= 0:
            self._stop(bad, loop)

    def _stop(self, step: int, loop: _Loop) -> None:
        reason = explain_non_finite(loop.pair, loop.batch_of(step), loop.layout)
        raise EstimateError(
            f"step {step + 1}: the loss or its gradient is not finite: {reason}. The parameters are those before the "
            "step; try a smaller learning_rate, clip_norm=..., or a lower bound on scales"
        )


def _training_rows(pair: Pair, data: Any, settings: FitSettings) -> Rows:
    rows = as_rows(data).with_dtype(pair.dtype)
    if settings.binarize is None:
        return rows
    _check_probabilities(rows)
    return _binarized(rows, key(settings.seed, _FIXED)) if settings.binarize == "fixed" else rows


def _validation_rows(pair: Pair, data: Any, settings: FitSettings) -> Rows:
    rows = as_rows(data).with_dtype(pair.dtype)
    if settings.binarize is None:
        return rows
    _check_probabilities(rows)
    return _binarized(rows, key(settings.seed, _FIXED, _VALIDATION))


def _check_probabilities(rows: Rows) -> None:
    for start, batch in rows.blocks(4096):
        if not batch[0].is_floating_point():
            raise DataError(f"binarize: expected floating data in [0, 1], found {batch[0].dtype}; divide by 255")
        if (outside := first_outside(constraints.unit_interval, batch[0])) is not None:
            raise DataError(f"row {start + outside[0]}: binarize expects data in [0, 1], found {outside[1]:.6g}")


def _binarized(rows: Rows, seed: int) -> Rows:
    if rows.mapped:
        raise DataError("binarize='fixed' would copy a memory-mapped array: binarise the file, or use 'dynamic'")
    with seeded(seed):
        return Rows([torch.bernoulli(torch.as_tensor(rows.arrays[0])), *rows.arrays[1:]], rows.dtype)


def _checked(pair: Pair, rows: Rows, settings: FitSettings) -> CheckReport:
    """Checks pair and data as `ppl_vae.check` does, on the first batch and then on every row."""
    batch = rows.take(slice(0, settings.batch_size))
    if settings.binarize == "dynamic":
        with seeded(key(settings.seed, _FIXED)):
            batch = (torch.bernoulli(batch[0].cpu()), *batch[1:])
    summed = check_for_pyro(pair, batch) if isinstance(settings.objective, FromPyro) else None
    report = summed or check(pair, batch)
    check_observations(pair, rows, skip=(0,) if settings.binarize else ())
    return report


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
