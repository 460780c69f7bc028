"""Many independent gradients of one objective: their mean, their spread and what one of them costs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae.compile import CaptureError, compile_function
from ppl_vae.objectives import Objective
from ppl_vae.pair import as_pair
from ppl_vae.rng import key, seeded
from ppl_vae.svi.gradient import Gradient
from ppl_vae.validation import validating

__all__ = ["Moments", "Timed", "draw_gradients", "timed"]

TensorFunction = Callable[..., Sequence[Tensor]]


class Moments:
    """Mean and spread of independent vectors g (P,), and of their projections on a direction.

    Args:
        direction: r (P,); the projection of g is g r / r r, which is 1 in mean where r is the mean of g.
    """

    def __init__(self, direction: np.ndarray | None = None) -> None:
        self._direction = direction
        self._count, self._sum, self._squares = 0, np.zeros(1), 0.0
        self.projections: list[float] = []

    def add(self, vector: np.ndarray) -> None:
        """Adds one vector."""
        self._count += 1
        self._sum = self._sum + vector
        self._squares += float(vector @ vector)
        if self._direction is not None:
            self.projections.append(float(vector @ self._direction / (self._direction @ self._direction)))

    @property
    def mean(self) -> np.ndarray:
        """Mean (P,)."""
        return self._sum / self._count

    @property
    def variance(self) -> float:
        """Sum over coordinates of the variance."""
        return (self._squares - self._count * float(self.mean @ self.mean)) / (self._count - 1)

    @property
    def squared_norm(self) -> float:
        """Squared norm of the expectation, without bias: that of the mean is too large by its own variance."""
        return float(self.mean @ self.mean) - self.variance / self._count


def draw_gradients(
    pair: Any,
    objective: Objective,
    x: Tensor,
    parameters: Sequence[Tensor],
    count: int,
    seed: int,
    direction: np.ndarray | None = None,
) -> Moments:
    """Moments of `count` gradients of an objective (to be maximised) on the data x (N, D)."""
    gradient = _gradient(pair, objective, x, parameters)
    moments = Moments(direction)
    for i in range(count):
        with seeded(key(seed, i)), validating(False):
            _, *parts = gradient(*_arguments(x))
        moments.add(-torch.cat([part.flatten() for part in parts]).double().numpy())
    return moments


class Timed(NamedTuple):
    """What a gradient costs."""

    milliseconds: float
    """Median time of one."""
    compiled: bool
    """Whether it ran as compiled code."""


def timed(pair: Any, objective: Objective, x: Tensor, parameters: Sequence[Tensor], count: int, compile: bool) -> Timed:
    """Median time of one gradient on the data x (N, D), computed as a fit does it: nothing is validated in a step."""
    gradient: TensorFunction = _gradient(pair, objective, x, parameters)
    with validating(False):
        if compile:
            compile, gradient = _compiled(gradient, x, as_pair(pair))
        gradient(*_arguments(x))
        times = [_seconds(gradient, x) for _ in range(count)]
    return Timed(float(np.median(times)) * 1e3, compile)


def _compiled(gradient: TensorFunction, x: Tensor, pair: nn.Module) -> tuple[bool, TensorFunction]:
    """A gradient as compiled code, or as it is where that fails, and which of them."""
    try:
        return True, compile_function(gradient, [_arguments(x), _arguments(x.flip(0))], pair)
    except CaptureError as error:
        warnings.warn(f"the gradient of an experiment runs uncompiled: {error}", UserWarning, stacklevel=2)
        return False, gradient


def _seconds(gradient: TensorFunction, x: Tensor) -> float:
    start = time.perf_counter()
    gradient(*_arguments(x))
    return time.perf_counter() - start


def _gradient(pair: Any, objective: Objective, x: Tensor, parameters: Sequence[Tensor]) -> Gradient:
    pair = as_pair(pair)
    layout = pv.check(pair, x).layout
    if hasattr(objective, "begin"):
        objective.begin(pair)
    return Gradient(pair, objective, layout, parameters, binarize=False, clip_norm=None)


def _arguments(x: Tensor) -> tuple[Tensor, ...]:
    return torch.arange(len(x)), torch.tensor(1.0, dtype=torch.float64), x
