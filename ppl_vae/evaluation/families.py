"""Families of local posteriors: what a guide becomes when each datum has parameters of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints, transform_to

from ppl_vae.errors import PairError
from ppl_vae.evaluation.freeing import Parameter, freed, name_of
from ppl_vae.evaluation.proposal import Proposal, evaluate_model, propose
from ppl_vae.evaluation.unconstrained import Unconstrained
from ppl_vae.pair import Pair
from ppl_vae.rng import seeded
from ppl_vae.tape import Batch, Layout, run_program
from ppl_vae.terms import run

__all__ = ["AffineFamily", "GuideFamily", "LocalFamily", "is_enumerable"]


class LocalFamily(Protocol):
    """Densities q(z) with P free numbers for each datum; what they start from is a context of tensors (N, ...)."""

    @property
    def size(self) -> int:
        """P."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the free numbers."""

    def elbo(self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, num_particles: int) -> Tensor:
        """Estimate of the ELBO of each datum (N,), differentiable in `free` (N, P)."""

    def propose(self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, num_particles: int) -> Proposal:
        """Draws, and their log q."""


def is_enumerable(layout: Layout) -> bool:
    """Whether every joint value of the latents can be gone through."""
    return layout.vectorized and set(layout.local_latents) == set(layout.cardinalities)


class _Slot(NamedTuple):
    """Where the shift of one parameter lies in a row of free numbers."""

    first: int
    """Its first column."""
    shape: tuple[int, ...]
    """Its shape for one datum."""
    data_dim: int
    """Dimension of the data among those of its shape, from the right."""

    def of(self, free: Tensor) -> Tensor:
        """The shift for all data."""
        columns = free[:, self.first : self.first + math.prod(self.shape)]
        shift = columns.reshape(len(free), *self.shape)
        return shift.movedim(0, shift.dim() + self.data_dim)


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
        recorders = [_Recorder(layout) for _ in range(2)]
        for seed, recorder in enumerate(recorders):
            with seeded(seed, batch[0].device):
                tape = run_program(pair, _Within(pair, recorder), batch, None, layout)
        self._slots, self.size = recorders[0].slots, recorders[0].size
        self.dtype = pair.dtype or recorders[0].values[0].dtype
        self.names = {name: name_of(tape.sites[name]["fn"])[0] for name in layout.local_latents}
        self.is_supremum = all(name_of(tape.sites[name]["fn"])[1] for name in self.names) and all(
            torch.equal(one, other) for one, other in zip(*(r.values for r in recorders), strict=True)
        )

    def freed(self, free: Tensor) -> Pair:
        """The pair with the freed guide; it shares everything else."""
        pair = copy.copy(self._pair)
        pair.__dict__["guide"] = _Within(
            self._pair, _Shift({n: [s.of(free) for s in slots] for n, slots in self._slots.items()})
        )
        return pair

    def elbo(self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, num_particles: int) -> Tensor:
        """Sum over the values of discrete latents, mean over draws of the others."""
        enumerated = bool(self._layout.cardinalities)
        terms = run(self.freed(free), batch, num_particles, self._layout, enumerate_discrete=enumerated).unscaled()
        kl = terms.kl(self._layout.analytic)
        log_weight = terms.log_lik - sum(kl.values())
        weights = terms.particle_weights
        return log_weight.mean(0) if weights is None else (weights * log_weight).sum(0)

    def propose(self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, num_particles: int) -> Proposal:
        """Draws of the freed guide."""
        return propose(self.freed(free), batch, num_particles, self._layout)


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
        PairError: A latent is discrete, or its support depends on others; or particles cannot run at once.
    """

    def __init__(self, family: GuideFamily, pair: Pair, batch: Batch, layout: Layout) -> None:
        self._family, self._pair, self._layout = family, pair, layout
        if not layout.vectorized:
            raise PairError("expected programs that accept a leading particle dimension, found ones that do not")
        with seeded(0, batch[0].device):
            guide = run_program(pair, pair.guide, batch, None, layout)
            self._space = Unconstrained(run_program(pair, pair.model, batch, None, layout, guide.latents), layout)
        self.dim = self._flat(
            family.propose(
                torch.zeros(len(batch[0]), family.size, dtype=family.dtype, device=batch[0].device), (), batch, 2
            )
        ).shape[-1]
        self.size, self.dtype = self.dim * (self.dim + 1), family.dtype

    def context(self, best: Tensor, batch: Batch, num_draws: int) -> tuple[Tensor, ...]:
        """The best q of the family, and mean and scale of its draws, for the data of a block."""
        drawn = self._flat(self._family.propose(best, (), batch, num_draws))
        return best, drawn.mean(0), drawn.std(0).clamp_min(torch.finfo(drawn.dtype).eps)

    def elbo(self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, num_particles: int) -> Tensor:
        """Mean over draws."""
        proposal = self.propose(free, context, batch, num_particles)
        log_lik, log_prior = evaluate_model(self._pair, batch, proposal.latents, self._layout, num_particles)
        return (log_lik + log_prior - proposal.log_guide).mean(0)

    def propose(self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, num_particles: int) -> Proposal:
        """Draws of the guide's family, moved."""
        best, centre, scale = context
        plain = self._family.propose(best, (), batch, num_particles)
        start = self._space.points(plain.latents[0])
        log_det_start = self._space.values(start)[1]
        root = transform_to(constraints.lower_cholesky)(free[:, self.dim :].unflatten(-1, (self.dim, self.dim)))
        log_det_root = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        u = (self._space.flat(start) - centre) / scale
        u = centre + scale * (torch.einsum("nij,knj->kni", root, u) + free[:, : self.dim])
        values, log_det = self._space.values(self._space.from_flat(u, start))
        log_guide = plain.log_guide + log_det_start - log_det_root - log_det
        return plain._replace(latents=[values], log_guide=log_guide)

    def _flat(self, proposal: Proposal) -> Tensor:
        return self._space.flat(self._space.points(proposal.latents[0]))


