"""From grey levels to data that have a likelihood: binary ones a probability, dequantised ones a density."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.errors import DataError
from ppl_vae.supports import first_outside

__all__ = ["binarize", "dequantize"]


def binarize(x: Tensor | np.ndarray, seed: int = 0) -> Tensor:
    """Draw each pixel once from Bernoulli(x): binary data of the shape and dtype of x.

    Args:
        x: Probabilities (N, *event) in [0, 1], a tensor or a numpy array; the result is on its device.
        seed: Seed of this call; the global generators stay as they are.

    Raises:
        DataError: x is no tensor or array of real numbers, or an entry is NaN or outside [0, 1]; the row is named.

    Reference:
        Salakhutdinov and Murray (2008), On the Quantitative Analysis of Deep Belief Networks.

    Example:
        >>> binarize(torch.tensor([[0.0, 1.0]]))
        tensor([[0., 1.]])
    """
    x = _grey(x)
    # Not torch.bernoulli, whose stream depends on the build (MKL or not): these bits are part of a data set.
    return (_uniform(x, seed) < x).to(x.dtype)


def dequantize(x: Tensor | np.ndarray, levels: int, seed: int = 0) -> Tensor:
    """Spread each grey level uniformly over its share of [0, 1]: data that have a density.

    The level j of L, x = j / (L - 1), becomes (j + u) / L with u uniform on [0, 1).

    Args:
        x: Grey levels (N, *event), 0 to 1 in equal steps, a tensor or a numpy array; the result is on its device.
        levels: L, number of levels; 256 for bytes.
        seed: Seed of this call; the global generators stay as they are.

    Raises:
        DataError: x is no tensor or array of real numbers, or an entry is outside [0, 1] or no such level; its
            row is named.

    Reference:
        Uria, Murray and Larochelle (2013), RNADE: The real-valued neural autoregressive density-estimator.

    Example:
        >>> dequantize(torch.tensor([[0.0, 1.0]]), levels=2).mul(2).floor()
        tensor([[0., 1.]])
    """
    if levels < 2:
        raise DataError(f"levels: expected the number of grey levels, at least 2, found {levels}")
    x = _grey(x)
    steps = (levels - 1) * x
    between = ((steps - steps.round()).abs() > 1e-3).reshape(len(x), -1).any(1)
    if between.any():
        row = int(between.nonzero()[0])
        raise DataError(f"row {row}: expected {levels} equal grey levels, found values between them: is it {levels}?")
    return (steps.round() + _uniform(x, seed)) / levels


def _grey(x: Any) -> Tensor:
    """x as a tensor of numbers in [0, 1], with a row per datum."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiub":
        x = torch.from_numpy(np.array(x, dtype=x.dtype.newbyteorder("=")))
    if not isinstance(x, Tensor) or x.is_complex() or x.dim() == 0:
        raise DataError(f"expected a tensor or a numpy array of grey levels, a row per datum, found {_kind(x)}")
    if (outside := first_outside(constraints.unit_interval, x)) is not None:
        raise DataError(
            f"row {outside[0]}: expected grey levels in [0, 1], found {outside[1]:g}: divide by the largest one "
            "(255 for bytes), drop NaN"
        )
    return x


def _kind(x: Any) -> str:
    return f"{type(x).__name__} of {x.dtype}, shape {tuple(x.shape)}" if hasattr(x, "dtype") else type(x).__name__


def _uniform(x: Tensor, seed: int) -> Tensor:
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device)
