"""What was measured, as bars beside the floor of the unavoidable arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.evaluation import Memory
from benchmarks.report import MEMORY_LIMIT, milliseconds, number
from benchmarks.timing import Measured
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["to_figure"]


def to_figure(results: Sequence[Measured], memory: Memory | None) -> Figure:
    """Draw one panel a case: bars of the medians, whiskers over the range, the floor as a line."""
    heights = [len(measured.case.sides) for measured in results] + ([2] if memory else [])
    figure = new_figure(10.0, 1.0 + 0.34 * sum(heights) + 0.8 * len(heights))
    panels = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, measured in zip(panels, results, strict=False):
        _draw_case(axes, measured)
    if memory:
        _draw_memory(panels[-1], memory)
    return figure


def _draw_case(axes: Axes, measured: Measured) -> None:
    case = measured.case
    labels = [label for label in case.sides if label != case.floor]
    times = [milliseconds(measured, label) for label in labels]
    colours = [DARK if label.startswith("ppl_vae") else MIDDLE for label in labels]
    whiskers = [[t.median - t.low for t in times], [t.high - t.median for t in times]]
    medians = [t.median for t in times]
    axes.barh(labels, medians, xerr=whiskers, color=colours, ecolor="0.55", capsize=3)
    for row, (label, time) in enumerate(zip(labels, times, strict=True)):
        ratio = "" if label == case.reference else f"  ({measured.ratio(label).median:.2f} x)"
        _write_beside(axes, row, time.high, number(time.median) + ratio)
    floor = milliseconds(measured, case.floor).median
    axes.axvline(floor, color=LIGHT, lw=2, ls="--", label=f"{case.floor} alone: {number(floor)}")
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_title(case.title, loc="left", fontsize=10)
    axes.set_xlabel(f"ms per {case.unit}; (n x): n times {case.reference}", fontsize=8)
    _write_lines_above(axes)
    quiet(axes)


def _draw_memory(axes: Axes, memory: Memory) -> None:
    labels, values = ("ppl_vae log_likelihood", "before it"), [memory.peak / 1e6, memory.before / 1e6]
    axes.barh(labels, values, color=[DARK, MIDDLE])
    for row, value in enumerate(values):
        _write_beside(axes, row, value, number(value))
    axes.axvline(MEMORY_LIMIT / 1e6, color="black", lw=1, ls=":", label=f"limit: {MEMORY_LIMIT / 1e6:.0f} MB")
    axes.invert_yaxis()
    title = f"Peak memory of the log-likelihood of {memory.num_data} images at K = {memory.num_samples:,}"
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("MB resident, libraries included", fontsize=8)
    _write_lines_above(axes)
    quiet(axes)


def _write_beside(axes: Axes, row: int, end: float, text: str) -> None:
    axes.annotate(text, (end, row), (6, 0), textcoords="offset points", va="center", fontsize=8)


def _write_lines_above(axes: Axes) -> None:
    axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)
