"""Rows of images in a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

__all__ = ["image_rows"]

_MARGIN = 2


def image_rows(axes: Axes, rows: Mapping[str, Sequence[np.ndarray]], headings: Sequence[str]) -> None:
    """Draw a labelled row of images for each entry, its groups of images side by side under their headings.

    Args:
        axes: Where to draw.
        rows: Label of a row and its groups, images (n, H, W) in [0, 1]; n, H and W are the same for all. A row may have
            fewer groups than the others.
        headings: Of the groups, from the left.
    """
    num_images, height, width = next(iter(rows.values()))[0].shape
    group = num_images * (width + _MARGIN) + 2 * _MARGIN
    canvas = np.full((len(rows) * (height + _MARGIN), len(headings) * group), np.nan)
    for row, groups in enumerate(rows.values()):
        for column, stack in enumerate(groups):
            for index, image in enumerate(stack):
                top, left = row * (height + _MARGIN), column * group + index * (width + _MARGIN)
                canvas[top : top + height, left : left + width] = image
    axes.imshow(np.ma.masked_invalid(canvas), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_yticks([row * (height + _MARGIN) + height / 2 for row in range(len(rows))], list(rows))
    middles = [(column + 0.5) * group - 1.5 * _MARGIN for column in range(len(headings))]
    axes.set_xticks(middles, list(headings))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
