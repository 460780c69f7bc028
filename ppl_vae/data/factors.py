"""Images whose factors are known, generated: shape, scale, orientation and position of a sprite."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["FactorImages", "sprites"]

_SIDE, _FINE = 16, 4  # pixels of a side, and points of each pixel's side that are averaged
_SHAPES = ("rectangle", "ellipse", "triangle")
_SCALES = np.linspace(2.5, 4.5, 4)  # half the length, pixels
_ANGLES = np.linspace(0.0, np.pi / 2, 5)
_CENTRES = np.linspace(5.1, 10.9, 8)  # pixels from the corner: the largest sprite stays inside


class FactorImages(NamedTuple):
    """Images with the factors that made them."""

    images: Tensor
    """Grey images in [0, 1], flat, float32, (N, D)."""
    factors: Tensor
    """Index of each factor's value, int64, (N, F)."""
    names: tuple[str, ...]
    """Of the factors."""
    sizes: tuple[int, ...]
    """How many values each factor has."""
    event_shape: tuple[int, int, int]
    """Shape of one image (channels, height, width)."""


def sprites() -> FactorImages:
    """All 3,840 images of one white sprite on black, 16 x 16, each once, the last factor changing fastest.

    | factor | values |
    |---|---|
    | shape | rectangle, ellipse, isosceles triangle, all twice as long as wide: categories without an order |
    | scale | half the length 2.5 to 4.5 pixels, 4 values |
    | orientation | 0 to 90 degrees, 5 values: no two of them look alike for any of the shapes |
    | x, y | centre 5.1 to 10.9 pixels from the left and from the top, 8 values each |

    A pixel is the share of its 4 x 4 points that lie in the sprite.

    Returns:
        The images and the index of each factor's value.

    Reference:
        After dSprites: Matthey et al. (2017), Disentanglement testing sprites dataset.

    Example:
        >>> data = sprites()
        >>> data.images.shape, data.sizes
        (torch.Size([3840, 256]), (3, 4, 5, 8, 8))
    """
    sizes = (len(_SHAPES), len(_SCALES), len(_ANGLES), len(_CENTRES), len(_CENTRES))
    factors = np.indices(sizes).reshape(len(sizes), -1).T
    images = np.stack([_sprite(*row) for row in factors])
    names = ("shape", "scale", "orientation", "x", "y")
    return FactorImages(torch.from_numpy(images), torch.from_numpy(factors), names, sizes, (1, _SIDE, _SIDE))


def _sprite(shape: int, scale: int, angle: int, x: int, y: int) -> np.ndarray:
    """One image, flat, float32."""
    points = (np.arange(_SIDE * _FINE) + 0.5) / _FINE
    right, down = points - _CENTRES[x], (points - _CENTRES[y])[:, None]
    cos, sin = np.cos(_ANGLES[angle]), np.sin(_ANGLES[angle])
    along, across = (cos * right + sin * down) / _SCALES[scale], (cos * down - sin * right) / (_SCALES[scale] / 2)
    inside = _inside(_SHAPES[shape], along, across)
    return inside.reshape(_SIDE, _FINE, _SIDE, _FINE).mean((1, 3)).astype(np.float32).ravel()


def _inside(shape: str, along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Whether points are in a shape that fills [-1, 1] x [-1, 1]."""
    if shape == "rectangle":
        return np.maximum(np.abs(along), np.abs(across)) <= 1
    if shape == "ellipse":
        return np.square(along) + np.square(across) <= 1
    return (np.abs(along) <= 1) & (np.abs(across) <= (1 - along) / 2)
