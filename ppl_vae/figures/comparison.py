"""Models compared on the same data: how far each is behind the best, and how sure that is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ppl_vae.averages import mean_stderr
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, check_given, drawable, new_figure, quiet
from ppl_vae.wording import in_words, is_lower_bound

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["rank_intervals"]

_INTERVAL = 1.96
_BORDER = 0.02  # of the width


def rank_intervals(found: Any, title: str = "Held-out data") -> Figure:
    """Draw how far each pair is behind that of the highest mean, with 95 % intervals over data and of Monte Carlo.

    A filled marker is a pair that is known to be worse than the best, an open one is not told apart from it; an arrow
    says that some data are untrusted, so that the mean is a lower bound: the pair may be better than drawn. Of a pair
    whose mean is minus infinity no more than that is written, at the border, unless it is the first.

    Args:
        found: A `Comparison`.
        title: Title of the figure: what was compared on.

    Raises:
        DataError: It is no such comparison.

    Example:
        >>> import torch, ppl_vae as pv
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> found = pv.compare({"a": ppca, "b": ppca}, ppca.sample(3), num_samples=10, progress=False)
        >>> [text.get_text() for text in rank_intervals(found).axes[0].get_yticklabels()]
        ['1 to 2  a', '1 to 2  b']
    """
    check_given("found", found, "what compare has returned", "names", "estimates", "behind")
    names = found.names
    figure = new_figure(7.5, 1.6 + 0.42 * len(names))
    axes = figure.subplots()
    for place, name in enumerate(names):
        _draw(axes, found, name, place)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), [drawable(_label(found, name)) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.8)
    axes.set_ylabel("rank, and pair")
    axes.set_xlabel(f"log p(x) minus that of {drawable(names[0])}: nats per datum, mean of {found.num_data:,} data")
    axes.set_title(title)
    _legend(axes, any(found.share_untrusted(name) > 0 for name in names))
    quiet(axes)
    axes.margins(x=0.25)
    return figure


def _draw(axes: Axes, found: Any, name: str, place: int) -> None:
    estimate, behind = found.estimates[name], found.behind(name)
    mean = float(estimate.value.mean())
    stderr = mean_stderr(estimate.stderr)
    x = 0.0 if behind is None else -behind.mean
    if behind is not None:
        told = found.tells(behind)
        axes.plot(
            [x - _INTERVAL * behind.stderr, x + _INTERVAL * behind.stderr], [place] * 2, color=MIDDLE, linewidth=2
        )
        noise = _INTERVAL * behind.monte_carlo
        axes.plot([x - noise, x + noise], [place] * 2, color=LIGHT, linewidth=6, solid_capstyle="butt")
        axes.plot(x, place, "o", color=DARK, markerfacecolor=DARK if told else "white", markersize=6)
    else:
        axes.plot(x, place, "D", color=DARK, markersize=6)
    # What is infinitely far behind has its words at the border.
    at, side = ((x, place), "center") if math.isfinite(x) else ((_BORDER, place), "left")
    where = axes.transData if math.isfinite(x) else axes.get_yaxis_transform()
    if is_lower_bound(found.share_untrusted(name)):  # the truth is further on
        axes.annotate("", at, (26, 0), xycoords=where, textcoords="offset points", arrowprops={"arrowstyle": "<-"})
    text = in_words(mean, None if name in found.exact else stderr, found.share_untrusted(name)).replace("-", "−")
    axes.annotate(text, at, (0, 8), xycoords=where, textcoords="offset points", ha=side, fontsize=8)


def _label(found: Any, name: str) -> str:
    best, worst = found.ranks[name]
    return f"{best}  {name}" if best == worst else f"{best} to {worst}  {name}"


def _legend(axes: Axes, bounds: bool) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=DARK, marker="D", linestyle="", label="highest mean"),
        Line2D([], [], color=DARK, marker="o", linestyle="", label="known to be worse"),
        Line2D([], [], color=DARK, marker="o", linestyle="", markerfacecolor="white", label="not told apart from it"),
        Line2D([], [], color=MIDDLE, linewidth=2, label="95 %, over data"),
        Line2D([], [], color=LIGHT, linewidth=6, label="95 %, Monte Carlo alone"),
    ]
    if bounds:
        entries.append(Line2D([], [], color="black", marker=">", linestyle="", label="lower bound"))
    axes.figure.legend(handles=entries, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
