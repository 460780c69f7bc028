"""What the commands do: train, evaluate, sample and check, and what they leave in a run directory."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import typer
from torch import Tensor

from ppl_vae import schedules
from ppl_vae.checking import CheckReport, check
from ppl_vae.cli.inputs import DataSpec, Splits, fingerprint, load_splits
from ppl_vae.cli.pairs import PairSpec, make_pair
from ppl_vae.cli.pictures import draw_evaluation, draw_fit, save_images
from ppl_vae.cli.record import Evaluation, RunRecord, read_run, write_record
from ppl_vae.data import binarize
from ppl_vae.errors import DataError, PairError
from ppl_vae.evaluation import LogLikelihood, log_likelihood
from ppl_vae.objectives import ELBO, IWAE
from ppl_vae.pair import as_pair
from ppl_vae.rundir import RunDirectory
from ppl_vae.svi import fit
from ppl_vae.vae import VAE

__all__ = ["EvaluationSettings", "Training", "check_pair", "evaluate", "free_directory", "sample", "train"]

_CHECKED_ROWS = 64


@dataclass(frozen=True)
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

    def total_steps(self, num_data: int) -> int:
        """Number of steps on a data set."""
        return self.epochs * math.ceil(num_data / self.batch_size)


@dataclass(frozen=True)
class EvaluationSettings:
    """Options of an evaluation."""

    num_samples: int
    limit: int | None
    seed: int
    device: str


def train(
    pair_spec: PairSpec, data_spec: DataSpec, training: Training, evaluation: EvaluationSettings | None, root: Path
) -> None:
    """Fit the pair, then leave configuration, history, parameters, figures and an evaluation in `root`."""
    splits = load_splits(data_spec)
    pair = make_pair(pair_spec, splits.train)
    report = check(pair, _binary_batch(data_spec, splits.train))
    typer.echo(f"{pair_spec.name}: {report.num_parameters:,} parameters; {splits.title}: {_sizes(splits, training)}")
    rows = splits.train if training.validation else torch.cat([splits.train, splits.validation])
    result = fit(
        pair,
        rows,
        objective=_objective(training, len(rows)),
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        schedule=_schedule(training, len(rows)),
        binarize="dynamic" if data_spec.binarize == "dynamic" else None,
        validation=splits.validation if training.validation else None,
        patience=training.patience,
        seed=training.seed,
        device=training.device,
        run_dir=root,
    )
    # A file is found again wherever `evaluate` is run from.
    where = replace(data_spec, name=str(Path(data_spec.name).resolve())) if data_spec.is_file else data_spec
    command = (Path(sys.argv[0]).name, *sys.argv[1:])
    record = RunRecord(
        command=command,
        pair=pair_spec,
        data=where,
        data_sha256=fingerprint(splits.test),
        num_parameters=report.num_parameters,
        steps=result.steps,
        best_step=result.best_step,
        seconds=result.seconds,
    )
    write_record(root, record)
    last = result.history[-1]
    typer.echo(
        f"{result.steps} steps in {result.seconds:.1f} s: ELBO {last.elbo:.2f} = -({last.distortion:.2f} distortion + "
        f"{last.rate:.2f} rate) nats per datum in the last epoch"
    )
    draw_fit(root, pair, splits, result.history)
    if evaluation is not None:
        _evaluate(root, pair, splits, evaluation)
    typer.echo(f"{root}: {', '.join(sorted(path.name for path in root.iterdir()))}")


def free_directory(pair_name: str, data_name: str) -> Path:
    """Return the first directory runs/PAIR-DATA-NUMBER that does not exist."""
    name = f"{pair_name.rpartition(':')[2]}-{Path(data_name).stem}"
    return next(path for number in count(1) if not (path := Path("runs", f"{name}-{number}")).exists())


def evaluate(root: Path, pair_name: str | None, data_dir: str | None, settings: EvaluationSettings) -> None:
    """Estimate the log-likelihood of the test data under the parameters of a run."""
    pair, splits = _reopen(root, pair_name, data_dir)
    _evaluate(root, pair, splits, settings)


def sample(root: Path, pair_name: str | None, data_dir: str | None, n: int, seed: int, draws: bool, out: Path) -> None:
    """Draw data from the model of a run into an image or an array file."""
    pair, splits = _reopen(root, pair_name, data_dir)
    save_images(_samples(pair, n, seed, draws), splits, out)
    typer.echo(str(out))


def check_pair(pair_spec: PairSpec, data_spec: DataSpec, num_rows: int) -> CheckReport:
    """Check a pair on the first rows of the training data."""
    splits = load_splits(data_spec)
    return check(make_pair(pair_spec, splits.train), _binary_batch(data_spec, splits.train, num_rows))


def _reopen(root: Path, pair_name: str | None, data_dir: str | None) -> tuple[Any, Splits]:
    """Make the pair of a run again, with its parameters, and load its data.

    Code of the user's runs only because the user names it here: never by a name that stands in a file.
    """
    record = read_run(root)
    spec = record.pair if pair_name is None else replace(record.pair, name=pair_name)
    if not spec.is_recipe and pair_name is None:
        raise PairError(
            f"{root}: the pair of this run is your own code, which runs only if you name it: add --pair FILE.py:NAME "
            f"(the run was made with {spec.name!r})"
        )
    splits = load_splits(record.data if data_dir is None else replace(record.data, data_dir=data_dir))
    if fingerprint(splits.test) != record.data_sha256:
        raise DataError(
            f"{root}: the data are not those of the run ({record.data.name} has changed): its test rows may have been "
            "training rows; fit again, or bring the old file back"
        )
    pair = make_pair(spec, splits.train)
    as_pair(pair).prepare(splits.test[:1].to(_dtype(pair)))
    RunDirectory(root).read_parameters(as_pair(pair))
    return pair, splits


def _evaluate(root: Path, pair: Any, splits: Splits, settings: EvaluationSettings) -> None:
    x = splits.test[: settings.limit]
    result = log_likelihood(pair, x, settings.num_samples, settings.seed, device=settings.device)
    arrays = {name: getattr(result, name) for name in ("value", "stderr", "ess", "khat", "elbo", "zero_weights")}
    np.savez(root / "evaluation.npz", **arrays)
    title = f"{splits.title}, {'all' if len(x) == len(splits.test) else 'first'} {len(x):,} test data"
    write_record(root, _summary(result, x, title, settings.seed))
    draw_evaluation(root, result, title)
    typer.echo(f"{title}: {result}")
    typer.echo(
        f"bits per dimension {result.bits_per_dimension(splits.event_size):.4f}; as an estimate for new data of this "
        f"kind the mean has a standard error of {result.population_stderr:.3f} nats"
    )


def _summary(result: LogLikelihood, x: Tensor, title: str, seed: int) -> Evaluation:
    return Evaluation(
        data=title,
        data_sha256=fingerprint(x),
        num_data=len(x),
        event_size=x[0].numel(),
        num_samples=result.num_samples,
        seed=seed,
        mean=result.mean,
        mean_stderr=result.mean_stderr,
        population_stderr=result.population_stderr if len(x) > 1 else None,
        elbo=float(result.elbo.mean()),
        ess=float(np.median(result.ess)),
        share_khat=float((result.khat > 0.7).mean()),
        seconds=result.seconds,
        verdict=str(result),
    )


def _samples(pair: Any, n: int, seed: int, draws: bool) -> Tensor:
    if not hasattr(pair, "sample"):
        raise PairError(f"expected a pair with a method sample(n, seed), such as a VAE, found {type(pair).__name__}")
    return pair.sample(n, seed=seed, mean=True) if isinstance(pair, VAE) and not draws else pair.sample(n, seed=seed)


def _objective(training: Training, num_data: int) -> ELBO | IWAE:
    if training.objective == "iwae":
        return IWAE(training.num_particles)
    if not training.beta_warmup:
        return ELBO(training.num_particles, beta=training.beta)
    warm = replace(training, epochs=training.beta_warmup).total_steps(num_data)
    return ELBO(training.num_particles, beta=schedules.Linear(0.0, training.beta, warm))


def _schedule(training: Training, num_data: int) -> schedules.Schedule | None:
    return schedules.Cosine(1.0, 0.0, training.total_steps(num_data)) if training.schedule == "cosine" else None


def _binary_batch(spec: DataSpec, x: Tensor, num_rows: int = _CHECKED_ROWS) -> Tensor:
    batch = x[:num_rows]
    return binarize(batch) if spec.binarize == "dynamic" else batch


def _sizes(splits: Splits, training: Training) -> str:
    held = f"{len(splits.validation):,} validation" if training.validation else "validation data train too"
    return f"{len(splits.train):,} training, {held}, {len(splits.test):,} test"


def _dtype(pair: Any) -> torch.dtype:
    return next((p.dtype for p in as_pair(pair).parameters() if p.is_floating_point()), torch.float32)
