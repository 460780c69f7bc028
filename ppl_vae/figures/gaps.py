"""The gap between log p(x) and the ELBO, split, as stacked bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_vae.errors import DataError
from ppl_vae.figures.canvas import BETWEEN, DARK, LIGHT, MIDDLE, check_given, new_figure, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["gap_bars"]


def gap_bars(gaps: Mapping[str, Any], title: str = "") -> Figure:
    """Draw one stacked bar for each decomposition: approximation gap below, amortisation gap on top.

    Where a richer family was tried, the part of the approximation gap that it closes is hatched. Whiskers are 95 %
    intervals of the means for new data, with what searches may have left, none upwards where log p(x) is not trusted;
    what is written above a bar is log p(x) - ELBO.

    Args:
        gaps: Name -> `GapDecomposition`.
        title: Says the finding; by default which part is the larger one.

    Raises:
        DataError: There is none, or it is another result.

    Example:
        >>> import torch
        >>> import ppl_vae as pv
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> search = pv.LocalSearch(num_steps=5)
        >>> found = pv.gap_decomposition(ppca, ppca.sample(3), 100, search=search, progress=False)
        >>> gap_bars({"PPCA": found}).axes[0].get_ylabel()
        'log p(x) − ELBO (nats per datum)'
    """
    check_given("gaps", gaps, "names with what gap_decomposition has returned for each", "items")
    for name, found in gaps.items():
        check_given(f"gaps[{name!r}]", found, "what gap_decomposition has returned", "approximation", "amortisation")
    if not gaps:
        raise DataError("expected at least one decomposition to draw, found none")
    figure = new_figure(3.6 + 1.4 * len(gaps), 4.4)
    axes = figure.subplots()
    parts = {part: np.array([g.mean(part).value for g in gaps.values()]) for part in ("approximation", "amortisation")}
    closed = np.array([np.nan_to_num(g.mean("richer_gain").value).clip(min=0.0) for g in gaps.values()])
    _bars(axes, np.clip(parts["approximation"], 0, None), np.clip(parts["amortisation"], 0, None), closed)
    _whiskers(axes, list(gaps.values()), parts)
    axes.set_xticks(range(len(gaps)), list(gaps))
    axes.set_xlim(-0.7, len(gaps) - 0.3)
    axes.set_ylim(0, 1.35 * max(axes.get_ylim()[1], 1e-6))
    axes.set_ylabel("log p(x) − ELBO (nats per datum)")
    axes.set_title(title or _finding(parts))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize="small", loc="upper right")
    quiet(axes)
    axes.grid(axis="x", visible=False)
    return figure


def _bars(axes: Axes, approximation: np.ndarray, amortisation: np.ndarray, closed: np.ndarray) -> None:
    x = np.arange(len(approximation))
    look: dict[str, Any] = {"width": 0.5, "edgecolor": "white"}
    closed = np.minimum(closed, approximation)
    label = "approximation gap: what the best q of each datum leaves"
    axes.bar(x, approximation - closed, color=MIDDLE, label=label, **look)
    if closed.any():
        label = "... of it closed by a richer q of each datum"
        axes.bar(x, closed, bottom=approximation - closed, color=BETWEEN, hatch="///", label=label, **look)
    label = "amortisation gap: what one encoder for all data loses"
    axes.bar(x, amortisation, bottom=approximation, color=LIGHT, label=label, **look)


def _whiskers(axes: Axes, gaps: list[Any], parts: Mapping[str, np.ndarray]) -> None:
    """95 % intervals of both parts, side by side, and the whole gap in numbers."""
    for i, found in enumerate(gaps):
        tops = {"approximation": parts["approximation"][i], "amortisation": found.mean("gap").value}
        end = max(tops.values())
        for shift, (part, top) in zip((-0.08, 0.08), tops.items(), strict=True):
            interval = np.array(found.interval(part, new_data=True))
            ends = np.nan_to_num(np.abs(interval - found.mean(part).value), posinf=0.0)
            axes.errorbar(i + shift, top, ends[:, None], fmt="none", color=DARK, capsize=3, linewidth=1.2)
            end = max(end, top + ends[1])
        sign = "≈ " if found.rounded.any() else "" if found.trusted.all() else "≥ "
        text = f"{sign}{tops['amortisation']:.2f}"
        axes.annotate(text, (i, end), (0, 4), textcoords="offset points", ha="center", weight="bold")


def _finding(parts: Mapping[str, np.ndarray]) -> str:
    share = parts["amortisation"].sum() / max(sum(p.sum() for p in parts.values()), 1e-12)
    larger, percent = ("Amortisation", share) if share > 0.5 else ("The family of q", 1 - share)
    return f"{larger} makes {percent:.0%} of the gap"
