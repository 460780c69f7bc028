"""From grey levels to data that have a likelihood: binary ones or levels a probability, dequantised ones a density."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.arrays import check_numbers, check_unmasked
from ppl_vae.errors import DataError
from ppl_vae.options import whole_number
from ppl_vae.rng import generator_of
from ppl_vae.supports import first_outside

__all__ = ["binarize", "dequantize", "levels_log_prob", "quantize"]

Number = TypeVar("Number", float, np.ndarray, Tensor)


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

    The level j of L, x = j / (L - 1), becomes (j + u) / L with u uniform on [0, 1): `levels_log_prob` says what such a
    density tells of the levels, and `quantize` undoes it.

    Args:
        x: Grey levels (N, *event), 0 to 1 in equal steps, a tensor or a numpy array; the result is on its device, of
            its dtype, of single precision for whole numbers.
        levels: L, number of levels; 256 for bytes.
        seed: Seed of this call; the global generators stay as they are.

    Raises:
        ValueError: `levels` is no whole number of at least 2.
        DataError: x is no tensor or array of real numbers, or of half precision, or an entry is outside [0, 1] or no
            such level; its row is named.

    Reference:
        Uria, Murray and Larochelle (2013), RNADE: The real-valued neural autoregressive density-estimator.

    Example:
        >>> dequantize(torch.tensor([[0.0, 1.0]]), levels=2).mul(2).floor()
        tensor([[0., 1.]])
    """
    whole_number("levels", levels, least=2)
    x = _precise(_grey(x))
    steps = (levels - 1) * x
    between = ((steps - steps.round()).abs() > 1e-3).reshape(len(x), -1).any(1)
    if between.any():
        row = int(between.nonzero()[0])
        raise DataError(f"row {row}: expected {levels} equal grey levels, found values between them: is it {levels}?")
    level = steps.round()
    spread, end = (level + _uniform(x, seed)) / levels, (level + 1) / levels
    return torch.minimum(spread, torch.nextafter(end, torch.zeros_like(end)))  # no rounding into the next level


def quantize(x: Tensor | np.ndarray, levels: int) -> Tensor:
    """Turn grey images into integer levels 0..L-1: the number of the share of [0, 1] that a pixel lies in.

    The level of x is min(floor(L x), L - 1); the grey level j / (L - 1) becomes j, so that images of L levels lose
    nothing.

    Args:
        x: Grey images (N, *event) in [0, 1], a tensor or a numpy array; the result is on its device, of its dtype, of
            single precision for whole numbers.
        levels: L, number of levels.

    Raises:
        ValueError: `levels` is no whole number of at least 2.
        DataError: x is no tensor or array of real numbers, or of half precision, or an entry is outside [0, 1]; its row
            is named.

    Example:
        >>> quantize(torch.tensor([[0.0, 0.3, 0.5, 1.0]]), levels=4)
        tensor([[0., 1., 2., 3.]])
    """
    whole_number("levels", levels, least=2)
    x = _precise(_grey(x))
    return (x.double() * levels).floor().clamp_max(levels - 1).to(x.dtype)  # in single precision products round up


def levels_log_prob(log_density: Number, num_dimensions: int, levels: int) -> Number:
    """The lower bound of log P(levels) that the log-density of dequantised data gives: `log p(y) - D log L`.

    The probability of levels j is the integral of the density over their share of the unit cube, whose volume is L^-D:
    P(j) = L^-D E_u p((j + u) / L), and by Jensen's inequality log P(j) >= E_u log p(y) - D log L. In bits per dimension
    of the levels the shift is log2 L. Only so is a density set beside probabilities of the same levels.

    Args:
        log_density: log p(y) of data y of `dequantize`, nats per datum; numbers of any shape.
        num_dimensions: D, number of entries of a datum.
        levels: L, number of levels.

    Reference:
        Theis, van den Oord and Bethge (2016), A Note on the Evaluation of Generative Models, section 3.1.

    Example:
        >>> levels_log_prob(0.0, num_dimensions=1, levels=2)  # the uniform density, two levels
        -0.6931471805599453
    """
    return log_density - num_dimensions * math.log(levels)


def _grey(x: Any) -> Tensor:
    """x as a tensor of numbers in [0, 1], with a row per datum."""
    check_unmasked("x", x)
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiub" and x.dtype.char != "g":
        x = torch.from_numpy(np.array(x, dtype=x.dtype.newbyteorder("=")))
    if not isinstance(x, Tensor) or x.is_complex() or x.dim() == 0:
        raise DataError(f"expected a tensor or a numpy array of grey levels, a row per datum, found {_kind(x)}")
    check_numbers("x", x)
    if (outside := first_outside(constraints.unit_interval, x)) is not None:
        raise DataError(
            f"row {outside[0]}: expected grey levels in [0, 1], found {outside[1]:g}: divide by the largest one "
            "(255 for bytes), drop NaN"
        )
    return x


def _precise(x: Tensor) -> Tensor:
    """Whole numbers in single precision, where levels do not overflow; half precision cannot tell them apart."""
    if x.dtype in (torch.float16, torch.bfloat16):
        raise DataError(
            f"expected grey levels in single or double precision, found {x.dtype}, which merges levels: make them of "
            "the bytes, x.float() / 255"
        )
    return x if x.is_floating_point() else x.to(torch.float32)


def _kind(x: Any) -> str:
    return f"{type(x).__name__} of {x.dtype}, shape {tuple(x.shape)}" if hasattr(x, "dtype") else type(x).__name__


def _uniform(x: Tensor, seed: int) -> Tensor:
    return torch.rand(x.shape, generator=generator_of(seed)).to(x.device)
