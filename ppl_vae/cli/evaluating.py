"""What `ppl-vae evaluate` does, by each of its methods, and what it leaves in a run directory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import typer

from ppl_vae.averages import population_stderr
from ppl_vae.checking import check, kind_of_density
from ppl_vae.cli.inputs import Batch, Splits, random_rows
from ppl_vae.cli.pairs import naming_the_line
from ppl_vae.cli.pictures import draw_evaluation
from ppl_vae.cli.reopening import as_parameters, reopen
from ppl_vae.device import choose_device
from ppl_vae.distributed import Group
from ppl_vae.evaluation import (
    AnnealedLogLikelihood,
    Annealing,
    EscalatedLogLikelihood,
    LogLikelihood,
    agreement,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    escalate,
    log_evidence,
    log_likelihood,
)
from ppl_vae.evaluation.intervals import Interval
from ppl_vae.pair import as_pair
from ppl_vae.pareto import khat_threshold
from ppl_vae.rundir import Bounds, described_estimate, finite_or_none, write_bounds, write_evaluation
from ppl_vae.wording import is_lower_bound

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

    @property
    def in_words(self) -> str:
        """Settings of importance sampling, K apart."""
        target = "" if self.target_stderr is None else f", to a standard error of {self.target_stderr:g}"
        return f"the guide as proposal{target}{', untrusted data escalated' * self.escalate}"


@dataclass(frozen=True)
class _Exact:
    """log p(x) of each datum, as an estimate without error."""

    value: np.ndarray
    seconds: float

    @property
    def stderr(self) -> np.ndarray:
        return np.zeros_like(self.value)

    @property
    def trusted(self) -> np.ndarray:
        return np.ones(self.value.shape, dtype=bool)

    def intervals(self, level: float = 0.95) -> Interval:
        del level
        return Interval(self.value, self.value)

    def __str__(self) -> str:
        return f"log p(x) = {self.value.mean():.4f} nats per datum, exact ({len(self.value)} data)"


_Estimate = LogLikelihood | EscalatedLogLikelihood | AnnealedLogLikelihood | _Exact


def evaluate(
    root: Path, pair_name: str | None, data_dir: str | None, settings: EvaluationSettings, group: Group
) -> None:
    """Evaluate the test data of a run under its parameters."""
    with _begins_anew(root):
        with group.together(choose_device(settings.device)):
            pair, splits = reopen(root, pair_name, data_dir)
        evaluate_run(root, pair, splits, settings, group)


@contextmanager
def _begins_anew(root: Path) -> Iterator[None]:
    """Context of an evaluation: whoever interrupts it learns that it keeps nothing of what it has done."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        typer.echo(f"{root}: the evaluation was not finished; `ppl-vae evaluate {root}` begins it anew")
        raise


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
    event_size = _event_size(pair, batch)
    kept = _write(root, pair, batch, title, settings, result, event_size)
    typer.echo(f"{title}: {result}")
    typer.echo(_bits(result.value, float((~result.trusted).mean()), event_size))
    if exact is not None:
        typer.echo(str(agreement(result, exact)))
    if kept is not None:
        typer.echo(f"{kept}: the evaluation before this one")


def _estimate(pair: Any, batch: Batch, settings: EvaluationSettings, device: torch.device) -> _Estimate:
    if settings.method == "ais":
        return annealed_importance_sampling(pair, batch, settings.annealing, settings.seed, device=device)
    if settings.method == "exact":
        start = time.monotonic()
        return _Exact(log_evidence(pair, batch, device=device), time.monotonic() - start)
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
    event_size: int,
) -> Path | None:
    kind = kind_of_density(as_pair(pair), as_parameters(pair, tuple(x[:1] for x in batch)))
    of_datum = _of_datum(result)
    draw = partial(draw_evaluation, root, result.value, of_datum.khat, title, of_datum.limit, of_datum.criterion)
    seed = 0 if isinstance(result, _Exact) else settings.seed
    record = described_estimate(result, batch, title, kind, seed, event_size=event_size, **_recorded(result, settings))
    return write_evaluation(root, record, result, draw)


class _OfDatum(NamedTuple):
    """What the figure says of the trust in single data."""

    khat: np.ndarray | None
    """k-hat, or -inf and inf for what is trusted by another criterion; None for what is exact."""
    criterion: str
    """By what data are trusted."""
    limit: float = 0.7
    """Largest k-hat that is."""


def _of_datum(result: _Estimate) -> _OfDatum:
    if isinstance(result, _Exact):
        return _OfDatum(None, "k-hat")
    if isinstance(result, LogLikelihood) and not math.isnan(limit := _khat_limit(result)):
        khat = np.where(result.trusted, result.khat, np.inf)  # some are untrusted for what was not seen
        return _OfDatum(khat, "k-hat", limit)
    criterion = "agreement of two starts" if isinstance(result, AnnealedLogLikelihood) else "verdict"
    return _OfDatum(np.where(result.trusted, -np.inf, np.inf), criterion)


def _khat_limit(result: LogLikelihood) -> float:
    """The k-hat from which data are untrusted; NaN where they had samples of different numbers."""
    limits = {khat_threshold(int(k)) for k in np.unique(result.num_drawn)}
    return limits.pop() if len(limits) == 1 else math.nan


def _recorded(result: _Estimate, settings: EvaluationSettings) -> dict[str, Any]:
    """What the record says of how an estimate was made."""
    if isinstance(result, _Exact):
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
    )
    write_bounds(root, record, result.lower, result.upper)
    typer.echo(f"data like {title}: {result}")
    typer.echo(
        f"{root / 'bounds.json'}: --method ais with these settings is too low by at most so much on data of the model; "
        "evaluation.json stays as it was"
    )


def _event_size(pair: Any, batch: Batch) -> int:
    """How many numbers of a datum the model observes."""
    return check(pair, as_parameters(pair, tuple(x[:16] for x in batch)), proposes_outside=True).layout.observed_size


def _bits(value: np.ndarray, share_untrusted: float, event_size: int) -> str:
    """Bits per dimension and the error for new data, which a lower bound does not have."""
    from ppl_vae.report import bits_per_dimension

    bits = bits_per_dimension(float(value.mean()), event_size)
    if is_lower_bound(share_untrusted):
        return f"bits per dimension ≤ {bits:.4f}"
    spread = population_stderr(value)
    return (
        f"bits per dimension {bits:.4f}; as an estimate for new data of this kind the mean has a standard error of "
        f"{spread:.3f} nats"
    )
