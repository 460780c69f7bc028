"""Curves of means over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from experiments.common.statistics import mean
from ppl_vae.figures.canvas import quiet

__all__ = ["curve_over"]


def curve_over(
    axes: Axes, rows: Sequence[Mapping[str, Any]], by: str, what: str, label: str, colour: str, style: str
) -> dict[float, float]:
    """Draw the mean over seeds, with two standard errors, against an option.

    Args:
        axes: Where to draw.
        rows: One for each value of the option and seed.
        by: Name of the option in a row.
        what: Name of the number in a row.
        label: Name in the legend.
        colour: Of the curve.
        style: Marker and line, such as "o-".

    Returns:
        The mean at each value of the option.
    """
    values = sorted({row[by] for row in rows})
    found = [mean([row[what] for row in rows if row[by] == value]) for value in values]
    errors = [2 * f.stderr for f in found]
    axes.errorbar(values, [f.mean for f in found], errors, fmt=style, color=colour, label=label, capsize=3)
    quiet(axes)
    return dict(zip(values, (f.mean for f in found), strict=True))
