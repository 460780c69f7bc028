"""Stochastic variational inference for any pair, any objective, any torch optimiser."""

from __future__ import annotations

import math
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ppl_vae.arrays import Rows
from ppl_vae.checking import CheckReport
from ppl_vae.device import choose_device, full_precision
from ppl_vae.distributed import Group, current
from ppl_vae.history import History
from ppl_vae.objectives import ELBO, Objective
from ppl_vae.pair import Pair, as_pair, frozen_modes
from ppl_vae.rng import key, seeded
from ppl_vae.rundir import RUN, check_free
from ppl_vae.schedules import Schedule
from ppl_vae.shrinking import undivided
from ppl_vae.storage.files import where_links_lead
from ppl_vae.svi.facts import facts_of
from ppl_vae.svi.gradient import check_gradients_enabled
from ppl_vae.svi.inputs import check_held_out, checked, training_rows, validation_rows
from ppl_vae.svi.joint import begin_together
from ppl_vae.svi.loop import Course, Loop
from ppl_vae.svi.moving import check_own_memory
from ppl_vae.svi.resuming import Resume, check_options, keeping, shared, storable
from ppl_vae.svi.saving import Every
from ppl_vae.svi.settings import FitSettings, OnNonfinite, OptimizerFactory
from ppl_vae.svi.state import restore
from ppl_vae.svi.stepper import Stepper
from ppl_vae.svi.trial import check_single_row
from ppl_vae.threads import running_programs
from ppl_vae.validation import validating

__all__ = ["Fit", "fit"]


