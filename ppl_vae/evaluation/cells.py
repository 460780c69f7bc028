"""Integrals of many densities at once by Gauss-Kronrod rules in cells that are halved where they have to be."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.errors import EstimateError
from ppl_vae.evaluation.peaks import Known

__all__ = ["Cells", "integrated"]

_FIRST = {1: 64, 2: 8}  # cells along each side to begin with
_MOST_POINTS, _MOST_ROUNDS, _TINY = 1 << 19, 45, 18  # halvings after which a slope is a jump
_TOLERANCE, _LOCAL, _SMALL = 1e-4, 2e-5, 1e-6
_NEGLIGIBLE, _STEEPEST = 25.0, 8.0  # nats below the sum, nats between neighbours
_ROUNDINGS = 8.0


class Cells(NamedTuple):
    """Intervals, or rectangles, of one size, of which each datum has its own."""

    low: Tensor
    """Lower corners (M, N, D)."""
    width: Tensor
    """Sides (N, D)."""
    real: Tensor
    """Which are cells, and not there to make up the number, (M, N)."""

    @property
    def num_points(self) -> int:
        """Nodes of all cells of a datum."""
        return len(self.low) * len(_nodes(self.low.shape[-1])[0])

    def split(self, parts: int) -> Cells:
        """Each cell in so many along every side."""
        width = self.width / parts
        steps = torch.arange(parts, dtype=self.low.dtype, device=self.low.device)
        corner = torch.cartesian_prod(*[steps] * width.shape[-1]).reshape(-1, 1, 1, width.shape[-1])
        low = (self.low + corner * width).flatten(0, 1)
        return Cells(low, width, self.real.repeat(len(corner), 1))

    def largest(self, known: Known) -> Tensor:
        """The largest of known log-densities in each cell, (M, N)."""
        found = torch.full_like(self.low[..., 0], -torch.inf)
        for at, value in zip(known.at, known.value, strict=True):
            inside = ((self.low <= at) & (at <= self.low + self.width)).all(-1)
            found = torch.where(inside, torch.maximum(found, value), found)
        return found

    def kept(self, keep: Tensor) -> Cells:
        """The cells to keep (M, N), as few as hold them all."""
        order = keep.int().argsort(dim=0, descending=True, stable=True)[: int(keep.sum(0).max())]
        return Cells(
            self.low.gather(0, order[..., None].expand(-1, -1, self.low.shape[-1])), self.width, keep.gather(0, order)
        )


class _Rule(NamedTuple):
    """What the rule says of each cell, all (M, N), in nats."""

    fine: Tensor
    """Log of the integral by the Kronrod rule."""
    coarse: Tensor
    """The same by the Gauss rule on every other node."""
    most: Tensor
    """Log of what the cell could hold if the density rose between two nodes as it rises from one to the next, or were
    what it is known to be somewhere."""
    steepest: Tensor
    """The largest change between neighbouring nodes among those that count, or to what is known to lie between."""
    size: Tensor
    """The largest |log density|."""


def integrated(
    log_density: Callable[[Tensor], Tensor], box: Cells, known: Known, rounding: float, first_row: int, sites: str
) -> Tensor:
    """Log of the integral of each density over its box, (N,).

    A cell is done if it holds a negligible part even where the density rises between its nodes; or if the two rules
    agree in it, to 2e-5 of the cell or 1e-6 of all, and neighbouring nodes that count are within eight nats, so that
    no peak between them is missed. Any other is halved along every side.

    Args:
        log_density: Log-densities (K, N) of points (K, N, D).
        box: One cell for each density.
        known: Where a density is known to be high: cells are halved until their nodes have seen as much.
        rounding: Relative rounding of log-densities; rules need not agree to less than eight times that.
        first_row: Row of the first density, for messages.
        sites: What is integrated over, in words, for messages.

    Raises:
        EstimateError: The rules still differ where half a million points of a datum have been tried.

    Reference:
        Kronrod (1965), Nodes and Weights of Quadrature Formulas; Genz and Malik (1980), An Adaptive Algorithm for
        Numerical Integration over an N-Dimensional Rectangular Region.
    """
    cells = box.split(_FIRST[box.width.shape[-1]])
    fine, coarse = torch.full((2, cells.low.shape[1]), -torch.inf, dtype=cells.low.dtype, device=cells.low.device)
    left, num_points = cells.real.any(0), 0
    for halvings in range(_MOST_ROUNDS):
        found = _applied(log_density, cells, known, fine)
        sum_fine, sum_coarse = _added(fine, found.fine), _added(coarse, found.coarse)
        done = _is_done(found, sum_fine, rounding, halvings > _TINY) | ~cells.real
        fine = _added(fine, torch.where(done, found.fine, -torch.inf))
        coarse = _added(coarse, torch.where(done, found.coarse, -torch.inf))
        left = (~done).any(0)
        if not bool(left.any()):
            break
        num_points += cells.num_points
        cells = cells.kept(~done).split(2)
        if num_points + cells.num_points > _MOST_POINTS:
            break
    _check(sum_fine, sum_coarse, left, rounding, first_row, sites)
    return fine


def _is_done(found: _Rule, total: Tensor, rounding: float, is_tiny: bool) -> Tensor:
    own = (found.fine - total).exp()
    error = (own - (found.coarse - total).exp()).abs()
    agreed = error <= ((_LOCAL + _ROUNDINGS * rounding * found.size) * own).clamp_min(_SMALL)
    resolved = is_tiny | (found.steepest <= _STEEPEST)
    return (found.most < total - _NEGLIGIBLE) | (agreed & resolved)


def _applied(log_density: Callable[[Tensor], Tensor], cells: Cells, known: Known, settled: Tensor) -> _Rule:
    num, _, dims = cells.low.shape
    node, log_fine, log_coarse = (t.to(cells.low.device) for t in _nodes(dims))
    points = cells.low[:, None] + node[:, None] * cells.width  # (M, P, N, D)
    value = log_density(points.flatten(0, 1)).unflatten(0, (num, len(node)))
    value = torch.where(cells.real[:, None], value, -torch.inf)
    log_size = cells.width.log().sum(-1)
    fine = (value + log_fine[:, None]).logsumexp(1) + log_size
    coarse = (value + log_coarse[:, None]).logsumexp(1) + log_size
    high, change = _neighbours(value, dims)
    most = high + dims * change + log_size
    negligible = _added(settled, fine) - _NEGLIGIBLE
    steepest = torch.where(most > negligible, change, 0.0).amax(1)
    size = torch.where(value.isfinite(), value.abs(), 0.0).amax(1)
    hidden = cells.largest(known)
    unseen = torch.where(hidden + log_size > negligible, hidden - value.amax(1), 0.0)
    return _Rule(fine, coarse, torch.maximum(most.amax(1), hidden + log_size), torch.maximum(steepest, unseen), size)


def _neighbours(value: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """The higher of two neighbouring nodes, and their difference, 0 where one is impossible; (M, pairs, N) each."""
    grid = value.unflatten(1, (round(value.shape[1] ** (1 / dims)),) * dims)
    highs, changes = [], []
    for dim in range(1, dims + 1):
        one, other = grid.narrow(dim, 0, grid.shape[dim] - 1), grid.narrow(dim, 1, grid.shape[dim] - 1)
        highs.append(torch.maximum(one, other).flatten(1, dims))
        difference = (one - other).abs()
        changes.append(torch.where(difference.isfinite(), difference, 0.0).flatten(1, dims))
    return torch.cat(highs, 1), torch.cat(changes, 1)


def _added(settled: Tensor, of_cells: Tensor) -> Tensor:
    return torch.logaddexp(settled, of_cells.logsumexp(0))


def _check(fine: Tensor, coarse: Tensor, left: Tensor, rounding: float, first_row: int, sites: str) -> None:
    """No cells are left of any datum, and both rules agree on the sum of all."""
    if bool((none := fine == -torch.inf).any()):
        raise EstimateError(
            f"row {first_row + int(none.nonzero()[0])}: expected latents ({sites}) at which the datum is possible, "
            "found none on the grid: mend the model, or use log_likelihood"
        )
    error = (fine - coarse).abs()
    if bool((wrong := left | (error > _TOLERANCE + _ROUNDINGS * rounding * fine.abs())).any()):
        row = int(torch.where(wrong, error, -1.0).argmax())
        raise EstimateError(
            f"row {first_row + row}: expected two rules that agree to {_TOLERANCE} nats in ever smaller cells, found "
            f"{float(error[row]):.2g} between them and cells left: the density over {sites} is too rough or too narrow "
            "for quadrature; use annealed_importance_sampling"
        )


@cache
def _nodes(dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes of the unit cell (P, D), and log-weights of the 15-point Kronrod and the 7-point Gauss rule (P,)."""
    half = [0.0, 0.207784955007898468, 0.405845151377397167, 0.586087235467691130, 0.741531185599394440]
    half += [0.864864423359769073, 0.949107912342758525, 0.991455371120812640]
    weight = [0.209482141084727828, 0.204432940075298892, 0.190350578064785410, 0.169004726639267903]
    weight += [0.140653259715525919, 0.104790010322250184, 0.063092092629978553, 0.022935322010529225]
    node = (1 + np.array([-n for n in half[:0:-1]] + half)) / 2
    kronrod = np.array(weight[:0:-1] + weight) / 2
    gauss = np.zeros(len(node))
    gauss[1::2] = np.polynomial.legendre.leggauss(7)[1] / 2
    with np.errstate(divide="ignore"):
        logs = [torch.from_numpy(np.log(w)) for w in (kronrod, gauss)]
    nodes = torch.cartesian_prod(*[torch.from_numpy(node)] * dims).reshape(-1, dims)
    fine, coarse = (torch.cartesian_prod(*[log] * dims).reshape(-1, dims).sum(-1) for log in logs)
    return nodes, fine, coarse
