"""What was measured, as bars beside the floor of the unavoidable part, and as lines where it is cost against size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.report import number, scale
from benchmarks.results import Record
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["to_figure"]

_TITLE = 3.0  # height of title and axis of a panel, in bars


def to_figure(records: Sequence[Record]) -> Figure:
    """Draw one panel a case, in two columns: bars of the medians, whiskers over the range, the floor as a line."""
    columns = _columns(records)
    figure = new_figure(16.0 if columns[1] else 8.0, 0.28 * max(map(_height, columns)))
    parts = figure.subfigures(1, 2) if columns[1] else [figure]
    for part, column in zip(parts, columns, strict=False):
        _draw_column(part, column)
    return figure


def _columns(records: Sequence[Record]) -> tuple[Sequence[Record], Sequence[Record]]:
    """Cut where both sides are about as high; a single panel stays alone."""
    cut = min(range(1, len(records) + 1), key=lambda i: abs(_height(records[:i]) - _height(records[i:])))
    return records[:cut], records[cut:]


def _height(records: Sequence[Record]) -> float:
    return sum(_bars(record) + _TITLE for record in records)


def _bars(record: Record) -> int:
    return 7 if record["sizes"] else len(record["sides"])


def _draw_column(part: Figure | SubFigure, records: Sequence[Record]) -> None:
    heights = [_bars(record) + _TITLE for record in records]
    panels = part.subplots(len(records), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, record in zip(panels, records, strict=True):
        (_draw_sizes if record["sizes"] else _draw_sides)(axes, record)
        on = "" if record["device"] == "cpu" else f" ({record['device']})"
        axes.set_title(record["title"] + on, loc="left", fontsize=9)
        quiet(axes)


def _draw_sides(axes: Axes, record: Record) -> None:
    factor, symbol = scale(record)
    sides = {label: side for label, side in record["sides"].items() if label != record["floor"]}
    costs = [side["cost"] for side in sides.values()]
    medians = [factor * cost["median"] for cost in costs]
    whiskers = [
        [factor * (cost["median"] - cost["low"]) for cost in costs],
        [factor * (cost["high"] - cost["median"]) for cost in costs],
    ]
    colours = [DARK if label.startswith("ppl_vae") or record["quantity"] == "bytes" else MIDDLE for label in sides]
    axes.barh(list(sides), medians, xerr=whiskers, color=colours, ecolor="0.55", capsize=3)
    for row, (label, side) in enumerate(sides.items()):
        ratio = "" if label == record["reference"] else f"  ({side['ratio']['median']:.2f} x)"
        end = factor * side["cost"]["high"]
        text = number(factor * side["cost"]["median"]) + ratio
        axes.annotate(text, (end, row), (6, 0), textcoords="offset points", va="center", fontsize=8)
    below = f"{symbol} per {record['unit']}; (n x): n times {record['reference']}"
    if record["floor"] in record["sides"]:
        floor = factor * record["sides"][record["floor"]]["cost"]["median"]
        axes.axvline(floor, color=LIGHT, lw=2, ls="--")
        below += f"; dashed: {record['floor']} alone, {number(floor)}"
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.tick_params(labelsize=8)
    axes.set_xlabel(below, fontsize=8)


def _draw_sizes(axes: Axes, record: Record) -> None:
    factor, symbol = scale(record)
    sizes = [size for label, size in record["sizes"].items() if label in record["sides"]]
    medians = [factor * side["cost"]["median"] for side in record["sides"].values()]
    found = "no slope" if record["slope"] is None else f"slope {record['slope']['median']:.2f}"
    axes.loglog(sizes, medians, "o-", color=DARK, label=found)
    axes.loglog(sizes, [medians[-1] * size / sizes[-1] for size in sizes], "--", color=LIGHT, label="slope 1")
    axes.tick_params(labelsize=8)
    axes.set_ylabel(f"{symbol} per {record['unit']}", fontsize=8)
    axes.legend(fontsize=8, frameon=False)