class _Within:
    """A guide run within a handler."""

    def __init__(self, pair: Pair, handler: Messenger) -> None:
        self._guide, self._handler = pair.guide, handler

    def __call__(self, *batch: Any) -> None:
        with self._handler:
            self._guide(*batch)


class _Recorder(Messenger):
    """Finds every parameter that can be free."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout = layout
        self.slots: dict[str, list[_Slot]] = {name: [] for name in layout.local_latents}
        self.values: list[Tensor] = []
        self.size = 0

    def _pyro_sample(self, msg: Any) -> None:
        if (name := msg["name"]) not in self.slots:
            return

        def record(parameter: Parameter) -> Tensor:
            shape = list(parameter.shape)
            data_dim = self._layout.data_dim - parameter.inner
            del shape[data_dim]
            self.slots[name].append(_Slot(self.size, tuple(shape), data_dim))
            self.values.append(parameter.value)
            self.size += math.prod(shape)
            return parameter.value.new_zeros(parameter.shape)

        try:
            freed(msg["fn"], record)
        except PairError as error:
            raise PairError(
                f"site {name!r}: expected a distribution whose parameters can be free for each datum, {error}; "
                "log_likelihood gives the gap as a whole"
            ) from None


class _Shift(Messenger):
    """Replaces the distribution of each site by its own family at shifted parameters."""

    def __init__(self, shifts: Mapping[str, Sequence[Tensor]]) -> None:
        super().__init__()
        self._shifts = shifts

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._shifts:
            shifts = iter(self._shifts[msg["name"]])
            msg["fn"] = freed(msg["fn"], lambda _: next(shifts))


def _check(layout: Layout) -> None:
    if not layout.local_latents:
        raise PairError("expected latents, found a pair without: its ELBO is log p(x), there is no gap to split")
    if layout.points:
        raise PairError(
            f"site {layout.points[0]!r}: expected a guide with a density, found a point: there is no ELBO to compare"
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
