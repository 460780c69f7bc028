"""Grids of images: samples and reconstructions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_vae.arrays import real_array
from ppl_vae.errors import DataError
from ppl_vae.figures.canvas import BETWEEN, check_given, new_figure
from ppl_vae.options import whole_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["image_grid", "reconstructions", "show_images", "show_rows"]


def image_grid(
    images: ArrayLike, columns: int = 10, title: str = "", value_range: tuple[float, float] = (0.0, 1.0)
) -> Figure:
    """Draw images as a grid, row by row.

    Args:
        images: (N, height, width), or (N, channels, height, width) with one or three channels.
        columns: Images in a row.
        title: Title of the figure.
        value_range: Values drawn black and white; values outside are clipped.

    Raises:
        DataError: If `images` is not of one of these shapes, or empty.
        ValueError: `columns` is no whole number of at least 1.

    Example:
        >>> image_grid(np.zeros((6, 8, 8)), columns=3, title="Samples").axes[0].get_title()
        'Samples'
    """
    whole_number("columns", columns, least=1)
    stack = _images(images)
    rows = math.ceil(len(stack) / columns)
    figure = new_figure(min(10.0, 0.55 * columns), min(10.0, 0.55 * rows) + (0.4 if title else 0.0))
    axes = figure.subplots()
    show_images(axes, stack, columns, value_range)
    axes.set_axis_off()
    axes.set_title(title)
    return figure


def reconstructions(
    original: ArrayLike,
    rows: Mapping[str, ArrayLike],
    title: str = "Reconstructions",
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw the data in the first row, and under each datum what the models make of it.

    Args:
        original: The data, shaped as in `image_grid`.
        rows: Label of each further row and its images, in the order of `original`.
        title: Title of the figure.
        value_range: Values drawn black and white; values outside are clipped.

    Raises:
        DataError: If a row differs from `original` in number or size of images.

    Example:
        >>> figure = reconstructions(np.zeros((5, 8, 8)), {"VAE": np.ones((5, 8, 8))})
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['original', 'VAE']
    """
    check_given("rows", rows, "labels with the images of each row", "items")
    stacks = {"original": _images(original)} | {label: _images(images) for label, images in rows.items()}
    expected = stacks["original"].shape
    for label, stack in stacks.items():
        if stack.shape != expected:
            raise DataError(f"row {label!r}: expected images {expected} as in the original, found {stack.shape}")
    figure = new_figure(1.2 + 0.6 * expected[0], 0.5 + 0.6 * len(stacks))
    show_rows(figure.subplots(), stacks, title, value_range)
    return figure


def show_rows(
    axes: Axes, rows: Mapping[str, ArrayLike], title: str = "", value_range: tuple[float, float] = (0.0, 1.0)
) -> None:
    """Draw rows of images under each other, each with its label, into axes of a figure.

    Args:
        axes: Where to draw.
        rows: Label of each row and its images, shaped as in `image_grid`, all of one number and size.
        title: Title of the axes.
        value_range: Values drawn black and white; values outside are clipped.

    Raises:
        DataError: If a row is no stack of images, or empty.

    Example:
        >>> axes = new_figure(2, 1).subplots()
        >>> show_rows(axes, {"beta = 1": np.zeros((5, 8, 8)), "beta = 4": np.ones((5, 8, 8))})
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['beta = 1', 'beta = 4']
    """
    check_given("rows", rows, "labels with the images of each row", "items")
    stacks = [_images(images) for images in rows.values()]
    count, height = stacks[0].shape[:2]
    show_images(axes, np.concatenate(stacks), count, value_range)
    axes.set_yticks([(height + 1) * row + height / 2 for row in range(len(stacks))], list(rows))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)


def _images(images: ArrayLike) -> NDArray[np.float64]:
    """Images as (N, height, width) or (N, height, width, 3)."""
    stack = real_array("images", images)
    if stack.ndim == 4 and stack.shape[1] in (1, 3):
        stack = stack[:, 0] if stack.shape[1] == 1 else np.moveaxis(stack, 1, -1)
    elif stack.ndim != 3:
        raise DataError(f"expected images (N, height, width) or (N, 1 or 3, height, width), found {stack.shape}")
    if not stack.size:
        raise DataError(f"expected at least one image, found shape {stack.shape}")
    return stack


def show_images(
    axes: Axes, stack: NDArray[np.float64], columns: int, value_range: tuple[float, float] = (0.0, 1.0)
) -> None:
    """Tile images (N, height, width) into one picture, with lines between them in a colour that no grey image has."""
    from matplotlib.colors import to_rgb

    low, high = value_range
    stack = np.clip((stack - low) / (high - low), 0.0, 1.0)
    rows, (height, width) = math.ceil(len(stack) / columns), stack.shape[1:3]
    canvas = np.tile(to_rgb(BETWEEN), (rows * (height + 1) - 1, columns * (width + 1) - 1, 1))
    if missing := rows * columns - len(stack):  # of the last row: paper, not the colour of lines
        canvas[(rows - 1) * (height + 1) :, (columns - missing) * (width + 1) - 1 :] = 1.0
    for index, image in enumerate(stack):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        canvas[top : top + height, left : left + width] = image if image.ndim == 3 else image[..., None]
    axes.imshow(canvas, interpolation="nearest")
