"""The table that compares models: for the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_vae.averages import bits_per_dimension
from ppl_vae.wording import in_words, is_lower_bound

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["ModelRow", "bits_per_dimension", "to_json", "to_markdown", "to_table"]

ABSENT = "–"
UNIT = "nats per datum, higher is better"
LEGEND = (
    "untrusted: share of the data that are unreliable by the verdict: k-hat above min(1 - 1/log10 K, 0.7), theirs or "
    "that of their equals, or too few samples to tell it, or part of the posterior unseen, or annealed chains that "
    "differ; their estimate is rather too low, and ± does not cover that. ≥: some data are untrusted; the number is a "
    "lower bound in mean, and has no ±. seconds: wall time of training."
)


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """What is said of one model on one set of held-out data; `None` where a number has no meaning."""

    model: str
    """Name of the model."""
    num_parameters: int
    """Number of free parameters."""
    elbo: float | None = None
    """Evidence lower bound, nats per datum."""
    log_likelihood: float | None = None
    """Mean log p(x), exact or importance-sampled, nats per datum."""
    log_likelihood_stderr: float | None = None
    """Monte Carlo standard error of `log_likelihood`, nats per datum; `None` if it is exact."""
    num_samples: int | None = None
    """K, importance samples for each datum."""
    ess: float | None = None
    """Median effective sample size of the importance weights of a datum."""
    share_untrusted: float | None = None
    """Share of the data whose estimate cannot be trusted, in [0, 1]."""
    seconds: float | None = None
    """Wall time of training, seconds."""
    rank: str | None = None
    """Ranks that the model may have among those of the table, such as "2 to 3"; a table shows them if all have one."""

    @classmethod
    def of(
        cls, model: str, num_parameters: int, estimate: Any, seconds: float | None, exact: float | None = None
    ) -> ModelRow:
        """The row of an importance-sampled estimate, such as a `LogLikelihood`.

        Args:
            model: Name of the model.
            num_parameters: Number of free parameters.
            estimate: The estimate.
            seconds: Wall time of training.
            exact: Mean log p(x), where it is known; the row then tells of the weights all the same.
        """
        if estimate.is_exact:
            exact = estimate.mean
        return cls(
            model=model,
            num_parameters=num_parameters,
            elbo=float(estimate.elbo.mean()),
            log_likelihood=estimate.mean if exact is None else exact,
            log_likelihood_stderr=estimate.mean_stderr if exact is None else None,
            num_samples=estimate.num_samples,
            ess=float(np.median(estimate.ess)),
            share_untrusted=estimate.share_untrusted,
            seconds=seconds,
        )

    @property
    def is_lower_bound(self) -> bool:
        """Whether a datum is untrusted: the estimate is then rather too low, by more than its error tells."""
        return self.log_likelihood_stderr is not None and is_lower_bound(self.share_untrusted or 0.0)


def to_table(
    rows: Iterable[ModelRow], num_dimensions: int | None = None, title: str = "Held-out log-likelihood"
) -> Table:
    """Lay the rows out as a rich table.

    Args:
        rows: One row per model.
        num_dimensions: D, numbers of a datum that the models observe; if given, bits per dimension have a column.
        title: Title, completed by the unit.

    Example:
        >>> table = to_table([ModelRow(model="GMM", num_parameters=9, log_likelihood=-2.5)])
        >>> table.row_count
        1
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = list(rows)
    table = Table(title=f"{title} ({UNIT})", box=SIMPLE_HEAD, padding=0, collapse_padding=True)
    table.caption, table.caption_justify = _legend(rows), "left"
    for heading in _headings(num_dimensions, _ranked(rows)):  # folded where the terminal is narrow: nothing is cut
        table.add_column(heading, justify="left" if heading == "model" else "right", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row, num_dimensions, _ranked(rows)))
    return table


