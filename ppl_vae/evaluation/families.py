"""Families of local posteriors: what a guide becomes when each datum has parameters of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from ppl_vae.errors import PairError
from ppl_vae.evaluation.freeing import name_of
from ppl_vae.evaluation.proposal import Proposal, evaluate_model, propose
from ppl_vae.evaluation.shifting import Recorder, Shift, Within
from ppl_vae.evaluation.unconstrained import OTHER_DRAWS, Unconstrained, refuse_masks
from ppl_vae.pair import Pair
from ppl_vae.rng import seeded
from ppl_vae.tape import Batch, Layout, run_program
from ppl_vae.terms import Terms, run

__all__ = ["AffineFamily", "GuideFamily", "LocalFamily", "is_enumerable"]

_MOST_LATENTS = 512


class LocalFamily(Protocol):
    """Densities q(z) with P free numbers for each datum; what they start from is a context of tensors (N, ...)."""

    @property
    def size(self) -> int:
        """P."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the free numbers."""

    def elbo(self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, num_particles: int) -> Tensor:
        """Estimate of the ELBO of each datum (N,), with a gradient in `free` (N, P).

        Where densities of given values are known, gradients reach log q through its draws only: at a posterior in the
        family nothing of them is left to chance (Roeder, Wu and Duvenaud 2017).
        """

    def propose(self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, num_particles: int) -> Proposal:
        """Draws, and their log q."""


def is_enumerable(layout: Layout) -> bool:
    """Whether every joint value of the latents can be gone through."""
    return layout.vectorized and set(layout.local_latents) == set(layout.cardinalities)


class GuideFamily:
    r"""The guide's own distributions with parameters `T(T^-1(theta(x_n)) + delta_n)`, delta_n free for each datum n.

    Where no site of the guide depends on another one, the best delta is the best q of the family for this datum.

    Args:
        pair: The pair, in evaluation mode.
        batch: Some data.
        layout: Layout of the pair.

    Raises:
        PairError: There is no latent, or one that has no density, or no parameters that can be free, or gradients.
    """

    def __init__(self, pair: Pair, batch: Batch, layout: Layout) -> None:
        self._pair, self._layout = pair, layout
        _check(layout)
        recorders = [Recorder(layout) for _ in range(2)]
        for seed, recorder in enumerate(recorders):
            with seeded(seed, batch[0].device):
                tape = run_program(pair, Within(pair, recorder), batch, None, layout)
        self._slots, self.size = recorders[0].slots, recorders[0].size
        self.dtype = pair.dtype or recorders[0].values[0].dtype
        self.names = {name: name_of(tape.sites[name]["fn"])[0] for name in layout.local_latents}
        self.has_density = all(name_of(tape.sites[name]["fn"])[1] for name in self.names)
        all_free = all(slot is not None for slots in self._slots.values() for slot in slots)
        self.is_supremum = (
            self.has_density
            and all_free
            and all(torch.equal(one, other) for one, other in zip(*(r.values for r in recorders), strict=True))
        )

    def start(self, num_data: int, device: torch.device) -> Tensor:
        """Free numbers of so many data at which q is the guide."""
        return torch.zeros(num_data, self.size, dtype=self.dtype, device=device)

    def freed(self, free: Tensor) -> Pair:
        """The pair with the freed guide; it shares everything else."""
        pair = copy.copy(self._pair)
        shifts = {n: [None if s is None else s.of(free) for s in slots] for n, slots in self._slots.items()}
        pair.__dict__["guide"] = Within(self._pair, Shift(shifts))
        return pair

    def elbo(self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, num_particles: int) -> Tensor:
        """Sum over the values of discrete latents, mean over draws of the others."""
        if self._layout.cardinalities:
            return self._summed(free, batch, num_particles)
        proposal = self.propose(free, context, batch, num_particles)
        if self.has_density:
            log_guide = self.log_density(free.detach(), batch, proposal.latents, proposal.outer_size(num_particles))
            proposal = proposal._replace(log_guide=log_guide)
        return _elbo(self._pair, batch, proposal, self._layout, num_particles)

    def propose(self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, num_particles: int) -> Proposal:
        """Draws of the freed guide."""
        return propose(self.freed(free), batch, num_particles, self._layout)

    def log_density(
        self, free: Tensor, batch: Batch, latents: Sequence[Mapping[str, Tensor]], num_particles: int | None
    ) -> Tensor:
        """log q of given values (K, N)."""
        pair = self.freed(free)
        tapes = [run_program(pair, pair.guide, batch, num_particles, self._layout, values) for values in latents]
        return Terms([(tape, tape) for tape in tapes], batch, self._layout, scaled=False).log_guide

    def _summed(self, free: Tensor, batch: Batch, num_particles: int) -> Tensor:
        terms = run(self.freed(free), batch, num_particles, self._layout, enumerate_discrete=True).unscaled()
        assert terms.particle_weights is not None
        log_weight = terms.log_lik - sum(terms.kl(self._layout.analytic).values())
        return (terms.particle_weights * log_weight).sum(0)


