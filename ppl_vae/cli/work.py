"""What the commands do: train, sample and check, and what they leave in a run directory."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
import typer
from torch import Tensor

from ppl_vae import schedules
from ppl_vae.checking import CheckReport, check
from ppl_vae.cli.evaluating import EvaluationSettings, evaluate_run
from ppl_vae.cli.inputs import Batch, Splits, load_splits
from ppl_vae.cli.pairs import first_use, make_pair, naming_the_line
from ppl_vae.cli.pictures import draw_fit, has_mean, save_images
from ppl_vae.cli.reopening import reopen
from ppl_vae.data import binarize
from ppl_vae.device import choose_device
from ppl_vae.distributed import Group
from ppl_vae.errors import PairError
from ppl_vae.objectives import ELBO, IWAE
from ppl_vae.rundir import (
    DataSpec,
    PairSpec,
    RunRecord,
    check_free,
    described,
    fingerprint,
    write_run,
)
from ppl_vae.storage import as_name
from ppl_vae.svi import Fit, fit
from ppl_vae.vae import VAE

__all__ = ["Training", "check_pair", "free_directory", "sample", "train"]

_CHECKED_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options of `ppl-vae fit` that decide the training."""

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: Literal["constant", "cosine"]
    objective: Literal["elbo", "iwae"]
    num_particles: int
    beta: float
    beta_warmup: int
    validation: bool
    patience: int | None
    seed: int
    device: str
    compile: Literal["auto"] | bool

    def total_steps(self, num_data: int) -> int:
        """Number of steps on a data set."""
        return self.epochs * math.ceil(num_data / self.batch_size)


def train(
    pair_spec: PairSpec,
    data_spec: DataSpec,
    training: Training,
    evaluation: EvaluationSettings | None,
    root: Path,
    group: Group,
) -> None:
    """Fit the pair, then leave configuration, history, parameters, figures and an evaluation in `root`."""
    device = choose_device(training.device)
    with group.together(device):
        if group.leads:
            check_free(root)
        splits = load_splits(data_spec)
        pair = make_pair(pair_spec, splits.train)
        with naming_the_line(f"pair {pair_spec.name!r} failed"), first_use(pair_spec):
            report = check(pair, _binary_batch(data_spec, splits.train))
    typer.echo(f"{pair_spec.name}: {report.num_parameters:,} parameters; {splits.title}: {_sizes(splits, training)}")
    for caution in report.cautions:
        typer.echo(f"caution: {caution}")
    record = RunRecord(
        command=(Path(sys.argv[0]).name, *sys.argv[1:]),
        pair=pair_spec,
        data=_found_from_anywhere(data_spec),
        data_sha256=fingerprint(*splits.test),
        device=str(device),
        num_parameters=report.num_parameters,
    )
    try:
        with (
            described(root, record) if group.leads else nullcontext(),
            naming_the_line(f"pair {pair_spec.name!r} failed"),
            _cautions_said(),
        ):
            result = _fit(pair, splits, data_spec, training, device, root)
    except (KeyboardInterrupt, SystemExit):
        if root.exists():
            typer.echo(f"{root}: parameters of the moment; `ppl-vae evaluate {root}` takes them")
        raise
    if group.leads:
        _finish(root, record, result, pair, splits, training.objective)
    if evaluation is not None:
        with _training_is_kept(root):
            evaluate_run(root, pair, splits, evaluation, group)
    if group.leads:
        typer.echo(f"{root}: {', '.join(sorted(path.name for path in root.iterdir()))}")


@contextmanager
def _training_is_kept(root: Path) -> Iterator[None]:
    """Context of the evaluation at the end: whoever interrupts it learns that nothing of the training is lost."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"{root}: training is finished and saved; `ppl-vae evaluate {root}` evaluates it")
        raise


@contextmanager
def _cautions_said() -> Iterator[None]:
    """Context in which `fit` does not warn of what the command has printed, perhaps of another number of rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "site .* gives a density to data of only")
        yield


