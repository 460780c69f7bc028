"""Where densities of one or two numbers may be high, away from where one has begun to look."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, max_pool2d

__all__ = ["Known", "grid", "peaks"]

_REACH = 10.0  # v at which to stop: 11,000 scales from the centre
_SCAN = {1: 2048, 2: 96}  # points along each side
_MOST, _AT_ONCE = 16, 1024  # peaks of a datum, points of it in one run
_FINE, _MOST_STEPS = 1e-8, 24
_ROUNDINGS = 8.0

LogDensity = Callable[[Tensor], Tensor]


class Known(NamedTuple):
    """Places of each density, and what it is there."""

    at: Tensor
    """Points (P, N, D)."""
    value: Tensor
    """Log-densities (P, N); minus infinity where there is no place."""

    def above(self, level: Tensor) -> Known:
        """Those of which the log-density is above a level (N,)."""
        return self._replace(value=torch.where(self.value > level, self.value, -torch.inf))

    def outside(self, low: Tensor, high: Tensor) -> Known:
        """Those outside of boxes (N, D)."""
        out = ((self.at < low) | (self.at > high)).any(-1)
        return self._replace(value=torch.where(out, self.value, -torch.inf))

    def hull(self, low: Tensor, high: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """The smallest boxes (N, D) that hold all of them, with a margin, and other boxes."""
        some = (self.value > -torch.inf)[..., None]
        lowest, highest = torch.where(some, self.at - margin, low), torch.where(some, self.at + margin, high)
        return torch.minimum(low, lowest.amin(0)), torch.maximum(high, highest.amax(0))


def peaks(
    log_density: LogDensity, low: Tensor, high: Tensor, furthest: Tensor, starts: Tensor, rounding: float
) -> Known:
    """Peaks outside a box: climbed from the maxima of a grid that goes far beyond it, and from the best of some starts.

    A smooth peak need not lie on the grid: what slopes towards it does.

    Args:
        log_density: Log-densities (K, N) of points (K, N, D), minus infinity where there is none.
        low: Lower corner of the box (N, D).
        high: Upper corner.
        furthest: How far from 0 there are points (N, D).
        starts: Other points (K, N, D), not all finite.
        rounding: Relative rounding of log-densities: a maximum by less is none.
    """
    dims, reach = low.shape[-1], furthest.clamp(max=_REACH)
    points = (2 * grid(low, _SCAN[dims]) - 1) * reach
    # A program that fails far out takes with it what is run at the same time.
    order = (points / reach)[:, 0].abs().amax(-1).argsort()
    found = Known(points, _maxima(log_density(points[order])[order.argsort()], dims, rounding))
    begun = _starts(log_density, starts, furthest)
    places = Known(*map(torch.cat, zip(found, begun, strict=True))).outside(low, high)
    num = int((places.value > -torch.inf).sum(0).clamp(max=_MOST).max())
    if not num:
        return begun
    climbed = _climbed(log_density, _best(places, num), 2 * reach / (_SCAN[dims] - 1))
    return Known(*map(torch.cat, zip(begun, climbed, strict=True)))


def _starts(log_density: LogDensity, starts: Tensor, furthest: Tensor) -> Known:
    """The best of every few points."""
    within = (starts.abs() <= furthest).all(-1)
    starts = torch.where(within[..., None], starts, 0.0)
    value = torch.where(within, log_density(starts), -torch.inf)
    parts = zip(starts.tensor_split(_MOST), value.tensor_split(_MOST), strict=True)
    best = [_best(Known(*part), 1) for part in parts if len(part[0])]
    return Known(*map(torch.cat, zip(*best, strict=True)))


def grid(like: Tensor, num: int) -> Tensor:
    """A grid of the unit cell, so many points along each side, (P, 1, D)."""
    dims = like.shape[-1]
    share = torch.linspace(0, 1, num, dtype=like.dtype, device=like.device)
    return torch.cartesian_prod(*[share] * dims).reshape(-1, 1, dims)


def _maxima(value: Tensor, dims: int, rounding: float) -> Tensor:
    """Log-densities (P, N) on a grid where they exceed those around them, minus infinity elsewhere."""
    pool = max_pool1d if dims == 1 else max_pool2d
    square = value.T.unflatten(1, (round(value.shape[0] ** (1 / dims)),) * dims)
    highest, lowest = pool(square, 3, 1, 1), -pool(-square, 3, 1, 1)
    is_peak = (square == highest) & (square > lowest + _ROUNDINGS * rounding * square.abs())
    return torch.where(is_peak, square, -torch.inf).flatten(1).T


def _best(places: Known, most: int) -> Known:
    """The highest of them, so many."""
    value, order = places.value.topk(min(most, len(places.value)), dim=0)
    return Known(places.at.gather(0, order[..., None].expand(-1, -1, places.at.shape[-1])), value)


def _climbed(log_density: LogDensity, places: Known, step: Tensor) -> Known:
    """Goes up from each place to the best of a grid around it, finer and finer, or to the next where that leads on."""
    (at, value), dims = places, step.shape[-1]
    num = max(3, int((_AT_ONCE // len(at)) ** (1 / dims)))
    around = 2 * grid(step, num)[:, 0] - 1  # (F, D)
    radius = step.expand(at.shape).clone()
    for _ in range(_MOST_STEPS):
        points = at + radius * around[:, None, None]
        best, which = log_density(points.flatten(0, 1)).unflatten(0, points.shape[:2]).max(0)
        offset = around[which]
        better = (best > value)[..., None]
        at, value = torch.where(better, at + radius * offset, at), torch.maximum(value, best)
        leads_on = better & (offset.abs() == 1).any(-1, keepdim=True)
        radius = torch.where(leads_on, radius, radius * 4 / (num - 1))
        if bool((radius < _FINE).all()):
            break
    return Known(at, value)