class AffineFamily:
    r"""The best q of the guide's family, pushed through an affine map of all latents of a datum.

    .. math:: u = c + S (A S^{-1} (u_0 - c) + b), \quad A \text{ lower triangular with positive diagonal}

    u are the latents in R^n, by the transforms of Pyro; c and S are mean and scale of u_0, so that it starts from A = I
    and b = 0, and free numbers have no unit. Of a normal guide these are the normals of full covariance.

    Args:
        family: The guide's family, at its best for each datum.
        pair: The pair.
        batch: Some data.
        layout: Layout of the pair.

    Raises:
        PairError: A latent is discrete, or its support depends on others; or particles cannot run at once; or numbers
            are of half precision.
    """

    def __init__(self, family: GuideFamily, pair: Pair, batch: Batch, layout: Layout) -> None:
        self._family, self._pair, self._layout = family, pair, layout
        if not layout.vectorized:
            raise PairError("expected programs that accept a leading particle dimension, found ones that do not")
        if family.dtype not in (torch.float32, torch.float64):
            raise PairError(f"expected single or double precision for an affine map, found {family.dtype}")
        with seeded(0, batch[0].device):
            guide = run_program(pair, pair.guide, batch, None, layout)
            model = run_program(pair, pair.model, batch, None, layout, guide.latents)
            others = (run_program(pair, pair.model, batch, None, layout) for _ in range(OTHER_DRAWS))
            self._space = Unconstrained(model, layout, (), others)
        start = family.start(len(batch[0]), batch[0].device)
        self.dim = self._flat(family.propose(start, (), batch, 2).latents[0]).shape[-1]
        if self.dim > _MOST_LATENTS:
            raise PairError(
                f"expected at most {_MOST_LATENTS} latent numbers for a matrix each datum, found {self.dim}"
            )
        self.size, self.dtype = self.dim * (self.dim + 1), family.dtype

    def context(self, best: Tensor, batch: Batch, num_draws: int) -> tuple[Tensor, ...]:
        """The best q of the family, and mean and scale of its draws, for the data of a block.

        Raises:
            PairError: A latent is masked for some of them.
        """
        drawn = self._flat(self._family.propose(best, (), batch, num_draws).latents[0])
        guide = run_program(self._pair, self._pair.guide, batch, None, self._layout)
        refuse_masks([guide], self._layout.local_latents, "map it", "pass richer=False")
        return best, drawn.mean(0), drawn.std(0).clamp_min(torch.finfo(drawn.dtype).eps)

    def elbo(self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, num_particles: int) -> Tensor:
        """Mean over draws."""
        proposal = self.propose(free, context, batch, num_particles)
        if self._family.has_density:
            log_guide = self.log_density(free.detach(), context, batch, proposal.latents[0], num_particles)
            proposal = proposal._replace(log_guide=log_guide)
        return _elbo(self._pair, batch, proposal, self._layout, num_particles)

    def propose(
        self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, num_particles: int, widen: float = 1.0
    ) -> Proposal:
        """Draws of the guide's family, moved; `widen` times as far from their mean, with the density of such draws."""
        best, centre, scale = context
        plain = self._family.propose(best, (), batch, num_particles)
        points = self._space.points(plain.latents[0])
        log_det_start = self._space.values(points)[1]
        shift, root = self._map(free)
        root = widen * root
        w = torch.einsum("nij,knj->kni", root, (self._space.flat(points) - centre) / scale) + shift
        values, log_det = self._space.values(self._space.from_flat(centre + scale * w, points))
        log_guide = plain.log_guide + log_det_start - _log_det(root) - log_det
        return plain._replace(latents=[values], log_guide=log_guide)

    def log_density(
        self,
        free: Tensor,
        context: tuple[Tensor, ...],
        batch: Batch,
        values: Mapping[str, Tensor],
        num_particles: int,
    ) -> Tensor:
        """log q of given values (K, N): that of the draws of the guide's family which the map takes there."""
        best, centre, scale = context
        points = self._space.points(values)
        log_det = self._space.values(points)[1]
        shift, root = self._map(free)
        w = (self._space.flat(points) - centre) / scale - shift
        start = torch.linalg.solve_triangular(root, w.permute(1, 2, 0), upper=False).permute(2, 0, 1)
        plain, log_det_start = self._space.values(self._space.from_flat(centre + scale * start, points))
        log_guide = self._family.log_density(best, batch, [plain], num_particles)
        return log_guide + log_det_start - _log_det(root) - log_det

    def _map(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """b (N, D) and A (N, D, D)."""
        matrix = free[:, self.dim :].unflatten(-1, (self.dim, self.dim))
        return free[:, : self.dim], transform_to(constraints.lower_cholesky)(matrix)

    def _flat(self, latents: Mapping[str, Tensor]) -> Tensor:
        return self._space.flat(self._space.points(latents))


def _log_det(root: Tensor) -> Tensor:
    return root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _elbo(pair: Pair, batch: Batch, proposal: Proposal, layout: Layout, num_particles: int) -> Tensor:
    """Mean of the log-weights of each datum (N,)."""
    size = proposal.outer_size(num_particles)
    log_lik, log_prior = evaluate_model(pair, batch, proposal.latents, layout, size)
    return (log_lik + log_prior - proposal.log_guide).mean(0)


def _check(layout: Layout) -> None:
    if not layout.local_latents:
        raise PairError("expected latents, found a pair without: its ELBO is log p(x), there is no gap to split")
    if layout.points:
        raise PairError(
            f"site {layout.points[0]!r}: expected a distribution whose parameters can be free, found a point; write "
            "the distribution at the site itself, not at an auxiliary one"
        )
    if layout.not_enumerable:
        raise PairError(
            f"site {layout.not_enumerable[0]!r}: expected a latent that is reparametrised or has finitely many values, "
            "so that a q for each datum can be found by gradients, found neither; log_likelihood gives the gap as a "
            "whole"
        )
    if layout.may_leave_support:
        raise PairError(
            f"site {min(layout.may_leave_support)!r}: expected a guide that stays in the model's support, found one "
            "that leaves it: its ELBO is minus infinity; choose a guide with the model's support"
        )
