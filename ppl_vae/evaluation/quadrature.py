"""The evidence of a block of data as an integral over at most two numbers, by adaptive quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.errors import EstimateError, PairError, is_lack_of_memory
from ppl_vae.evaluation.cells import Cells, integrated
from ppl_vae.evaluation.edges import beyond_numbers
from ppl_vae.evaluation.path import Path, num_values
from ppl_vae.evaluation.peaks import grid, peaks
from ppl_vae.pair import Pair
from ppl_vae.tape import Batch, Layout
from ppl_vae.weights import not_a_weight

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

    A box around draws of the prior, given each value of discrete latents, is widened until its sides are negligible,
    and again around peaks that count and lie beyond a valley: those that a coarse grid far outwards leads to, or draws
    of the guide or of components of the prior. It is then cut into cells, of which those that count are halved until
    they have seen what is known to lie in them and the rule in each has converged.

    Args:
        pair: The pair, in evaluation mode; its model is integrated, and its guide says where to look.
        batch: A block of data.
        layout: Layout of the pair.
        first_row: Row of its first datum, for messages.

    Raises:
        PairError: A datum has more than two continuous latent numbers, or discrete ones of infinitely many values, or
            masked ones.
        EstimateError: The density is NaN or infinite somewhere, and site and row are named; or it does not end, or not
            before latents round to the edge of their support, or is too rough, or too narrow, as for numbers of the
            latents' type.

    Reference:
        Takahasi and Mori (1974), Double Exponential Formulas for Numerical Integration.
    """
    chunk = max(1, _CHUNK // num_values(layout))
    path = Path(pair, batch, layout, max(2, chunk), "prior", first_row)
    pattern = path.draw()
    drawn = path.space.flat(pattern)
    _check_dimensions({name: u.numel() // drawn[..., 0].numel() for name, u in pattern.items()})
    line = _line(drawn.double())

    def plain(u: Tensor, at: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        parts = (path.space.from_flat(_padded(part, len(drawn)), pattern) for part in u.split(len(drawn)))
        return torch.cat([at(points) for points in parts])[: len(u)].double()

    def density(v: Tensor, at: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        return plain(line.points(v).to(drawn.dtype), at) + line.log_slope(v)

    def rounded(v: Tensor) -> Tensor:
        return _rounded(path, line.points(v).to(drawn.dtype), pattern)

    log_density = partial(density, at=partial(_log_joint, path))

    reached = torch.cat([drawn, path.space.flat(path.draw_at_every_value())]) if layout.cardinalities else drawn
    starts = line.inverse(reached.double())
    kind = torch.finfo(drawn.dtype)
    furthest = ((_SAFE * math.sqrt(kind.max) - line.centre.abs()) / line.scale).asinh()
    sites = ", ".join(map(repr, pattern))
    likely = _proposed(path)
    _check_spacing(partial(plain, at=partial(_where_there_is_one, path)), likely, first_row, sites)
    proposed = line.inverse(likely.double())
    anywhere = partial(density, at=partial(_where_there_is_one, path))
    widen = partial(_wide_enough, log_density, furthest=furthest, first_row=first_row, sites=sites)
    low, high, top = widen(starts.amin(0) - _MARGIN, starts.amax(0) + _MARGIN)
    known = peaks(anywhere, low, high, furthest, proposed, kind.eps)
    known = known.above(torch.maximum(top, known.value.amax(0)) - _NEGLIGIBLE)
    if bool((far := known.outside(low, high)).value.isfinite().any()):
        low, high, _ = widen(*far.hull(low, high, _MARGIN))
    box = Cells(low[None], high - low, torch.ones_like(low[None, :, 0], dtype=torch.bool))
    value = integrated(log_density, box, known, kind.eps, first_row, sites)
    _check_edges(log_density, rounded, box, value, drawn.dtype, first_row, sites)
    return value


def _proposed(path: Path) -> Tensor:
    """Points that may be high: half of them of the guide, half of components of the prior, (K, N, D)."""
    guided, parts = (path.space.flat(points) for points in (path.draw_of_guide(), path.draw_of_components()))
    half = -(-len(parts) // 2)
    return torch.cat([guided.expand_as(parts)[:half], parts[:half]])


def _rounded(path: Path, flat: Tensor, pattern: Mapping[str, Tensor]) -> Tensor:
    """Where latents of points (K, N, D) round to the edge of their support, (K, N)."""
    return path.space.rounded(path.space.from_flat(flat, pattern))


def _check_edges(
    log_density: LogDensity,
    rounded: Callable[[Tensor], Tensor],
    box: Cells,
    value: Tensor,
    dtype: torch.dtype,
    first_row: int,
    sites: str,
) -> None:
    """No more than a negligible part of the integral is where latents round to the edge of their support."""
    dims = box.width.shape[-1]
    corner, width = grid(box.width, _GRID[dims]), box.width / (_GRID[dims] - 1)
    points = box.low[0] + corner * box.width
    lost = rounded(points)
    if not bool(lost.any()):
        return
    part = torch.where(lost, log_density(points), -torch.inf).logsumexp(0) + width.log().sum(-1) - value
    if bool((wrong := part.exp() > _AT_EDGE).any()):
        row = int(wrong.nonzero()[0])
        raise EstimateError(
            f"row {first_row + row}: expected p(x, z) to fall off before latents ({sites}) round, found "
            f"{float(part[row].exp()):.2g} of p(x), or more, where they {beyond_numbers(dtype)}; log_likelihood asks "
            "for the density at draws of the guide alone"
        )


def _check_spacing(log_density: LogDensity, points: Tensor, first_row: int, sites: str) -> None:
    """Neighbouring numbers differ little in density where it is largest among points (K, N, D).

    A normal density of width s falls by h^2 / s^2, twice, over two steps of size h: from a step as wide as s on sums
    over what numbers there are miss the integral.
    """
    best = points.take_along_dim(log_density(points).nan_to_num(-torch.inf).argmax(0)[None, :, None], 0)
    steps = torch.eye(points.shape[-1], dtype=torch.bool, device=points.device)[:, None]
    below, above = (
        torch.where(steps, best.nextafter(torch.full_like(best, end)), best) for end in (-torch.inf, torch.inf)
    )
    middle, low, high = log_density(torch.cat([best, below, above])).split([1, *[points.shape[-1]] * 2])
    bend = 2 * middle - low - high
    if bool((narrow := (bend.isfinite() & (bend >= 1)).any(0)).any()):
        raise EstimateError(
            f"row {first_row + int(narrow.nonzero()[0])}: expected p(x, z) to be wider than numbers of {points.dtype} "
            f"are apart at latents ({sites}), found it narrower: use double precision (pair.double(), and data of it), "
            "or data and latents that are smaller numbers"
        )


def _check_dimensions(sizes: Mapping[str, int]) -> None:
    if (size := sum(sizes.values())) > MOST_DIMENSIONS:
        largest = max(sizes, key=lambda name: sizes[name])
        raise PairError(
            f"site {largest!r}: expected at most {MOST_DIMENSIONS} continuous latent numbers a datum for quadrature, "
            f"{sizes[largest]} of them here, found {size}: use annealed_importance_sampling"
        )


def _log_joint(path: Path, points: Mapping[str, Tensor]) -> Tensor:
    """log p(x, u) of points (K, N), which is a density."""
    log_joint = path.ends(points).joint
    path.check(log_joint, points)
    return log_joint


def _line(drawn: Tensor) -> _Line:
    """The line whose middle is that of the draws (K, N, D)."""
    low, centre, high = drawn.quantile(drawn.new_tensor([1 / 6, 0.5, 5 / 6]), 0)
    scale = (high - low) / 2
    return _Line(centre, torch.where(scale > 0, scale, 1.0))


def _where_there_is_one(path: Path, points: Mapping[str, Tensor]) -> Tensor:
    """log p(x, u) of points (K, N) wherever they are: minus infinity where it is none, or latents round."""
    try:
        log_joint = path.ends(points).joint
    except Exception as error:
        if is_lack_of_memory(error):
            raise
        return torch.full_like(path.space.square(points), -torch.inf)
    return torch.where(not_a_weight(log_joint) | path.space.rounded(points), -torch.inf, log_joint)


def _wide_enough(
    log_density: LogDensity, low: Tensor, high: Tensor, furthest: Tensor, first_row: int, sites: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Corners (N, D) of a box for each datum, widened until its sides are negligible, and the largest value seen."""
    corner = grid(low, _GRID[low.shape[-1]])
    for _ in range(_ROUNDS):
        value = log_density(low + corner * (high - low))[..., None]
        counts = value > value.amax(0) - _NEGLIGIBLE
        down, up = (counts & (corner == 0)).any(0), (counts & (corner == 1)).any(0)
        if not bool((down | up).any()):
            return low, high, value.amax(0)[..., 0]
        low, high = low - down * _MARGIN, high + up * _MARGIN
        if bool((over := torch.maximum(low.abs(), high.abs()) > furthest).any()):
            break
    row = first_row + int((over if bool(over.any()) else down | up).any(-1).nonzero()[0])
    raise EstimateError(
        f"row {row}: expected p(x, z) to fall off on all sides, found that it still counts where latents ({sites}) are "
        "near the largest number there is: use annealed_importance_sampling"
    )


def _padded(points: Tensor, size: int) -> Tensor:
    """As many points as a run takes; the last one is repeated."""
    missing = size - len(points)
    return torch.cat([points, points[-1:].expand(missing, *points.shape[1:])]) if missing else points
