"""Rows of images, one for each model, in a part of a figure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

__all__ = ["draw_rows"]


def draw_rows(axes: Axes, rows: Mapping[str, np.ndarray], title: str) -> None:
    """Draw images (N, height, width) in [0, 1], 1 is ink, a row for each name; all rows have the same N and size."""
    stacks = [np.pad(images, ((0, 0), (0, 1), (0, 1)), constant_values=0.5) for images in rows.values()]
    axes.imshow(np.concatenate([np.concatenate(list(stack), 1) for stack in stacks]), cmap="gray_r", vmin=0, vmax=1)
    height = stacks[0].shape[1]
    axes.set_yticks([(row + 0.5) * height for row in range(len(stacks))], list(rows))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
