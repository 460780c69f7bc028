"""One page that gathers the figures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppl_vae.errors import DataError
from ppl_vae.figures.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["contact_sheet"]

PAGE_WIDTH, PAGE_ASPECT = 12.0, 2.8  # inches, and the least width of a row against its height


def contact_sheet(pictures: Mapping[str, Figure | Path], title: str = "") -> Figure:
    """Gather figures on one page, each under its caption, in rows of equal height and full width.

    Args:
        pictures: Caption of each picture, and the picture: a figure or the path of a PNG file.
        title: Title of the page.

    Raises:
        DataError: If there is no picture.

    Example:
        >>> from ppl_vae.figures import image_grid
        >>> page = contact_sheet({"samples": image_grid(np.zeros((4, 8, 8)))}, title="Digits")
        >>> page.axes[0].get_title(loc="left")
        'samples'
    """
    if not pictures:
        raise DataError("expected at least one picture for the contact sheet, found none")
    pages = [(caption, _pixels(picture)) for caption, picture in pictures.items()]
    rows = _rows_of_width([page.shape[1] / page.shape[0] for _, page in pages], PAGE_ASPECT)
    gap, caption_height, head = 0.15, 0.35, 0.5 if title else 0.0
    # The last row may be too short to fill the width; it is not blown up.
    heights = [PAGE_WIDTH / max(sum(row), PAGE_ASPECT) for row in rows]
    width = PAGE_WIDTH + gap * (1 + max(map(len, rows)))
    height = head + sum(heights) + len(rows) * (caption_height + gap)
    figure = new_figure(width, height, layout=None)
    figure.suptitle(title, y=1.0 - 0.1 / height, fontsize="x-large", fontweight="bold")
    top, remaining = height - head, iter(pages)
    for row, row_height in zip(rows, heights, strict=True):
        bottom, left = top - caption_height - row_height, gap
        for aspect in row:
            caption, page = next(remaining)
            box = (left / width, bottom / height, aspect * row_height / width, row_height / height)
            axes = figure.add_axes(box)
            axes.imshow(page)
            axes.set_title(caption, loc="left", fontweight="bold")
            axes.set_axis_off()
            left += aspect * row_height + gap
        top = bottom - gap
    return figure


def _rows_of_width(aspects: Sequence[float], width: float) -> list[list[float]]:
    """Break pictures of height 1 into rows, each as soon as it is at least `width` wide."""
    rows: list[list[float]] = [[]]
    for aspect in aspects:
        if sum(rows[-1]) >= width:
            rows.append([])
        rows[-1].append(aspect)
    return rows


def _pixels(picture: Figure | Path) -> NDArray[Any]:
    """A figure or a PNG file as an array of pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imread

    if isinstance(picture, Path):
        return imread(picture)
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())
