"""Where parameters of a distribution are NaN."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["nan_parameters"]


def nan_parameters(fn: Any) -> Tensor:
    """Whether a parameter of a distribution is NaN, parts of a mixture included, in the shape of its batch.

    Example:
        >>> import pyro.distributions as dist
        >>> fn = dist.Poisson(torch.tensor([[1.0, 2.0], [torch.nan, 4.0]]), validate_args=False)
        >>> nan_parameters(fn).tolist(), nan_parameters(fn.to_event(1)).tolist()
        ([[False, False], [True, False]], [False, True])
    """
    if isinstance(fn, Independent):
        inner = fn.reinterpreted_batch_ndims
        found = nan_parameters(fn.base_dist)
        return found.flatten(-inner).any(-1) if inner else found
    if isinstance(fn, MaskedDistribution | ExpandedDistribution):
        return nan_parameters(fn.base_dist).expand(fn.batch_shape)
    found = torch.zeros(fn.batch_shape, dtype=torch.bool)
    for nan in map(_is_nan, vars(fn).values()):
        if nan is not None and bool(nan.any()):
            found = found.to(nan.device) | _of_batch(nan, fn.batch_shape)
    return found


def _is_nan(value: Any) -> Tensor | None:
    if isinstance(value, Distribution):
        return nan_parameters(value)
    return value.isnan() if isinstance(value, Tensor) else None


def _of_batch(nan: Tensor, shape: torch.Size) -> Tensor:
    """By element of the batch, where a parameter has its dimensions first, as far as it is not broadcast."""
    while nan.dim() > 0 and not _broadcasts(nan.shape, shape):
        nan = nan.any(-1)
    return nan


def _broadcasts(one: torch.Size, other: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(one, other) == other
    except RuntimeError:
        return False
