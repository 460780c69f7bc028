"""Stirling's series, and the logarithm of a ratio that is nearly one: what counts need in single precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["HALF_LOG_2PI", "LARGE", "log_ratio", "stirling"]

LARGE = 16.0
"""Stirling's series to the fifth order errs by less than 1e-11 from here on."""

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def stirling(r: Tensor) -> Tensor:
    """Return `log Gamma(r) - (r - 1/2) log r + r - log(2 pi) / 2` of r >= LARGE.

    Example:
        >>> round(float(stirling(torch.tensor(16.0))), 6)
        0.005208
    """
    inverse = 1 / r
    square = inverse.square()
    return inverse * (1 / 12 - square * (1 / 360 - square / 1260))


def log_ratio(ratio: Tensor, excess: Tensor) -> Tensor:
    """Return log(ratio), where excess = ratio - 1 is known more precisely than ratio is.

    Example:
        >>> log_ratio(torch.tensor([1.0, 4.0]), torch.tensor([1e-9, 3.0])).tolist()
        [9.999999717180685e-10, 1.3862943649291992]
    """
    near = torch.log1p(excess.clamp(-0.5, 0.5))
    return torch.where(excess.abs() < 0.5, near, ratio.log())
