"""What `ppl-vae fit` and `ppl-vae resume` do, and what they leave in a run directory."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import typer

from ppl_vae import schedules
from ppl_vae.checking import CheckReport, check
from ppl_vae.cli.evaluating import EvaluationSettings, evaluate_run
from ppl_vae.cli.inputs import Batch, Splits, load_splits
from ppl_vae.cli.objective import decided, name_of, objective_of, score_caution
from ppl_vae.cli.pairs import first_use, make_pair, naming_the_line
from ppl_vae.cli.pictures import draw_fit
from ppl_vae.cli.reopening import made_again
from ppl_vae.cli.shell import saying_what_is_left, saying_what_is_saved
from ppl_vae.cli.work import binary_batch
from ppl_vae.device import choose_device
from ppl_vae.distributed import Group
from ppl_vae.errors import PplVaeError
from ppl_vae.rundir import (
    DataSpec,
    EvaluationSpec,
    PairSpec,
    RunDirectory,
    RunRecord,
    TrainingSpec,
    check_free,
    described,
    described_again,
    fingerprint,
    read_run,
)
from ppl_vae.storage import Hold, locked
from ppl_vae.storage.files import where_links_lead
from ppl_vae.svi import Fit, fit
from ppl_vae.svi import replay as do_again
from ppl_vae.svi.settings import OnNonfinite

__all__ = ["replay", "resume", "train"]


class _Run(NamedTuple):
    """A run about to train."""

    root: Path
    """Its directory."""
    record: RunRecord
    """Its description."""
    training: TrainingSpec
    """How it trains."""
    pair: Any
    """The pair."""
    splits: Splits
    """The data."""


def train(
    pair_spec: PairSpec,
    data_spec: DataSpec,
    training: TrainingSpec,
    evaluation: EvaluationSpec | None,
    root: Path,
    group: Group,
) -> None:
    """Fit the pair, then leave configuration, history, parameters, figures and an evaluation in `root`."""
    root = where_links_lead(root)
    device = choose_device(training.device)
    with group.together(device):
        if group.leads:
            check_free(root)
        splits = load_splits(data_spec)
        pair = make_pair(pair_spec, splits.train)
        training = decided(training, pair)
        report = _use_first(pair, pair_spec, data_spec, splits)
    typer.echo(f"{pair_spec.name}: {report.num_parameters:,} parameters; {splits.title}: {_sizes(splits, training)}")
    by_score = score_caution(objective_of(training, pair, len(splits.train[0])), report.layout)
    for caution in (*report.cautions, *filter(None, [by_score])):
        typer.echo(f"caution: {caution}")
    if evaluation is not None and report.layout.reconstructed:
        typer.echo("no evaluation after the training: the pair reconstructs what it has read, which has no log p(x)")
        evaluation = None
    record = RunRecord(
        command=(Path(sys.argv[0]).name, *sys.argv[1:]),
        pair=pair_spec,
        data=_found_from_anywhere(data_spec),
        data_sha256=fingerprint(*splits.test),
        device=str(device),
        num_parameters=report.num_parameters,
        training=training,
        evaluation=evaluation,
    )
    description = described(root, record) if group.leads else nullcontext()
    _train(_Run(root, record, training, pair, splits), group, description, resume=False)


def resume(
    root: Path, pair_name: str | None, data_dir: str | None, on_nonfinite: OnNonfinite | None, group: Group
) -> None:
    """Go on with a run that was interrupted, from its newest checkpoint, and finish it as `train` would have."""
    root = where_links_lead(root)
    record, training = _trained(root)
    if on_nonfinite is not None:
        training = replace(training, on_nonfinite=on_nonfinite)
        record = replace(record, training=training)
    if record.status == "finished":
        raise PplVaeError(
            f"{root}: expected a run that was interrupted, found one that is finished; `ppl-vae evaluate {root}` "
            "evaluates it again"
        )
    with group.together(choose_device(training.device)):
        if group.leads:
            with locked(root):  # whoever is at work in it is named before the data are read
                pass
        pair, splits = made_again(root, record, pair_name, data_dir)
        _use_first(pair, record.pair, record.data, splits)
    description = described_again(root, record) if group.leads else nullcontext()
    _train(_Run(root, record, training, pair, splits), group, description, resume="auto")


def replay(root: Path, step: int | None, pair_name: str | None, data_dir: str | None, device: str) -> None:
    """Do a step of a run again that was not finite, and print what each site drew and scored."""
    record, training = _trained(root)
    pair, splits = made_again(root, record, pair_name, data_dir)
    _use_first(pair, record.pair, record.data, splits)
    objective = objective_of(training, pair, len(_training_data(training, splits)[0]))
    with naming_the_line(f"pair {record.pair.name!r} failed"):
        where = None if device == "auto" else device  # by itself it goes where the fit was
        typer.echo(str(do_again(pair, root, step=step, objective=objective, device=where)))


def _trained(root: Path) -> tuple[RunRecord, TrainingSpec]:
    record = read_run(root)
    if record.training is None:
        raise PplVaeError(f"{root}: expected a run of `ppl-vae fit`, found one of {' '.join(record.command[:2])}")
    return record, record.training


def _use_first(pair: Any, pair_spec: PairSpec, data_spec: DataSpec, splits: Splits) -> CheckReport:
    """Run the pair for the first time; parameters that `pyro.param` makes get the same numbers whenever this is."""
    with naming_the_line(f"pair {pair_spec.name!r} failed"), first_use(pair_spec):
        return check(pair, binary_batch(data_spec, splits.train))


def _train(
    run: _Run, group: Group, description: AbstractContextManager[Hold | None], resume: Literal["auto", False]
) -> None:
    root, record = run.root, run.record
    naming = naming_the_line(f"pair {record.pair.name!r} failed")
    with saying_what_is_left(lambda: _left_of(root)), description as hold, naming, _cautions_said():
        result = _fit(run, resume)
        if hold is not None:
            hold.check()
    kept = f"{root}: training is finished and saved; `ppl-vae evaluate {root}` evaluates it"
    with saying_what_is_saved(kept), saying_what_is_left(lambda: kept):
        _after_training(run, result, group, kept)


def _after_training(run: _Run, result: Fit, group: Group, kept: str) -> None:
    """Say how far it came, draw it and evaluate it."""
    root, record = run.root, run.record
    if group.leads:
        _show(run, result)
    if record.evaluation is not None:
        settings = EvaluationSettings(
            record.evaluation.num_samples,
            record.evaluation.limit,
            run.training.seed,
            run.training.device,
            parameters_sha256=RunDirectory(root).parameters_sha256(),
        )
        evaluate_run(root, run.pair, run.splits, settings, group)
    if group.leads:
        typer.echo(f"{root}: {', '.join(sorted(path.name for path in root.iterdir()))}")


def _left_of(root: Path) -> str:
    """What can be done with a run whose training was interrupted; nothing where none began."""
    if not root.exists():
        return ""
    moment = f"; `ppl-vae evaluate {root}` takes the parameters of the moment"
    return f"{root}: `ppl-vae resume {root}` goes on{moment * RunDirectory(root).has_parameters}"


@contextmanager
def _cautions_said() -> Iterator[None]:
    """Context in which `fit` does not warn of what the command has printed, perhaps of another number of rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "site .* gives a density to data of only")
        yield


