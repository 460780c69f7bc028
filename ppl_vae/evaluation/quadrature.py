"""The evidence of a block of data as an integral over at most two numbers, by adaptive quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.errors import EstimateError, PairError
from ppl_vae.evaluation.cells import Cells, integrated
from ppl_vae.evaluation.edges import BEYOND_NUMBERS
from ppl_vae.evaluation.path import Path, num_values
from ppl_vae.pair import Pair
from ppl_vae.tape import Batch, Layout

__all__ = ["MOST_DIMENSIONS", "integrate"]

MOST_DIMENSIONS = 2
_CHUNK = 1024  # points of each datum in one run
_GRID = {1: 256, 2: 32}  # that looks for the ends
_MARGIN, _ROUNDS, _SAFE = 1.0, 400, 1e-3  # squares of latents, in units of their scale, are finite
_AT_EDGE = 1e-4  # of p(x), where latents round to the edge of their support
_NEGLIGIBLE = 25.0  # nats below the largest value: less than 1e-10 of it

LogDensity = Callable[[Tensor], Tensor]


class _Line(NamedTuple):
    r"""All of R^D by u = c + s sinh v: heavy tails in u fall off exponentially in v."""

    centre: Tensor
    """Median of the prior (N, D)."""
    scale: Tensor
    """Half the width of the middle two thirds of the prior (N, D)."""

    def points(self, v: Tensor) -> Tensor:
        """u of v (K, N, D)."""
        return self.centre + self.scale * v.sinh()

    def inverse(self, u: Tensor) -> Tensor:
        """v of u."""
        return ((u - self.centre) / self.scale).asinh()

    def log_slope(self, v: Tensor) -> Tensor:
        """log |du / dv|, (K, N)."""
        return (self.scale.log() + v.cosh().log()).sum(-1)


def integrate(pair: Pair, batch: Batch, layout: Layout, first_row: int) -> Tensor:
    r"""log p(x) of each datum, (N,): the integral of p(x, z) over all latents.

    .. math:: \log p(x) = \log \int p(x, z(u(v))) \, |dz / du| \, |du / dv| \, dv

    A box around draws of the prior, given each value of discrete latents, is widened until all that is outside is
    negligible, then cut into cells, of which those that count are halved until the rule in each of them has converged.

    Args:
        pair: The pair, in evaluation mode; only its model is integrated.
        batch: A block of data.
        layout: Layout of the pair.
        first_row: Row of its first datum, for messages.

    Raises:
        PairError: A datum has more than two continuous latent numbers, or discrete ones of infinitely many values, or
            masked ones.
        EstimateError: The density is NaN or infinite somewhere, and site and row are named; or it does not end, or not
            before latents round to the edge of their support, or is too rough or too narrow.

    Reference:
        Takahasi and Mori (1974), Double Exponential Formulas for Numerical Integration.
    """
    chunk = max(1, _CHUNK // num_values(layout))
    path = Path(pair, batch, layout, max(2, chunk), "prior", first_row)
    if masked := path.masked_latent():
        raise PairError(
            f"site {masked!r}: expected a latent without a mask, to integrate over it, found data where it is masked, "
            "and has no density of its own: use log_likelihood"
        )
    pattern = path.draw()
    drawn = path.space.flat(pattern)
    _check_dimensions({name: u.numel() // drawn[..., 0].numel() for name, u in pattern.items()})
    line = _line(drawn.double())

    def log_density(v: Tensor) -> Tensor:
        u = line.points(v).to(drawn.dtype)
        joint = torch.cat([_log_joint(path, _padded(part, len(drawn)), pattern) for part in u.split(len(drawn))])
        return joint[: len(v)].double() + line.log_slope(v)

    reached = torch.cat([drawn, path.space.flat(path.draw_at_every_value())]) if layout.cardinalities else drawn
    starts = line.inverse(reached.double())
    kind = torch.finfo(drawn.dtype)
    furthest = ((_SAFE * math.sqrt(kind.max) - line.centre.abs()) / line.scale).asinh()
    sites = ", ".join(map(repr, pattern))
    box = _wide_enough(log_density, starts.amin(0) - _MARGIN, starts.amax(0) + _MARGIN, furthest, first_row, sites)
    value = integrated(log_density, box, kind.eps, first_row, sites)
    _check_edges(log_density, lambda v: _rounded(path, line.points(v).to(drawn.dtype), pattern), box, value, first_row)
    return value


def _rounded(path: Path, flat: Tensor, pattern: Mapping[str, Tensor]) -> Tensor:
    """Where latents of points (K, N, D) round to the edge of their support, (K, N)."""
    return path.space.rounded(path.space.from_flat(flat, pattern))


def _check_edges(
    log_density: LogDensity, rounded: Callable[[Tensor], Tensor], box: Cells, value: Tensor, first_row: int
) -> None:
    """No more than a negligible part of the integral is where latents round to the edge of their support."""
    corner, width = _corners(box.width), box.width / (_GRID[box.width.shape[-1]] - 1)
    points = box.low[0] + corner * box.width
    lost = rounded(points)
    if not bool(lost.any()):
        return
    part = torch.where(lost, log_density(points), -torch.inf).logsumexp(0) + width.log().sum(-1) - value
    if bool((wrong := part.exp() > _AT_EDGE).any()):
        row = int(wrong.nonzero()[0])
        raise EstimateError(
            f"row {first_row + row}: expected p(x, z) to fall off before latents round, found "
            f"{float(part[row].exp()):.2g} of p(x), or more, where they {BEYOND_NUMBERS}"
        )


def _check_dimensions(sizes: Mapping[str, int]) -> None:
    if (size := sum(sizes.values())) > MOST_DIMENSIONS:
        largest = max(sizes, key=lambda name: sizes[name])
        raise PairError(
            f"site {largest!r}: expected at most {MOST_DIMENSIONS} continuous latent numbers a datum for quadrature, "
            f"{sizes[largest]} of them here, found {size}: use annealed_importance_sampling"
        )


def _log_joint(path: Path, flat: Tensor, pattern: Mapping[str, Tensor]) -> Tensor:
    """log p(x, u) of points (K, N, D), which is a density."""
    points = path.space.from_flat(flat, pattern)
    log_joint = path.ends(points).joint
    path.check(log_joint, points)
    return log_joint


def _line(drawn: Tensor) -> _Line:
    """The line whose middle is that of the draws (K, N, D)."""
    low, centre, high = drawn.quantile(drawn.new_tensor([1 / 6, 0.5, 5 / 6]), 0)
    scale = (high - low) / 2
    return _Line(centre, torch.where(scale > 0, scale, 1.0))


def _wide_enough(
    log_density: LogDensity, low: Tensor, high: Tensor, furthest: Tensor, first_row: int, sites: str
) -> Cells:
    """One cell for each datum, widened until its sides are negligible."""
    corner = _corners(low)
    for _ in range(_ROUNDS):
        value = log_density(low + corner * (high - low))[..., None]
        counts = value > value.amax(0) - _NEGLIGIBLE
        down, up = (counts & (corner == 0)).any(0), (counts & (corner == 1)).any(0)
        if not bool((down | up).any()):
            return Cells(low[None], high - low, torch.ones_like(low[None, :, 0], dtype=torch.bool))
        low, high = low - down * _MARGIN, high + up * _MARGIN
        if bool((over := torch.maximum(low.abs(), high.abs()) > furthest).any()):
            break
    row = first_row + int((over if bool(over.any()) else down | up).any(-1).nonzero()[0])
    raise EstimateError(
        f"row {row}: expected p(x, z) to fall off on all sides, found that it still counts where latents ({sites}) are "
        "near the largest number there is: use annealed_importance_sampling"
    )


def _corners(like: Tensor) -> Tensor:
    """A grid of the unit cell, (P, 1, D)."""
    dims = like.shape[-1]
    share = torch.linspace(0, 1, _GRID[dims], dtype=like.dtype, device=like.device)
    return torch.cartesian_prod(*[share] * dims).reshape(-1, 1, dims)


def _padded(points: Tensor, size: int) -> Tensor:
    """As many points as a run takes; the last one is repeated."""
    missing = size - len(points)
    return torch.cat([points, points[-1:].expand(missing, *points.shape[1:])]) if missing else points
