"""Ranks of simulation-based calibration: histograms, and how far their distribution is from uniform."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppl_vae.errors import DataError
from ppl_vae.figures.canvas import BETWEEN, DARK, LIGHT, MIDDLE, check_given, new_figure, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["rank_plots"]

_BINS, _HISTOGRAMS, _LEVEL = 20, 6, 0.01


def rank_plots(calibration: Any, title: str = "Simulation-based calibration") -> Figure:
    r"""Draw histograms of the ranks that depart most, and every distribution function less the uniform one.

    A band around both holds all of a calibrated guide with probability 0.99: of the normal approximation for the bins,
    by the inequality of Dvoretzky, Kiefer, Wolfowitz and Massart for the distribution functions.

    Args:
        calibration: A `Calibration`: its ranks (R, D) of each latent site or log-density, in 0..L, and what departs.
        title: Title of the figure.

    Raises:
        DataError: It is no such calibration, there are no ranks, or one is outside 0..L.

    Example:
        >>> import ppl_vae as pv
        >>> ppca = pv.PPCA([[1.0], [0.5]], [0.0, 0.0], 0.5)
        >>> figure = rank_plots(pv.calibrate(ppca, ppca.sample(1), 40, 19, progress=False))
        >>> sorted(axes.get_title() for axes in figure.axes)[0]
        'all 3 quantities, 40 simulations'
    """
    check_given("calibration", calibration, "what calibrate has returned", "ranks", "num_draws", "departures")
    num_draws = calibration.num_draws
    departures = [departure.quantity for departure in calibration.departures()]
    columns = _columns(calibration.ranks, num_draws)
    apart = {name: _difference(column, num_draws) for name, column in columns.items()}
    worst = sorted(apart, key=lambda name: -float(np.abs(apart[name]).max()))[:_HISTOGRAMS]
    width = min(3, len(worst))
    rows = math.ceil(len(worst) / width)
    figure = new_figure(3.4 * width + 4.4, 2.5 * rows + 1.4)
    figure.suptitle(title, fontweight="bold")
    left, right = figure.subfigures(1, 2, width_ratios=[3.4 * width, 4.4], squeeze=False)[0]
    grid = left.subplots(rows, width, squeeze=False).ravel()
    for axes, name in zip(grid, worst, strict=False):
        _draw_histogram(axes, name, columns[name], num_draws, name in departures, len(columns))
    for axes in grid[len(worst) :]:
        axes.set_axis_off()
    _draw_differences(right.subplots(), apart, num_draws, departures, len(next(iter(columns.values()))))
    return figure


def _columns(ranks: Mapping[str, NDArray[np.int64]], num_draws: int) -> dict[str, NDArray[np.int64]]:
    """Ranks of each quantity by its name, z[0], z[1], ... where a site has several."""
    columns = {
        f"{name}[{i}]" if np.asarray(found).shape[1] > 1 else name: column
        for name, found in ranks.items()
        for i, column in enumerate(np.asarray(found).T)
    }
    if not columns or any(not len(c) or c.min() < 0 or c.max() > num_draws for c in columns.values()):
        raise DataError(f"expected ranks in 0..{num_draws} of at least one quantity and simulation")
    return columns


def _difference(column: NDArray[np.int64], num_draws: int) -> NDArray[np.float64]:
    """Share of ranks up to r less (r + 1) / (L + 1), for r = 0..L."""
    counts = np.bincount(column, minlength=num_draws + 1)
    return counts.cumsum() / len(column) - np.arange(1, num_draws + 2) / (num_draws + 1)


def _draw_histogram(
    axes: Axes, name: str, column: NDArray[np.int64], num_draws: int, marked: bool, num_quantities: int
) -> None:
    edges = np.linspace(0, num_draws + 1, min(_BINS, num_draws + 1) + 1).round().astype(int)
    counts = np.diff(np.searchsorted(np.sort(column), edges))
    due = np.diff(edges) / (num_draws + 1)
    reach = NormalDist().inv_cdf(1 - _LEVEL / 2 / len(due) / num_quantities)
    half = reach * np.sqrt(len(column) * due * (1 - due))
    low, high = (len(column) * due - half).clip(0), len(column) * due + half
    axes.bar(
        edges[:-1],
        counts,
        np.diff(edges),
        align="edge",
        color=LIGHT if marked else MIDDLE,
        edgecolor="white",
        alpha=0.85,
    )
    axes.stairs(high, edges, baseline=low, fill=True, color=BETWEEN, alpha=0.5, zorder=0)
    for limit in (low, high):
        axes.stairs(limit, edges, color=DARK, linewidth=0.8, baseline=None)
    axes.stairs(len(column) * due, edges, color=DARK, linestyle="--", baseline=None)
    axes.set_title(f"{name}: departs" if marked else name)
    axes.set(xlabel=f"rank among {num_draws} draws", ylabel="simulations", xlim=(0, num_draws + 1), ylim=(0, None))
    quiet(axes)


def _draw_differences(
    axes: Axes, apart: Mapping[str, NDArray[np.float64]], num_draws: int, departures: Sequence[str], number: int
) -> None:
    share = np.arange(1, num_draws + 2) / (num_draws + 1)
    half = math.sqrt(math.log(2 * len(apart) / _LEVEL) / (2 * number))
    axes.fill_between([0, 1], -half, half, color=BETWEEN, alpha=0.5, label="99 % of calibrated guides lie within")
    for name, values in apart.items():
        marked = name in departures
        line, colour, width = ("--", LIGHT, 1.4) if marked else ("-", DARK, 0.8)
        axes.plot([0, *share], [0, *values], linestyle=line, color=colour, linewidth=width)
    axes.plot([], [], color=DARK, label=f"calibrated: {len(apart) - len(departures)} quantities")
    if departures:
        axes.plot([], [], color=LIGHT, linestyle="--", label=f"departs: {len(departures)}")
    axes.set(xlabel="rank, as a share of the draws", ylabel="share of ranks below, less the uniform one", xlim=(0, 1))
    axes.set_title(f"all {len(apart)} quantities, {number} simulations")
    axes.legend(frameon=False, loc="upper right", fontsize="small")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))
    quiet(axes)
