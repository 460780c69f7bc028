"""One page that gathers the figures of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppl_vae.errors import DataError
from ppl_vae.figures.canvas import check_given, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["contact_sheet"]

_PAGE_WIDTH, _PAGE_ASPECT = 16.0, 1.6  # inches; width against height of a laptop's screen
_CANDIDATES = 100
_GAP, _CAPTION, _HEAD, _NOTE = 0.15, 0.35, 0.5, 0.3


def contact_sheet(pictures: Mapping[str, Figure | Path], title: str = "", note: str = "") -> Figure:
    """Gather figures on one page, each under its caption, in rows of equal height and full width.

    Of all ways to break them into rows, that is taken whose page is nearest to the shape of a screen.

    Args:
        pictures: Caption of each picture, and the picture: a figure or the path of a PNG file.
        title: Title of the page.
        note: A sentence under the title.

    Raises:
        DataError: If there is no picture, or one is neither a figure nor a path.

    Example:
        >>> from ppl_vae.figures import image_grid
        >>> page = contact_sheet({"samples": image_grid(np.zeros((4, 8, 8)))}, title="Digits")
        >>> page.axes[0].get_title(loc="left")
        'samples'
    """
    check_given("pictures", pictures, "captions with the picture of each", "items")
    if not pictures:
        raise DataError("expected at least one picture for the contact sheet, found none")
    pages = [(caption, _pixels(picture)) for caption, picture in pictures.items()]
    head = (_HEAD if title else 0.0) + (_NOTE if note else 0.0)
    rows, heights = _layout([page.shape[1] / page.shape[0] for _, page in pages], head)
    height = _height(heights, head)
    figure = new_figure(_PAGE_WIDTH, height, layout=None)
    figure.suptitle(title, y=1.0 - 0.1 / height, fontsize="xx-large", fontweight="bold")
    if note:
        figure.text(0.5, 1.0 - (head - _NOTE / 2) / height, note, ha="center", va="center", fontsize="large")
    top, remaining = height - head, iter(pages)
    for row, row_height in zip(rows, heights, strict=True):
        bottom, left = top - _CAPTION - row_height, _GAP
        for aspect in row:
            caption, page = next(remaining)
            box = (left / _PAGE_WIDTH, bottom / height, aspect * row_height / _PAGE_WIDTH, row_height / height)
            axes = figure.add_axes(box)
            axes.imshow(page, interpolation="antialiased")
            axes.set_title(caption, loc="left", fontweight="bold")
            axes.set_axis_off()
            left += aspect * row_height + _GAP
        top = bottom - _GAP
    return figure


def _layout(aspects: Sequence[float], head: float) -> tuple[list[list[float]], list[float]]:
    """Rows of the pictures and their heights."""
    widths = np.linspace(min(aspects), sum(aspects), _CANDIDATES)
    layouts = []
    for width in widths:
        rows = _rows_of_width(aspects, width)
        # The last row may be too short to fill the width; it is not blown up.
        heights = [(_PAGE_WIDTH - _GAP * (1 + len(row))) / max(sum(row), 0.8 * width) for row in rows]
        layouts.append((rows, heights))
    return min(layouts, key=lambda layout: abs(math.log(_PAGE_WIDTH / _height(layout[1], head) / _PAGE_ASPECT)))


def _height(heights: Sequence[float], head: float) -> float:
    return head + sum(heights) + len(heights) * (_CAPTION + _GAP)


def _rows_of_width(aspects: Sequence[float], width: float) -> list[list[float]]:
    """Break pictures of height 1 into rows, each as soon as it is about `width` wide."""
    rows: list[list[float]] = [[]]
    for aspect in aspects:
        if rows[-1] and sum(rows[-1]) + aspect / 2 > width:
            rows.append([])
        rows[-1].append(aspect)
    return rows


def _pixels(picture: Figure | Path) -> NDArray[Any]:
    """A figure or a PNG file as an array of pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imread

    if isinstance(picture, Path):
        return imread(picture)
    check_given("pictures", picture, "figures and the Paths of PNG files", "set_canvas", "savefig")
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())
