"""Images that have a density: few pixels, few grey levels, and uniform noise within a level."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

import ppl_vae as pv
from experiments.common.images import images

__all__ = ["Split", "dequantised"]


class Split(NamedTuple):
    """Images in [0, 1], flat, with a density."""

    train: Tensor
    """Training data (N, D)."""
    validation: Tensor
    """Validation data (N, D)."""
    test: Tensor
    """Test data (N, D)."""


def dequantised(name: str, levels: int, num_train: int, num_held_out: int) -> Split:
    """Load images, those of 28 x 28 without their margin of 4 and averaged over 2 x 2 pixels, and dequantise them.

    Args:
        name: As for `images`.
        levels: Grey levels that are kept; the noise of dequantisation has a standard deviation of 0.29 / levels.
        num_train: Training data to take.
        num_held_out: Most validation data, and most test data, to take.
    """
    found = images(name, num_train, num_held_out)
    parts = (found.train, found.validation[:num_held_out], found.test)
    return Split(*(_with_noise(x.unflatten(1, found.shape), levels, seed) for seed, x in enumerate(parts)))


def _with_noise(x: Tensor, levels: int, seed: int) -> Tensor:
    if x.shape[-1] == 28:
        x = nn.functional.avg_pool2d(x[..., 4:24, 4:24], 2)
    x = ((levels - 1) * x).round() / (levels - 1)
    return pv.data.dequantize(x.flatten(1).clamp(0, 1), levels, seed)