def _show(run: _Run, result: Fit) -> None:
    """Say how far the training came, and draw it."""
    last, kind = result.history[-1], "compiled steps" if result.compiled else "steps"
    reached = f"ELBO {last.elbo:.2f} = -({last.distortion:.2f} distortion + {last.rate:.2f} rate)"
    if math.isnan(last.elbo):
        reached = f"objective {last.objective:.2f}"
    typer.echo(f"{result.steps} {kind} in {result.seconds:.1f} s: {reached} nats per datum in the last epoch")
    draw_fit(run.root, run.pair, run.splits, result.history, name_of(run.training))


def _fit(run: _Run, resume: Literal["auto", False]) -> Fit:
    training, splits = run.training, run.splits
    batch = _training_data(training, splits)
    return fit(
        run.pair,
        batch,
        objective=objective_of(training, run.pair, len(batch[0])),
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        schedule=_schedule(training, len(batch[0])),
        binarize="dynamic" if run.record.data.binarize == "dynamic" else None,
        validation=splits.validation if training.validation else None,
        patience=training.patience,
        on_nonfinite=training.on_nonfinite,
        seed=training.seed,
        device=choose_device(training.device),
        compile=training.compile,
        run_dir=run.root,
        resume=resume,
    )


def _training_data(training: TrainingSpec, splits: Splits) -> Batch:
    """The training data, with those for validation where none are held out."""
    if training.validation:
        return splits.train
    return tuple(torch.cat(parts) for parts in zip(splits.train, splits.validation, strict=True))


def _found_from_anywhere(spec: DataSpec) -> DataSpec:
    """The data with absolute paths: `evaluate` may be run in another folder."""
    if spec.data_dir is not None:
        spec = replace(spec, data_dir=str(Path(spec.data_dir).resolve()))
    return replace(spec, name=str(Path(spec.name).resolve())) if spec.is_file else spec


def _schedule(training: TrainingSpec, num_data: int) -> schedules.Schedule | None:
    return schedules.Cosine(1.0, 0.0, training.total_steps(num_data)) if training.schedule == "cosine" else None


def _sizes(splits: Splits, training: TrainingSpec) -> str:
    validation = f"{len(splits.validation[0]):,} validation" if training.validation else "validation data train too"
    return f"{len(splits.train[0]):,} training, {validation}, {len(splits.test[0]):,} test"
