"""The table that compares models: for the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ppl_vae.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["ModelRow", "bits_per_dimension", "to_json", "to_markdown", "to_table"]

ABSENT = "–"
UNIT = "nats per datum, higher is better"


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
    ess: float | None = None
    """Median effective sample size of the importance weights of a datum."""
    share_khat: float | None = None
    """Share of the data with a Pareto k-hat above 0.7, whose estimate is unreliable; in [0, 1]."""
    seconds: float | None = None
    """Wall time of training, seconds."""


def bits_per_dimension(log_likelihood: float, event_size: int) -> float:
    r"""Return $-\log_2 p(x) / D$, the cost of a datum in bits per dimension.

    Args:
        log_likelihood: $\log p(x)$, nats per datum.
        event_size: $D$, number of dimensions of a datum.

    Raises:
        DataError: If `event_size` is not positive.

    Example:
        >>> bits_per_dimension(-64 * math.log(2), event_size=64)
        1.0
    """
    if event_size < 1:
        raise DataError(f"event_size: expected the number of dimensions of a datum, at least 1, found {event_size}")
    return -log_likelihood / (event_size * math.log(2.0))


def to_table(rows: Iterable[ModelRow], event_size: int | None = None, title: str = "Held-out log-likelihood") -> Table:
    """Lay the rows out as a rich table.

    Args:
        rows: One row per model.
        event_size: Number of dimensions of a datum; if given, a column of bits per dimension is added.
        title: Title, completed by the unit.

    Example:
        >>> table = to_table([ModelRow(model="GMM", num_parameters=9, log_likelihood=-2.5)])
        >>> table.row_count
        1
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=f"{title} ({UNIT})", box=SIMPLE_HEAD, padding=0, collapse_padding=True)
    for heading in _headings(event_size):
        is_name = heading == "model"
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for row in rows:
        table.add_row(*_cells(row, event_size))
    return table


def to_markdown(rows: Iterable[ModelRow], event_size: int | None = None, title: str = "Held-out log-likelihood") -> str:
    """Return the same table as Markdown.

    Args:
        rows: One row per model.
        event_size: Number of dimensions of a datum; if given, a column of bits per dimension is added.
        title: Title, completed by the unit.

    Example:
        >>> print(to_markdown([ModelRow(model="GMM", num_parameters=9, log_likelihood=-2.5)]).splitlines()[-1])
        | GMM | 9 | – | -2.50 exact | – | – | – |
    """
    headings = _headings(event_size)
    lines = [headings, ["---" if heading == "model" else "---:" for heading in headings]]
    lines += [[cell.replace("|", "\\|") for cell in _cells(row, event_size)] for row in rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"**{title}** ({UNIT})\n\n{table}\n"


def to_json(rows: Iterable[ModelRow], event_size: int | None = None) -> str:
    """Return the rows as JSON, numbers unrounded; an infinity or NaN as a string, since JSON has none.

    Args:
        rows: One row per model.
        event_size: Number of dimensions of a datum; if given, `bits_per_dimension` is added to each row.

    Example:
        >>> text = to_json([ModelRow(model="GMM", num_parameters=9, log_likelihood=-math.inf)])
        >>> json.loads(text)["rows"][0]["log_likelihood"]
        '-inf'
    """
    records: list[dict[str, Any]] = []
    for row in rows:
        record = asdict(row)
        if event_size is not None:
            ll = row.log_likelihood
            record["bits_per_dimension"] = None if ll is None else bits_per_dimension(ll, event_size)
        records.append({name: _strict(value) for name, value in record.items()})
    return json.dumps({"unit": "nats per datum", "rows": records}, indent=2, allow_nan=False) + "\n"


def _headings(event_size: int | None) -> Sequence[str]:
    bits = [] if event_size is None else ["bits/dim"]
    return ["model", "parameters", "ELBO", "log p(x)", *bits, "ESS", "k-hat > 0.7", "seconds"]


def _cells(row: ModelRow, event_size: int | None) -> list[str]:
    ll = row.log_likelihood
    bits = [] if event_size is None else [_text(None if ll is None else bits_per_dimension(ll, event_size), ".3f")]
    return [
        row.model,
        f"{row.num_parameters:,}",
        _text(row.elbo, ".2f"),
        ABSENT if ll is None else _estimate(ll, row.log_likelihood_stderr),
        *bits,
        _text(row.ess, ",.0f"),
        _text(row.share_khat, ".1%"),
        _text(row.seconds, ".1f"),
    ]


def _estimate(value: float, stderr: float | None) -> str:
    """An estimate and its error to two digits of the error, never fewer than two decimals."""
    if stderr is None:
        return f"{value:.2f} exact"
    decimals = max(2, 1 - math.floor(math.log10(stderr))) if 0.0 < stderr < 1.0 else 2
    return f"{value:.{decimals}f} ± {stderr:.{decimals}f}"


def _text(value: float | None, form: str) -> str:
    return ABSENT if value is None else format(value, form)


def _strict(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