@dataclass(frozen=True)
class Fit:
    """What a fit did; the trained parameters are in the pair itself."""

    history: History
    """One record an epoch; the last one may be of an epoch that `steps` has left unfinished."""
    steps: int
    """Steps done."""
    seconds: float
    """Wall time of the training, in seconds, checks included: of all `steps`, those before a resume too."""
    best_step: int
    """Step of the parameters now in the pair: that of the best validation, or the last."""
    stopped_early: bool
    """Whether validation stopped improving for `patience` epochs."""
    skipped: tuple[int, ...]
    """Zero-based numbers of the steps that were skipped because they were not finite."""
    rolled_back: tuple[int, ...]
    """Zero-based numbers of the steps from which the fit went back because they were not finite."""
    compiled: bool
    """Whether steps ran compiled to the end."""
    report: CheckReport
    """What `check` said of the pair."""
    settings: FitSettings
    """The settings of the fit."""

    def __repr__(self) -> str:
        last = self.history[-1]
        bound = f"objective={last.objective:.3f}" if math.isnan(last.elbo) else f"elbo={last.elbo:.3f}"
        return f"Fit(steps={self.steps}, seconds={self.seconds:.1f}, {bound} nats per datum)"


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
    record_kl: bool = False,
    on_nonfinite: OnNonfinite = "stop",
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: Literal["auto"] | bool = "auto",
    run_dir: str | Path | None = None,
    resume: Resume = False,
    checkpoint_every: Every = None,
    progress: bool = True,
) -> Fit:
    """Trains the parameters of a pair, in place, by stochastic variational inference.

    Every row is used once an epoch, in an order that is a function of (seed, epoch); the noise of a step is a function
    of (seed, step). The same seed on the same machine gives the same numbers from the same parameters, and torch's own
    random state is left as it was. Only initial values that `pyro.param` is given as a function, and makes in the first
    run of the pair, are drawn from that state, as those of a module are when it is constructed: `torch.manual_seed`
    decides them. A loss or gradient that is not finite stops the fit before the optimiser uses it.

    Where torch.distributed has been started, every process has to call this with the same data and options: each takes
    its share of every batch, all take the joint step, and the noise is a function of (seed, step, process).

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`.
        data: Tensor or numpy array (N, *event), a tuple of them (the arguments of the programs), a memory-mapped
            array, or a torch `Dataset`. Floating data are converted to the dtype of the parameters, those made in the
            first run of the pair included; a number that this moves by a thousandth of its standard deviation or more
            (1e7 + noise in float32) is refused. Rows of a memory-mapped array stay on disk and are read a few batches
            ahead; a file of more than 16,384 rows is shuffled in part: blocks of 64 rows come in random order, rows are
            shuffled within each 256 blocks.
        objective: `ELBO(...)`, `IWAE(...)`, `Renyi(...)`, or `from_pyro(...)`.
        epochs: Passes over the data; 50 if neither `epochs` nor `steps` is given.
        steps: Number of steps; the first limit reached counts.
        batch_size: Rows a step, over all processes; the last batch of an epoch may be smaller.
        learning_rate: Of the optimiser, times `schedule(step)`.
        optimizer: Called as `optimizer(parameters, lr=...)`; Adam by default, fused where no parameter is complex.
        schedule: Factor of the learning rate by step, such as `schedules.Cosine(1, 0, steps)`.
        clip_norm: Largest norm of the whole gradient.
        binarize: Read the first array, in [0, 1], as probabilities: "dynamic" draws new binary data every step,
            "fixed" once.
        validation: Held-out data of the same form; its ELBO is computed every epoch and after the last step, and the
            parameters with the best one are kept, with the values that programs kept beside them. Under `binarize` it
            is binarised once.
        patience: Stop after this many whole epochs without a better validation.
        record_kl: Keep the KL of each latent scalar on the validation data, every epoch: `history.kl(site)` and
            `figures.latent_curves` show which are used. Costs one more run of the programs on them.
        on_nonfinite: What becomes of a step whose loss or gradient is not finite, which no parameter ever sees: "stop"
            ends the fit; "skip" leaves the step and its rows out, `Fit.skipped` counts; "rollback" goes back to the end
            of the last epoch (or the start, or the checkpoint that was resumed) with half the learning rate, ten times
            at most. Site, parameter and rows are named, and `run_dir` gets what `replay` needs to do the step again.
            Parameters and buffers are those before the step; what programs keep elsewhere, such as a running mean in an
            attribute, is as the step has left it, NaN included, unless the fit goes back: keep it in a buffer.
        seed: Of the order of the data and of all noise.
        device: "auto" takes CUDA where there is one. Parameters stay where they were trained.
        compile: Whether to compile the step: True before the first one, "auto" after it, if the steps that are left
            will earn back what compiling costs, as the number and size of its operations tell. A pair that cannot be
            compiled trains all the same, and a warning names the line that stands in the way. The numbers are those of
            the step as written, up to rounding. Where something that programs may read by name outside tensors (an
            attribute, a variable, an entry of a container, a number of an array, a forward hook) changes later, the fit
            goes on as written, and a warning names it. Unseen are changes within arrays of more than 4,096 numbers and
            containers of more than 1,000 entries, of what iterators (`itertools.count`), cached functions
            (`functools.lru_cache`), hooks, extensions and objects of other libraries (a DataFrame, say) keep, and of
            what lies outside Python's variables, such as the environment, files and the clock: programs that read those
            need False.
        run_dir: Directory to leave configuration, environment, history, parameters and checkpoints in; new or empty,
            unless the fit resumes. SIGINT and SIGTERM then wait for the end of the step and a checkpoint.
        resume: Go on from the newest checkpoint in `run_dir` that is not damaged: "auto" if there is one, True in any
            case, False never. From the same pair, data and options the numbers are, bit by bit, those of a fit that was
            never interrupted, nor shorter: the record of an epoch that `steps` left unfinished, and its validation, are
            replaced by those of the whole one. (Whether to compile, "auto" decides by the first `steps`.) On other
            versions (of ppl_vae, torch, Pyro, NumPy, Python), types of device, processors or numbers of threads they
            are not, and a warning says which. `epochs`, `steps` and `on_nonfinite` may be others. Every row of data in
            memory is compared; of a file that stays on disk its shape and about a thousand rows; of functions, and of
            the programs, their code and the values that they mention. A warning says so where the run has done more
            steps than are asked for, or begins anew because no checkpoint is there.
        checkpoint_every: Steps, or a `timedelta`, between two checkpoints; None takes half a hundredth of the time for
            them, at most. One is written at the end in any case; the last two are kept.
        progress: Show a progress bar where there is a terminal.

    Returns:
        A `Fit`.

    Raises:
        ValueError: If an option has no meaning, or the optimiser needs a closure or has no learning rate.
        PplVaeError: If another thread checks, fits or evaluates a pair: use processes. If gradients are switched off
            outside.
        PairError: If the pair is not valid (see `check`), needs more rows than a batch has, or raises in a step, which
            is named; the error itself is the cause. If its parameters change during the fit in another way than in
            their numbers: one is frozen, replaced or added. If one, or a buffer, was expanded and may have to be put
            back, as with validation data, a run directory or `on_nonfinite`.
        DataError: If data are not finite, empty, or outside the support of their site; the row is named.
        EstimateError: If the loss or a gradient stops being finite, and `on_nonfinite` does not help; site and rows are
            named. If memory does not suffice for a step.
        GroupError: If one of several processes ends, hangs, or was given something else.
        CheckpointError: If a checkpoint cannot be written, or could not hold the pair, or the fit has to resume and
            cannot: none is there, all are damaged, or they are of another run; each is named, and why. If `resume` is
            "auto" and a run has left its parameters, and no checkpoint of it is there.
        StorageError: If another file of the run cannot be written, or torch finds no folder for temporary files.
        LockedError: If another process works in `run_dir`; its number is said. If `run_dir` is moved or replaced while
            the fit is at work in it, or its `.lock` is removed.

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
    settings = FitSettings(
        objective=objective,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        schedule=schedule,
        clip_norm=clip_norm,
        binarize=binarize,
        patience=patience,
        record_kl=record_kl,
        seed=seed,
        on_nonfinite=on_nonfinite,
    )
    _check_watched(settings, validation)
    check_gradients_enabled()
    check_options(resume, checkpoint_every, run_dir)
    start, group, target = time.monotonic(), current(), choose_device(device)
    root = None if run_dir is None else where_links_lead(Path(run_dir)).absolute()
    with ExitStack() as stack:
        stack.enter_context(running_programs())
        stack.enter_context(
            undivided("what this fit does before its steps", "keep the data on disk, if they are large")
        )
        stack.enter_context(full_precision(target))
        with group.together(target):
            if root is not None and group.leads and not resume:
                check_free(root, allowed={RUN})
            ready = _prepared(as_pair(pair), data, validation, settings, target, compile, group)
            if root is not None or validation is not None or on_nonfinite != "stop":
                check_own_memory(ready.stepper.pair)
            data_read = (ready.rows, ready.held_out)
            facts: dict[str, Any] = {}
            if root is not None:
                told = partial(facts_of, ready.stepper.pair, settings, compile, data_read, target, group)
                facts = storable(root, told)
            keeper = stack.enter_context(keeping(root, ready.stepper, facts, resume, checkpoint_every))
        begin_together(group, ready.stepper.pair, ready.report.layout, settings, data_read, target)
        state = shared(keeper.state, group, target)
        for caution in ready.report.cautions if group.leads else ():
            warnings.warn(caution, UserWarning, stacklevel=2)
        loop = Loop(ready.stepper, None if ready.held_out is None else ready.held_out.to(target), start)
        stack.enter_context(seeded(key(seed), target))
        stack.enter_context(validating(False))
        stack.enter_context(frozen_modes(loop.pair, training=True))
        if state is not None:
            restore(loop, state)
            _say_nothing_is_left(loop)
        size = min(batch_size, len(ready.rows))
        with undivided(f"a step of this fit, on {size} rows", "choose a smaller batch_size"):
            course = loop.run(progress and group.leads, keeper)
    return _as_fit(loop, course, ready.report)


def _check_watched(settings: FitSettings, validation: Any) -> None:
    """Refuses options about validation data where there are none."""
    for name, wanted in (("patience", settings.patience is not None), ("record_kl", settings.record_kl)):
        if wanted and validation is None:
            raise ValueError(f"{name}: expected validation data to watch, found none; pass validation=...")


def _say_nothing_is_left(loop: Loop) -> None:
    """Warns of a fit that resumes after more steps than it asks for."""
    if loop.step > (total := loop.settings.total_steps(len(loop.stepper.feed.rows))) and loop.stepper.group.leads:
        warnings.warn(
            f"the run has done {loop.step} steps, and epochs= or steps= ask for {total}: no step is taken; ask for "
            "more than the run has done, or choose another run_dir for a shorter one",
            UserWarning,
            stacklevel=3,
        )


def _as_fit(loop: Loop, course: Course, report: CheckReport) -> Fit:
    return Fit(
        history=loop.history,
        steps=course.steps,
        seconds=loop.seconds,
        best_step=course.best_step,
        stopped_early=course.stopped_early,
        skipped=tuple(loop.policy.skipped),
        rolled_back=tuple(loop.policy.rolled_back),
        compiled=loop.stepper.compiled is not None,
        report=report,
        settings=loop.settings,
    )


class _Ready(NamedTuple):
    """A fit that has been checked and may begin."""

    stepper: Stepper
    rows: Rows
    held_out: Rows | None
    report: CheckReport


def _prepared(
    pair: Pair,
    data: Any,
    validation: Any,
    settings: FitSettings,
    device: torch.device,
    compile: Literal["auto"] | bool,
    group: Group,
) -> _Ready:
    """Checks pair and data, and puts the pair on its device."""
    rows = training_rows(pair, data, settings)
    held_out = None if validation is None else validation_rows(pair, validation, rows, settings)
    report = checked(pair, rows, settings)
    if held_out is not None:
        check_held_out(pair, held_out, report.layout, settings)
    pair.to(device)
    stepper = Stepper(pair, rows.to(device), report.layout, settings, device, compile, group)
    check_single_row(pair, stepper.feed.rows, report.layout, settings, stepper.feed.order)
    return _Ready(stepper, rows, held_out, report)
