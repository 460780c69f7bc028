"""The table that compares runs: one for each set of test data and kind of density, since only such numbers compare."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import typer

from ppl_vae import figures, report
from ppl_vae.checking import kind_of_density
from ppl_vae.cli.inputs import Splits, random_rows
from ppl_vae.cli.pairs import naming_the_line
from ppl_vae.cli.reopening import as_parameters, reopen_named
from ppl_vae.errors import DataError, StorageError
from ppl_vae.evaluation import Comparison, Difference, compare
from ppl_vae.evaluation.ranking_text import notes
from ppl_vae.pair import as_pair
from ppl_vae.rundir import Evaluation, Kind, RunRecord, fingerprint, read_arrays, read_evaluation, read_run

__all__ = ["Anew", "compare_anew", "compare_records"]

_ROUNDING = 2.0**-23  # of float32: records do not say in which precision a run computes

Form = Literal["table", "markdown", "json"]


@dataclass(frozen=True)
class Anew:
    """Options of a comparison that evaluates the runs itself."""

    num_samples: int
    limit: int | None
    seed: int
    device: str
    pairs: tuple[str, ...]
    data_dir: str | None


class _Recorded(NamedTuple):
    """The estimate that a run keeps, arrays (N,)."""

    value: np.ndarray
    stderr: np.ndarray
    trusted: np.ndarray
    exact: np.ndarray
    rounded: np.ndarray
    rounding: np.ndarray

    @property
    def is_exact(self) -> bool:
        """Whether every value is log p(x) itself."""
        return bool(self.exact.all())


class _Run(NamedTuple):
    """A run with what is said of it in the table."""

    root: Path
    record: RunRecord
    estimate: Any
    row: report.ModelRow


class _Group(NamedTuple):
    """Runs whose numbers compare."""

    data: str
    kind: Kind
    num_dimensions: int
    runs: dict[str, _Run]

    @property
    def title(self) -> str:
        """What the table says it shows."""
        return f"log p(x), a {self.kind}, of {self.data}"


def compare_records(roots: Sequence[Path], form: Form, level: float, figure: Path | None) -> None:
    """Print evaluated runs, the highest log-likelihood first, and how sure their order is."""
    _check_places(figure)
    groups: dict[tuple[str, Kind], _Group] = {}
    for name, root in _named(roots).items():
        record, found = read_run(root), read_evaluation(root)
        group = groups.setdefault((found.data_sha256, found.kind), _Group(found.data, found.kind, found.event_size, {}))
        group.runs[name] = _recorded(name, root, record, found)
    _check_number(len(groups), figure)
    _print_all(list(groups.values()), form, level, figure)


def compare_anew(roots: Sequence[Path], form: Form, level: float, figure: Path | None, anew: Anew) -> None:
    """Evaluate runs on the same test data with the same noise, and print them in the same way; nothing is written."""
    _check_places(figure)
    opened: dict[tuple[str, Kind], dict[str, tuple[Path, Any, Splits]]] = {}
    for name, root in _named(roots).items():
        pair, splits = reopen_named(root, anew.pairs, anew.data_dir, anew.device)
        kind = kind_of_density(as_pair(pair), as_parameters(pair, tuple(x[:1] for x in splits.test)))
        opened.setdefault((fingerprint(*splits.test), kind), {})[name] = root, pair, splits
    _check_number(len(opened), figure)
    groups = []
    for (_, what), runs in opened.items():
        splits = next(iter(runs.values()))[2]
        batch = random_rows(splits.test, anew.limit)
        pairs = {name: pair for name, (_, pair, _) in runs.items()}
        with naming_the_line("the evaluation failed"):
            found = compare(pairs, batch, anew.num_samples, anew.seed, device=anew.device)
        data = f"{splits.title}, {len(batch[0]):,} test data"
        entries = {name: _evaluated(name, runs[name][0], found.estimates[name]) for name in runs}
        size = next(iter(found.estimates.values())).num_dimensions  # type: ignore[attr-defined]
        groups.append(_Group(data, what, size, entries))
    _print_all(groups, form, level, figure)


def _named(roots: Sequence[Path]) -> dict[str, Path]:
    """Runs by the names of their directories, or by their paths where two of them have the same name."""
    short = [root.resolve().name for root in roots]
    names = short if len(set(short)) == len(short) else [str(root) for root in roots]
    if len(set(names)) < len(names):
        raise DataError(f"expected different runs, found {max(names, key=names.count)} twice")
    return dict(zip(names, roots, strict=True))


def _recorded(name: str, root: Path, record: RunRecord, e: Evaluation) -> _Run:
    estimate = _Recorded(*read_arrays(root, _Recorded._fields, e))
    if e.method == "exact":
        estimate = estimate._replace(exact=np.ones_like(estimate.exact))
    stderr = None if estimate.is_exact else math.nan if e.mean_stderr is None else e.mean_stderr
    row = report.ModelRow(
        model=_title(name, record),
        num_parameters=record.num_parameters,
        elbo=e.elbo,
        log_likelihood=-math.inf if e.mean is None else e.mean,
        log_likelihood_stderr=stderr,
        num_samples=e.num_samples,
        ess=e.ess,
        share_untrusted=e.share_untrusted,
        seconds=record.seconds,
    )
    return _Run(root, record, estimate, row)


def _evaluated(name: str, root: Path, estimate: Any) -> _Run:
    record = read_run(root)
    row = report.ModelRow.of(_title(name, record), record.num_parameters, estimate, record.seconds)
    return _Run(root, record, estimate, row)


def _title(name: str, record: RunRecord) -> str:
    """The name of a run, and what became of the training unless it finished."""
    return name if record.status == "finished" else f"{name} ({record.status})"


def _check_places(figure: Path | None) -> None:
    """Refuses a comparison that nobody could read, and a figure whose name is that of something else.

    Raises:
        StorageError: Standard output is closed.
        DataError: The suffix is another one.
    """
    if sys.stdout is None:
        raise StorageError("standard output: expected a place to print the comparison in, found it closed: redirect it")
    if figure is not None and figure.suffix != ".png":
        raise DataError(f"{figure}: expected a name that ends in .png, found {figure.suffix!r}")


def _check_number(tables: int, figure: Path | None) -> None:
    """Refuses one figure of several tables.

    Raises:
        DataError: There are several.
    """
    if figure is not None and tables > 1:
        raise DataError(f"{figure}: expected one table, found {tables}: compare runs of the same data")


def _print_all(groups: Sequence[_Group], form: Form, level: float, figure: Path | None) -> None:
    if len(groups) > 1:
        kinds = len({group.kind for group in groups}) > 1
        what = "on different test data, or a probability with a density," if kinds else "on different test data"
        typer.echo(f"{len(groups)} tables: numbers {what} do not compare", err=True)
    all_found = [Comparison({n: run.estimate for n, run in g.runs.items()}, level, _ROUNDING) for g in groups]
    if form == "json":
        typer.echo(_document([_as_json(*table) for table in zip(groups, all_found, strict=True)]), nl=False)
    for group, found in zip(groups, all_found, strict=True):
        if form != "json":
            _print(group, found, form)
        if figure is not None:
            figures.save(figures.rank_intervals(found, group.title), figure)
            typer.echo(str(figure), err=form == "json")


def _document(tables: Sequence[str]) -> str:
    """One table as it is, and several in a list: a document of JSON in any case."""
    return tables[0] if len(tables) == 1 else f"[\n{','.join(tables)}]\n"


def _as_json(group: _Group, found: Comparison) -> str:
    order = {
        "title": group.title,
        "level": found.level,
        "ranks": {name: list(rank) for name, rank in found.ranks.items()},
        "differences": [d._asdict() for d in found.differences],
        "notes": notes(found),
    }
    return report.to_json(_rows(group, found), group.num_dimensions or None, order)


def _rows(group: _Group, found: Comparison) -> list[report.ModelRow]:
    return [_ranked(group.runs[name].row, found.ranks[name]) for name in found.names]


def _print(group: _Group, found: Comparison, form: Literal["table", "markdown"]) -> None:
    rows = _rows(group, found)
    if form == "markdown":
        typer.echo(report.to_markdown(rows, group.num_dimensions or None, group.title))
    else:
        from rich.console import Console

        # Without bits per dimension, for the names of the runs need the width.
        Console().print(report.to_table(rows, title=group.title))
    for name in found.names[1:]:
        difference = found.behind(name)
        assert difference is not None
        typer.echo(_in_words(difference))
    for note in notes(found):
        typer.echo(note)


def _ranked(row: report.ModelRow, ranks: tuple[int, int]) -> report.ModelRow:
    best, worst = ranks
    return replace(row, rank=f"{best}" if best == worst else f"{best} to {worst}")


def _in_words(d: Difference) -> str:
    if math.isnan(d.mean):
        return f"{d.better} and {d.worse} both have mean -inf: each gives a datum probability 0"
    over_data = "" if math.isnan(d.stderr) else f" ± {d.stderr:.3f}"
    errors = ["standard error over the data"] * bool(over_data)
    errors += [f"of Monte Carlo alone {d.monte_carlo:.3f}"] * (not math.isnan(d.monte_carlo))
    told = f" ({'; '.join(errors)})" if errors else ""
    return f"{d.better} - {d.worse} = {d.mean:.3f}{over_data} nats per datum{told}"