def to_markdown(
    rows: Iterable[ModelRow], num_dimensions: int | None = None, title: str = "Held-out log-likelihood"
) -> str:
    """Return the same table as Markdown.

    Args:
        rows: One row per model.
        num_dimensions: D, numbers of a datum that the models observe; if given, bits per dimension have a column.
        title: Title, completed by the unit.

    Example:
        >>> print(to_markdown([ModelRow(model="GMM", num_parameters=9, log_likelihood=-2.5)]).splitlines()[-1])
        | GMM | 9 | – | -2.50 exact | – | – | – | – |
    """
    rows = list(rows)
    headings = _headings(num_dimensions, _ranked(rows))
    lines = [headings, ["---" if heading == "model" else "---:" for heading in headings]]
    lines += [[cell.replace("|", "\\|") for cell in _cells(row, num_dimensions, _ranked(rows))] for row in rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    legend = _legend(rows)
    return f"**{title}** ({UNIT})\n\n{table}\n" + (f"\n{legend}\n" if legend else "")


def to_json(rows: Iterable[ModelRow], num_dimensions: int | None = None, order: Mapping[str, Any] | None = None) -> str:
    """Return the rows as JSON, numbers unrounded; an infinity or NaN as a string, since JSON has none.

    Args:
        rows: One row per model.
        num_dimensions: D, numbers of a datum that the models observe; if given, rows have `bits_per_dimension`.
        order: What is said of the order of the rows; if given, it is added as it is, under its own names.

    Example:
        >>> text = to_json([ModelRow(model="GMM", num_parameters=9, log_likelihood=-math.inf)])
        >>> json.loads(text)["rows"][0]["log_likelihood"]
        '-inf'
    """
    records: list[dict[str, Any]] = []
    for row in rows:
        record = asdict(row) | {"is_lower_bound": row.is_lower_bound}
        if num_dimensions is not None:
            ll = row.log_likelihood
            record["bits_per_dimension"] = None if ll is None else bits_per_dimension(ll, num_dimensions)
        records.append({name: _strict(value) for name, value in record.items()})
    told = {"unit": "nats per datum", "rows": records} | _strictly(dict(order or {}))
    return json.dumps(told, indent=2, allow_nan=False) + "\n"


def _ranked(rows: Sequence[ModelRow]) -> bool:
    return len(rows) > 1 and all(row.rank is not None for row in rows)


def _headings(num_dimensions: int | None, ranked: bool) -> Sequence[str]:
    bits = [] if num_dimensions is None else ["bits/dim"]
    return [
        *(["rank"] if ranked else []),
        "model",
        "parameters",
        "ELBO",
        "log p(x)",
        *bits,
        "K",
        "ESS",
        "untrusted",
        "seconds",
    ]


def _cells(row: ModelRow, num_dimensions: int | None, ranked: bool) -> list[str]:
    ll = row.log_likelihood
    bits = None if ll is None or num_dimensions is None else bits_per_dimension(ll, num_dimensions)
    return [
        *([row.rank or ABSENT] if ranked else []),
        row.model,
        f"{row.num_parameters:,}",
        _text(row.elbo, ".2f"),
        ABSENT if ll is None else in_words(ll, row.log_likelihood_stderr, row.share_untrusted or 0.0),
        *([] if num_dimensions is None else [_text(bits, ".3f")]),
        _text(row.num_samples, ",d"),
        _text(row.ess, ",.0f"),
        _text(row.share_untrusted, ".1%"),
        _text(row.seconds, ".1f"),
    ]


def _legend(rows: Sequence[ModelRow]) -> str:
    """What the reader of the table must know of its estimates; empty if all rows are exact."""
    return LEGEND if any(row.share_untrusted is not None for row in rows) else ""


def _text(value: float | None, form: str) -> str:
    return ABSENT if value is None else format(value, form)


def _strictly(value: Any) -> Any:
    """The same with strings for what JSON has no number for, at any depth."""
    if isinstance(value, Mapping):
        return {name: _strictly(entry) for name, entry in value.items()}
    return [_strictly(entry) for entry in value] if isinstance(value, list | tuple) else _strict(value)


def _strict(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
