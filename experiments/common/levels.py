"""Images as levels, and what pixels taken for independent say of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ppl_vae import data

__all__ = ["independent_pixels", "pooled_levels"]


def pooled_levels(x: Tensor, shape: tuple[int, int, int], pool: int, num_levels: int) -> Tensor:
    """Levels 0..L-1, flat (N, D), of grey images averaged over blocks of pool x pool pixels.

    Args:
        x: Grey images in [0, 1] (N, C H W).
        shape: (C, H, W).
        pool: Pixels on each side of a block.
        num_levels: L.
    """
    small = avg_pool2d(x.reshape(-1, *shape), pool).flatten(1)
    return data.quantize(small.clamp(0, 1), num_levels)


def independent_pixels(train: Tensor, test: Tensor, num_levels: int) -> np.ndarray:
    """Log-probability of each test datum (N,), nats, under the frequencies of levels in each pixel of `train`.

    Half a count is added to each level, so that none is impossible.
    """
    counts = torch.stack([(train == level).sum(0) for level in range(num_levels)]) + 0.5
    return (counts / counts.sum(0)).log().gather(0, test.long()).sum(1).numpy()