def _finish(root: Path, record: RunRecord, result: Fit, pair: Any, splits: Splits, objective: str) -> None:
    done = replace(record, status="finished", steps=result.steps, best_step=result.best_step, seconds=result.seconds)
    write_run(root, done)
    last, kind = result.history[-1], "compiled steps" if result.compiled else "steps"
    reached = f"ELBO {last.elbo:.2f} = -({last.distortion:.2f} distortion + {last.rate:.2f} rate)"
    if math.isnan(last.elbo):
        reached = f"objective {last.objective:.2f}"
    typer.echo(f"{result.steps} {kind} in {result.seconds:.1f} s: {reached} nats per datum in the last epoch")
    name = "IWAE bound" if objective == "iwae" else "ELBO with beta"
    draw_fit(root, pair, splits, result.history, name)


def _fit(pair: Any, splits: Splits, data_spec: DataSpec, training: Training, device: torch.device, root: Path) -> Fit:
    batch = splits.train
    if not training.validation:
        batch = tuple(torch.cat(parts) for parts in zip(splits.train, splits.validation, strict=True))
    return fit(
        pair,
        batch,
        objective=_objective(training, len(batch[0])),
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        schedule=_schedule(training, len(batch[0])),
        binarize="dynamic" if data_spec.binarize == "dynamic" else None,
        validation=splits.validation if training.validation else None,
        patience=training.patience,
        seed=training.seed,
        device=device,
        compile=training.compile,
        run_dir=root,
    )


def _found_from_anywhere(spec: DataSpec) -> DataSpec:
    """The data with a file by its absolute path: `evaluate` may be run in another folder."""
    return replace(spec, name=str(Path(spec.name).resolve())) if spec.is_file else spec


def free_directory(pair_name: str, data_name: str) -> Path:
    """Return the first directory runs/PAIR-DATA-NUMBER that does not exist."""
    name = as_name(f"{pair_name.rpartition(':')[2]}-{Path(data_name).stem}")
    return next(path for number in count(1) if not (path := Path("runs", f"{name}-{number}")).exists())


def sample(root: Path, pair_name: str | None, data_dir: str | None, n: int, seed: int, draws: bool, out: Path) -> None:
    """Draw data from the model of a run into an image or an array file."""
    pair, splits = reopen(root, pair_name, data_dir)
    title = "E[x | z], z ~ p(z)" if isinstance(pair, VAE) and not draws else "draws of x"
    save_images(_samples(pair, n, seed, draws), splits, out, f"{root.name}: {title}")
    typer.echo(str(out))


def check_pair(pair_spec: PairSpec, data_spec: DataSpec, num_rows: int) -> CheckReport:
    """Check a pair on the first rows of the training data."""
    splits = load_splits(data_spec)
    pair = make_pair(pair_spec, splits.train)
    with naming_the_line(f"pair {pair_spec.name!r} failed"):
        return check(pair, _binary_batch(data_spec, splits.train, num_rows))


def _samples(pair: Any, n: int, seed: int, draws: bool) -> Tensor:
    if not hasattr(pair, "sample"):
        raise PairError(
            f"expected a pair with a method sample(n, seed), found a {type(pair).__name__} without one: let the "
            "factory return an object that has it beside .model and .guide, such as a VAE, or set pair.sample to a "
            "function"
        )
    means = isinstance(pair, VAE) and not draws and has_mean(pair)
    return pair.sample(n, seed=seed, mean=True) if means else pair.sample(n, seed=seed)


def _objective(training: Training, num_data: int) -> ELBO | IWAE:
    if training.objective == "iwae":
        return IWAE(training.num_particles)
    if not training.beta_warmup:
        return ELBO(training.num_particles, beta=training.beta)
    warm = replace(training, epochs=training.beta_warmup).total_steps(num_data)
    return ELBO(training.num_particles, beta=schedules.Linear(0.0, training.beta, warm))


def _schedule(training: Training, num_data: int) -> schedules.Schedule | None:
    return schedules.Cosine(1.0, 0.0, training.total_steps(num_data)) if training.schedule == "cosine" else None


def _binary_batch(spec: DataSpec, batch: Batch, num_rows: int = _CHECKED_ROWS) -> Batch:
    first, *others = (x[:num_rows] for x in batch)
    return (binarize(first) if spec.binarize == "dynamic" else first, *others)


def _sizes(splits: Splits, training: Training) -> str:
    validation = f"{len(splits.validation[0]):,} validation" if training.validation else "validation data train too"
    return f"{len(splits.train[0]):,} training, {validation}, {len(splits.test[0]):,} test"
