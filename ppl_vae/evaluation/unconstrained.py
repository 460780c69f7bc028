"""Latent values of a block of data as points of R^n, by the transforms of Pyro."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to

from ppl_vae.checking.sites import distribution_name
from ppl_vae.errors import PairError
from ppl_vae.reductions import mask_of, sum_to_data
from ppl_vae.supports import common, is_constant, support_name, support_of, unmixed
from ppl_vae.tape import DATA, Layout, Site, Tape

__all__ = ["OTHER_DRAWS", "Unconstrained", "refuse_masks"]

OTHER_DRAWS = 8
_LOST = 0.5  # by which the way back from a value may miss its point


def refuse_masks(tapes: Iterable[Tape], names: Iterable[str], to: str, instead: str) -> None:
    """Refuses latents that are masked somewhere: they have no density of their own there, and so none in R^n.

    Args:
        tapes: Runs of both programs.
        names: Of the latents.
        to: What is to be done to them.
        instead: What serves.

    Raises:
        PairError: One is masked.
    """
    for name in names:
        if not all(bool(mask_of(tape.sites[name]).all()) for tape in tapes):
            raise PairError(
                f"site {name!r}: expected a latent without a mask, to {to}, found rows where it is masked and has no "
                f"density of its own: {instead}"
            )


class Unconstrained:
    r"""The map between latent values z and points u of R^n, with its log-determinant log |dz / du|.

    Points and values are dictionaries by site; those of K chains have a dimension of chains in front.

    Args:
        model: A run of the model, whose supports decide.
        layout: Layout of the pair.
        summed: Sites that are summed out, and have no coordinates.
        others: Runs of the model on the same data with latents of their own, which tell whether a bound depends on
            them; `OTHER_DRAWS` are enough, and they are asked for only where a bound might.

    Raises:
        PairError: There is no other latent, one is discrete, or its support differs among data or depends on other
            latents.
    """

    def __init__(self, model: Tape, layout: Layout, summed: Collection[str] = (), others: Iterable[Tape] = ()) -> None:
        self._layout = layout
        if not layout.local_latents:
            raise PairError("expected latents to move, found a pair without: its log_likelihood is exact at any K")
        if set(layout.local_latents) <= set(summed):
            raise PairError(
                f"site {layout.local_latents[0]!r}: expected a continuous latent to move, found a pair whose latents "
                "all have finitely many values: use log_evidence, which sums over them"
            )
        runs: list[Tape] | None = None
        self._transforms: dict[str, Transform] = {}
        self._event_dims: dict[str, int] = {}
        for name in layout.local_latents:
            if name in summed:
                continue
            fn = model.sites[name]["fn"]
            support = unmixed(support_of(fn))
            if support.is_discrete:
                kind = _discrete_kind(model.sites[name], layout)
                raise PairError(
                    f"site {name!r}: expected a continuous latent, or one of finitely many values to sum over, found "
                    f"{kind}: use log_likelihood, which needs no more than draws of it"
                )
            if not is_constant(support):
                runs = list(others) if runs is None else runs
                seen = [support, *(unmixed(support_of(run.sites[name]["fn"])) for run in runs)]
                if (shared := common(seen)) is None:
                    raise PairError(
                        f"site {name!r}: expected a support that is the same whatever the datum and the other latents, "
                        f"found {support_name(support)}; write the site as a transform of one with a fixed support"
                    )
                support = shared
            try:
                self._transforms[name], self._event_dims[name] = biject_to(support), fn.event_dim
            except NotImplementedError as error:
                raise PairError(
                    f"site {name!r}: expected a support that Pyro maps to all of R^n, found {support_name(support)}; "
                    "write the site as a transform of an unconstrained one, or use log_likelihood"
                ) from error

    def values(self, points: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The latent values z of points u, and log |dz / du| of each chain and datum, (K, N)."""
        values = {name: self._transforms[name](u) for name, u in points.items()}
        return values, self._total(self._log_det(name, u, values[name]) for name, u in points.items())

    def points(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The points u of latent values z."""
        return {name: self._transforms[name].inv(values[name]) for name in self._transforms}

    def rounded(self, points: Mapping[str, Tensor]) -> Tensor:
        """Where latent values have rounded to the edge of their support, so that they no longer tell u, (K, N)."""
        back = {
            name: self._transforms[name].inv(transform(points[name])) for name, transform in self._transforms.items()
        }
        lost = {name: (~((back[name] - u).abs() <= _LOST)).to(u.dtype) for name, u in points.items()}
        return self._total(_sum_last(far, self._depth(name)) for name, far in lost.items()) > 0

    def counted(self, name: str, mask: Tensor, like: Tensor) -> Tensor:
        """Which coordinates of points count, by a mask of values, whose transform takes masked ones as a whole."""
        if mask.shape == like.shape:
            return mask
        transform = self._transforms[name]
        for _ in range(transform.codomain.event_dim):
            mask = mask.select(-1, 0)
        return mask.reshape(mask.shape + (1,) * transform.domain.event_dim).expand_as(like)

    def dimension(self, counted: Mapping[str, Tensor], points: Mapping[str, Tensor]) -> Tensor:
        """How many coordinates of each chain and datum count, (K, N)."""
        ones = {name: counted.get(name, torch.ones_like(u, dtype=torch.bool)).to(u.dtype) for name, u in points.items()}
        return self._total(_sum_last(one, self._depth(name)) for name, one in ones.items())

    def repeated(self, z: Tensor, name: str, num_chains: int) -> Tensor:
        """Values of a run without chains, the same for each of so many."""
        missing = -self._layout.particle_dim - (z.dim() - self._event_dims[name])
        first = z.reshape((1,) * missing + z.shape)
        return first.expand(num_chains, *first.shape[1:])

    def square(self, points: Mapping[str, Tensor]) -> Tensor:
        """Squared length of the point of each chain and datum, (K, N)."""
        return self._total(_sum_last(u.square(), self._depth(name)) for name, u in points.items())

    def numbers(self, points: Mapping[str, Tensor], k: int, n: int) -> list[float]:
        """The numbers of one point, that of chain k and datum n, site after site."""
        found: list[float] = []
        for name, u in points.items():
            has_chains = u.dim() - self._depth(name) == -self._layout.particle_dim
            of_datum = u.select(self._data_dim(name, u), n)
            found += (of_datum[k] if has_chains else of_datum).flatten().tolist()
        return found

    def flat(self, points: Mapping[str, Tensor]) -> Tensor:
        """Points of K chains as one matrix a site after the other, (K, N, D)."""
        return torch.cat(list(self.by_site(points).values()), -1)

    def by_site(self, points: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Points of K chains as one matrix for each site, (K, N, D)."""
        parts = {name: self._data_second(name, u) for name, u in points.items()}
        return {name: part.reshape(*part.shape[:2], -1) for name, part in parts.items()}

    def from_flat(self, matrix: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The points of a matrix (K', N, D), by the shapes of other points."""
        points, first = {}, 0
        for name, u in like.items():
            shape = self._data_second(name, u).shape[2:]
            part = matrix[..., first : first + shape.numel()].unflatten(-1, shape) if shape else matrix[..., first]
            points[name] = part.movedim(1, self._data_dim(name, u))
            first += shape.numel()
        return points

    def _data_second(self, name: str, u: Tensor) -> Tensor:
        return u.movedim(self._data_dim(name, u), 1)

    def _data_dim(self, name: str, u: Tensor) -> int:
        return u.dim() - self._depth(name) + self._layout.data_dim

    def aligned(self, matrix: Tensor, name: str, like: Tensor) -> Tensor:
        """Reshapes a matrix (K, N) or (1, N) so that it multiplies points of a site."""
        shape = [1] * -self._layout.particle_dim
        shape[0], shape[self._layout.data_dim] = matrix.shape
        spread = matrix.reshape(shape + [1] * self._depth(name))
        return spread if spread.dim() == like.dim() else spread.reshape(spread.shape[spread.dim() - like.dim() :])

    def _depth(self, name: str) -> int:
        """Event dimensions of the points of a site."""
        transform = self._transforms[name]
        return self._event_dims[name] - transform.codomain.event_dim + transform.domain.event_dim

    def _log_det(self, name: str, u: Tensor, z: Tensor) -> Tensor:
        transform = self._transforms[name]
        return _sum_last(transform.log_abs_det_jacobian(u, z), self._event_dims[name] - transform.codomain.event_dim)

    def _total(self, parts: Iterable[Tensor]) -> Tensor:
        reduced = [sum_to_data(part, self._layout) for part in parts]
        return sum(reduced[1:], reduced[0])


def _sum_last(x: Tensor, dims: int) -> Tensor:
    """Sums the last dimensions."""
    return x.sum(list(range(-dims, 0))) if dims else x


def _discrete_kind(site: Site, layout: Layout) -> str:
    """What a discrete site is that cannot be summed out, in words."""
    plates = [f for f in site["cond_indep_stack"] if f.name != DATA and f.dim != layout.particle_dim]
    if site["fn"].event_shape or plates:
        return (
            f"a {distribution_name(site['fn'])} of several numbers a datum, whose joint values are not gone through "
            "(make each number a site of its own, or all of them one Categorical)"
        )
    return "another discrete one, of infinitely many values or of more at some rows than at others"
