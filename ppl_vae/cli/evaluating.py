"""What `ppl-vae evaluate` does, by each of its methods, and what it leaves in a run directory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import typer

from ppl_vae.checking import kind_of_density
from ppl_vae.cli.inputs import Batch, Splits, random_rows
from ppl_vae.cli.pairs import naming_the_line
from ppl_vae.cli.pictures import draw_evaluation
from ppl_vae.cli.reopening import as_parameters, reopen
from ppl_vae.cli.shell import saying_what_is_left
from ppl_vae.device import choose_device
from ppl_vae.distributed import Group
from ppl_vae.evaluation import (
    AnnealedLogLikelihood,
    Annealing,
    EscalatedLogLikelihood,
    ExactLogLikelihood,
    LogLikelihood,
    agreement,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    escalate,
    log_evidence,
    log_likelihood,
)
from ppl_vae.evaluation.evidence import exact_log_likelihood
from ppl_vae.pair import as_pair
from ppl_vae.pareto import khat_threshold
from ppl_vae.rundir import (
    Bounds,
    RunDirectory,
    described_estimate,
    finite_or_none,
    write_bounds,
    write_evaluation,
)

__all__ = ["EvaluationSettings", "Method", "evaluate", "evaluate_run"]

Method = Literal["is", "ais", "bdmc", "exact"]


@dataclass(frozen=True)
class EvaluationSettings:
    """Options of an evaluation."""

    num_samples: int
    limit: int | None
    seed: int
    device: str
    method: Method = "is"
    annealing: Annealing = field(default_factory=Annealing)
    against_exact: bool = False
    target_stderr: float | None = None
    escalate: bool = False
    parameters_sha256: str = ""
    """Of the file of the parameters, before it was read."""

    @property
    def in_words(self) -> str:
        """Settings of importance sampling, K apart."""
        target = "" if self.target_stderr is None else f", to a standard error of {self.target_stderr:g}"
        return f"the guide as proposal{target}{', untrusted data escalated' * self.escalate}"


_Estimate = LogLikelihood | EscalatedLogLikelihood | AnnealedLogLikelihood | ExactLogLikelihood


def evaluate(
    root: Path, pair_name: str | None, data_dir: str | None, settings: EvaluationSettings, group: Group
) -> None:
    """Evaluate the test data of a run under its parameters."""
    named = "" if pair_name is None else f" --pair {pair_name}"
    anew = (
        f"{root}: the evaluation was not finished; `ppl-vae evaluate {root}{named}` with the same options begins anew"
    )
    with saying_what_is_left(lambda: anew):
        parameters = RunDirectory(root).parameters_sha256()
        with group.together(choose_device(settings.device)):
            pair, splits = reopen(root, pair_name, data_dir, settings.device)
        evaluate_run(root, pair, splits, replace(settings, parameters_sha256=parameters), group)


def evaluate_run(root: Path, pair: Any, splits: Splits, settings: EvaluationSettings, group: Group) -> None:
    """Evaluate the test data, print the verdict and write it."""
    batch, device = random_rows(splits.test, settings.limit), choose_device(settings.device)
    size, total = len(batch[0]), len(splits.test[0])
    title = f"{splits.title}, {f'all {total:,}' if size == total else f'random {size:,} of {total:,}'} test data"
    if settings.method == "bdmc":
        _bound(root, pair, batch, title, settings, device, group)
        return
    with naming_the_line("the evaluation failed"):
        result = _estimate(pair, batch, settings, device)
        exact = log_evidence(pair, batch, device=device) if settings.against_exact else None
    if not group.leads:
        return
    typer.echo(f"{title}: {result}")  # first, so that a disk that refuses does not take it away
    typer.echo(_bits(result))
    if exact is not None:
        typer.echo(str(agreement(result, exact)))
    kept = _write(root, pair, batch, title, settings, result)
    if kept is not None:
        typer.echo(f"{kept}: the evaluation before this one")


def _estimate(pair: Any, batch: Batch, settings: EvaluationSettings, device: torch.device) -> _Estimate:
    if settings.method == "ais":
        return annealed_importance_sampling(pair, batch, settings.annealing, settings.seed, device=device)
    if settings.method == "exact":
        return exact_log_likelihood(pair, batch, device=device)
    result = log_likelihood(
        pair, batch, settings.num_samples, settings.seed, target_stderr=settings.target_stderr, device=device
    )
    return escalate(result, pair, batch, seed=settings.seed, device=device) if settings.escalate else result


def _write(
    root: Path,
    pair: Any,
    batch: Batch,
    title: str,
    settings: EvaluationSettings,
    result: _Estimate,
) -> Path | None:
    kind = kind_of_density(as_pair(pair), as_parameters(pair, tuple(x[:1] for x in batch)))
    trusted = None if result.is_exact else result.trusted
    draw = partial(draw_evaluation, root, result.value, trusted, title)
    seed = 0 if isinstance(result, ExactLogLikelihood) else settings.seed
    found = _recorded(result, settings) | {"parameters_sha256": settings.parameters_sha256}
    record = described_estimate(result, batch, title, kind, seed, **found)
    return write_evaluation(root, record, result, draw)


def _khat_limit(result: LogLikelihood) -> float:
    """The k-hat from which data are untrusted; NaN where they had samples of different numbers."""
    limits = {khat_threshold(int(k)) for k in np.unique(result.num_drawn)}
    return limits.pop() if len(limits) == 1 else math.nan


def _recorded(result: _Estimate, settings: EvaluationSettings) -> dict[str, Any]:
    """What the record says of how an estimate was made."""
    if isinstance(result, ExactLogLikelihood):
        return {"method": "exact", "settings": "enumeration or quadrature"}
    if isinstance(result, AnnealedLogLikelihood):
        how = result.annealing.in_words()
        return {"method": "ais", "settings": how, "num_samples": settings.annealing.num_chains}
    found = {"settings": settings.in_words, "num_samples": settings.num_samples}
    return found | ({"khat_threshold": _khat_limit(result)} if isinstance(result, LogLikelihood) else {})


def _bound(
    root: Path,
    pair: Any,
    batch: Batch,
    title: str,
    settings: EvaluationSettings,
    device: torch.device,
    group: Group,
) -> None:
    """Bounds from both sides on data simulated from the model, as many as there are in the batch."""
    with naming_the_line("the evaluation failed"):
        result = bidirectional_monte_carlo(pair, batch, settings.annealing, settings.seed, device=device)
    if not group.leads:
        return
    record = Bounds(
        data=title,
        num_data=len(result.lower),
        settings=result.annealing.in_words(),
        seed=settings.seed,
        lower=float(result.lower.mean()),
        upper=float(result.upper.mean()),
        gap=result.gap,
        gap_stderr=finite_or_none(result.gap_stderr),
        seconds=result.seconds,
        verdict=str(result),
        parameters_sha256=settings.parameters_sha256,
    )
    write_bounds(root, record, result.lower, result.upper)
    typer.echo(f"data like {title}: {result}")
    typer.echo(
        f"{root / 'bounds.json'}: --method ais with these settings is too low by at most so much, in mean, on data of "
        "the model; evaluation.json stays as it was"
    )


def _bits(result: _Estimate) -> str:
    """Bits per dimension and the error for new data, which a lower bound does not have."""
    if not result.num_dimensions:
        return "no bits per dimension: masks leave more numbers of some data than of others"
    if result.is_lower_bound:
        return f"bits per dimension ≤ {result.bits_per_dimension():.4f}"
    text = f"bits per dimension {result.bits_per_dimension():.4f}"
    if math.isnan(result.population_stderr):  # of one datum, or of one that the model excludes
        return text
    return (
        f"{text}; as an estimate for new data of this kind the mean has a standard error of "
        f"{result.population_stderr:.3f} nats"
    )
