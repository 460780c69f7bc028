"""The table that compares runs: one for each set of test data and kind of density, since only such numbers compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import typer

from ppl_vae import report
from ppl_vae.data import load_array
from ppl_vae.rundir import Evaluation, RunRecord, read_evaluation, read_run

__all__ = ["compare"]


@dataclass(frozen=True)
class _Run:
    root: Path
    record: RunRecord
    evaluation: Evaluation

    @property
    def name(self) -> str:
        """The name of its directory, and what became of the training unless it finished."""
        status = self.record.status
        return self.root.name if status == "finished" else f"{self.root.name} ({status})"

    def row(self) -> report.ModelRow:
        """The run as a row of the table."""
        e = self.evaluation
        return report.ModelRow(
            model=self.name,
            num_parameters=self.record.num_parameters,
            elbo=e.elbo,
            log_likelihood=e.mean,
            log_likelihood_stderr=e.mean_stderr,
            num_samples=e.num_samples,
            ess=e.ess,
            share_untrusted=e.share_untrusted,
            seconds=self.record.seconds,
        )


def compare(roots: Sequence[Path], form: Literal["table", "markdown", "json"]) -> None:
    """Print evaluated runs, the highest log-likelihood first, and how sure their order is."""
    runs = [_Run(root, read_run(root), read_evaluation(root)) for root in roots]
    groups: dict[tuple[str, str], list[_Run]] = {}
    for run in sorted(runs, key=lambda run: -run.evaluation.mean):
        groups.setdefault((run.evaluation.data_sha256, run.evaluation.kind), []).append(run)
    if len(groups) > 1:
        kinds = len({kind for _, kind in groups}) > 1
        what = "on different test data, or a probability with a density," if kinds else "on different test data"
        typer.echo(f"{len(groups)} tables: numbers {what} do not compare", err=True)
    for group in groups.values():
        _print(group, form)


def _print(group: Sequence[_Run], form: Literal["table", "markdown", "json"]) -> None:
    first = group[0].evaluation
    rows, title = [run.row() for run in group], f"log p(x), a {first.kind}, of {first.data}"
    if form == "json":
        typer.echo(report.to_json(rows, first.event_size), nl=False)
        return
    if form == "markdown":
        typer.echo(report.to_markdown(rows, first.event_size, title))
    else:
        from rich.console import Console

        # Without bits per dimension, for the names of the runs need the width.
        Console().print(report.to_table(rows, title=title))
    for run in group[1:]:
        typer.echo(_difference(group[0], run))


def _difference(best: _Run, other: _Run) -> str:
    """The difference of two runs, datum by datum: its error is far smaller than that of either mean."""
    gain, rest = (load_array(run.root / "evaluation.npz", "value") for run in (best, other))
    gain = gain - rest
    stderr = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.nan
    text = (
        f"{best.root.name} - {other.root.name} = {gain.mean():.3f} ± {stderr:.3f} nats per datum "
        "(standard error over the data)"
    )
    if bounds := [run.root.name for run in (best, other) if run.row().is_lower_bound]:
        text += f"; {' and '.join(bounds)}: a lower bound, so the true difference may be another one"
    return text
