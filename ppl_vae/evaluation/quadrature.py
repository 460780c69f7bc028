"""The evidence of a block of data as an integral over at most two numbers, by the trapezoidal rule."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.errors import EstimateError, PairError
from ppl_vae.evaluation.path import Path
from ppl_vae.pair import Pair
from ppl_vae.tape import Batch, Layout

__all__ = ["MOST_DIMENSIONS", "integrate"]

MOST_DIMENSIONS = 2
# The rule converges faster than any power for smooth functions that vanish at the ends: two sizes that agree are right.
_POINTS = {1: (301, 401), 2: (91, 121)}
_SEARCH, _ROUNDS = {1: 201, 2: 61}, 4
_CHUNK = 2048
_WIDTH, _NEGLIGIBLE, _TOLERANCE = 8.0, 35.0, 1e-4


class _Box(NamedTuple):
    """An interval, or a rectangle, for each datum, on a path with one of its points as pattern."""

    low: Tensor
    """Lower ends (N, D)."""
    high: Tensor
    """Upper ends (N, D)."""

    def grid(self, points: int) -> Tensor:
        """Points of a regular grid, (points^D, N, D)."""
        share = torch.linspace(0, 1, points, dtype=self.low.dtype, device=self.low.device)
        corner = torch.cartesian_prod(*[share] * self.low.shape[1]).reshape(-1, 1, self.low.shape[1])
        return self.low + corner * (self.high - self.low)

    def cell(self, points: int) -> Tensor:
        """Sides of a cell of that grid, (N, D)."""
        return (self.high - self.low) / (points - 1)


def integrate(pair: Pair, batch: Batch, layout: Layout, first_row: int) -> Tensor:
    r"""log p(x) of each datum, (N,): the integral of p(x, z) over all latents.

    .. math:: \log p(x) = \log \int p(x, z(u)) \, |dz / du| \, du

    A box is shrunk around all that is not negligible, e^-35 of the largest value, then two grids of it have to agree.

    Args:
        pair: The pair, in evaluation mode; only its model is integrated.
        batch: A block of data.
        layout: Layout of the pair.
        first_row: Row of its first datum, for messages.

    Raises:
        PairError: A latent is discrete, or a datum has more than two numbers of them.
        EstimateError: A density is NaN; or the grids differ by more than 1e-4 nats: it is too rough, or too narrow to
            be found.

    Reference:
        Trefethen and Weideman (2014), The Exponentially Convergent Trapezoidal Rule.
    """
    path = Path(pair, batch, layout, _CHUNK, "prior")
    pattern = path.draw()
    drawn = path.space.flat(pattern)
    if (size := drawn.shape[-1]) > MOST_DIMENSIONS:
        raise PairError(
            f"expected at most {MOST_DIMENSIONS} latent numbers a datum for quadrature, found {size}: use "
            "bidirectional_monte_carlo, or annealed_importance_sampling"
        )

    def log_joint(points: Tensor) -> Tensor:
        parts = [_padded(part) for part in points.split(_CHUNK)]
        found = torch.cat([path.ends(path.space.from_flat(part, pattern)).joint for part in parts])
        if bool((wrong := found[: len(points)].isnan()).any()):
            row = int(wrong.any(0).nonzero()[0])
            raise EstimateError(
                f"row {first_row + row}: expected a density at every value of the latents, found NaN at some of them"
            )
        return found[: len(points)].double()

    box = _Box(drawn.mean(0) - _WIDTH * drawn.std(0), drawn.mean(0) + _WIDTH * drawn.std(0))
    for _ in range(_ROUNDS):
        box = _shrunk(box, log_joint(box.grid(_SEARCH[size])), _SEARCH[size])
    coarse, fine = (_on_grid(box, log_joint(box.grid(points)), points) for points in _POINTS[size])
    error = (coarse - fine).abs().nan_to_num(math.inf)
    if not bool((error <= _TOLERANCE).all()):
        row = int(error.argmax())
        raise EstimateError(
            f"row {first_row + row}: expected two grids that agree to {_TOLERANCE} nats, found {float(error[row]):.3g} "
            "between them: the density is too rough for quadrature; use bidirectional_monte_carlo"
        )
    return fine


def _on_grid(box: _Box, log_joint: Tensor, points: int) -> Tensor:
    return log_joint.logsumexp(0) + box.cell(points).double().log().sum(-1)


def _shrunk(box: _Box, log_joint: Tensor, points: int) -> _Box:
    """The box around the points that are not negligible, one cell wider on every side."""
    grid = box.grid(points)
    matters = (log_joint > log_joint.amax(0) - _NEGLIGIBLE)[..., None]
    low = torch.where(matters, grid, torch.inf).amin(0) - box.cell(points)
    high = torch.where(matters, grid, -torch.inf).amax(0) + box.cell(points)
    return _Box(low, high)


def _padded(points: Tensor) -> Tensor:
    """As many points as a run takes; the last one is repeated."""
    missing = _CHUNK - len(points)
    return torch.cat([points, points[-1:].expand(missing, *points.shape[1:])]) if missing else points
