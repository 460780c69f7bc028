"""The two halves of an importance weight: draws of the guide, and the model's density at given values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppl_vae.errors import EstimateError
from ppl_vae.pair import Pair
from ppl_vae.reductions import bounded_log_prob, has_mask, mask_of, outside_support, sum_to_data
from ppl_vae.rng import seeded
from ppl_vae.shrinking import undivided
from ppl_vae.tape import Batch, Layout, Tape, run_program
from ppl_vae.terms import Terms, outer_plates
from ppl_vae.weights import not_a_weight

__all__ = [
    "Proposal",
    "check_finite",
    "check_weights",
    "evaluate_guide",
    "evaluate_model",
    "first_draw",
    "masks_of",
    "propose",
    "site_at_fault",
    "site_where",
]


class Proposal(NamedTuple):
    """Draws of a guide: what an evaluation needs to weigh them."""

    latents: list[dict[str, Tensor]]
    """Values of the latent sites: one dictionary for all particles, or one a particle where they run one by one."""
    event_dims: dict[str, int]
    """Number of event dimensions of each."""
    outer: bool
    """Whether the values have a particle dimension of their own."""
    log_guide: Tensor
    """log q(z given x), (K, N), in nats."""
    masks: list[dict[str, Tensor]]
    """Which numbers count, of latents with a mask, in the form of the values."""

    def part(self, layout: Layout, rows: slice | Tensor, particles: slice) -> list[dict[str, Tensor]]:
        """Latent values of some rows and particles, in the same form."""
        chosen = self.latents if self.outer else self.latents[particles]
        return [{n: self._of_site(n, value, layout, rows, particles) for n, value in d.items()} for d in chosen]

    def outer_size(self, num_particles: int) -> int | None:
        """Size of the plate that runs so many of the particles at once; None where they run one by one."""
        return num_particles if self.outer else None

    def _of_site(self, name: str, value: Tensor, layout: Layout, rows: slice | Tensor, particles: slice) -> Tensor:
        index: list[slice | Tensor] = [slice(None)] * value.dim()
        index[value.dim() - self.event_dims[name] + layout.data_dim] = rows
        if self.outer:
            index[0] = particles
        return value[tuple(index)]

    def particles_first(self, layout: Layout) -> dict[str, Tensor]:
        """Latent values as (K, N, *rest), whatever the plates."""
        return self._particles_first(self.latents, layout)

    def masks_first(self, layout: Layout) -> dict[str, Tensor]:
        """Which of them count, of latents with a mask, as (K, N, *rest)."""
        return self._particles_first(self.masks, layout)

    def _particles_first(self, each: Sequence[Mapping[str, Tensor]], layout: Layout) -> dict[str, Tensor]:
        found = {}
        for name in each[0]:
            event_dim, values = self.event_dims[name], [tensors[name] for tensors in each]
            stacked = values[0] if self.outer else torch.stack(values)
            first = stacked.movedim(stacked.dim() - event_dim + layout.data_dim, 1)
            plates = [size for size in first.shape[2 : first.dim() - event_dim] if size != 1]
            found[name] = first.reshape(*first.shape[:2], *plates, *first.shape[first.dim() - event_dim :])
        return found


def first_draw(pair: Pair, batch: Batch, layout: Layout) -> Tape:
    """A run of the guide on one datum; it takes no noise of anybody's."""
    with seeded(0, batch[0].device), undivided("a draw of the guide for one datum"):
        return run_program(pair, pair.guide, batch, None, layout)


def propose(pair: Pair, batch: Batch, num_particles: int, layout: Layout) -> Proposal:
    """Draws K particles from the guide.

    Raises:
        EstimateError: Memory ran out: noise belongs to all of them.
    """
    with undivided(f"{num_particles} draws of the guide for each of {len(batch[0])} data"):
        return _drawn(pair, batch, num_particles, layout)


def _drawn(pair: Pair, batch: Batch, num_particles: int, layout: Layout) -> Proposal:
    tapes = [run_program(pair, pair.guide, batch, size, layout) for size in outer_plates(num_particles, layout)]
    terms = Terms([(tape, tape) for tape in tapes], batch, layout, scaled=False)
    event_dims = {name: tapes[0].sites[name]["fn"].event_dim for name in layout.local_latents}
    latents = [{name: tape.latents[name] for name in layout.local_latents} for tape in tapes]
    outer = layout.vectorized and num_particles > 1
    return Proposal(latents, event_dims, outer, terms.log_guide, [masks_of(tape, layout) for tape in tapes])


def masks_of(tape: Tape, layout: Layout) -> dict[str, Tensor]:
    """Which numbers of a run's latents count, of those with a mask."""
    sites = {name: tape.sites[name] for name in layout.local_latents if has_mask(tape.sites[name])}
    return {name: mask_of(site).expand_as(site["value"]) for name, site in sites.items()}


def check_weights(
    pair: Pair, batch: Batch, proposal: Proposal, log_weight: Tensor, layout: Layout, first_row: int
) -> None:
    """No log-weight (K, N) of a block is NaN or plus infinity.

    Raises:
        EstimateError: Naming the row, whose first is `first_row`, and the first site of such a density.
    """
    _check(not_a_weight, "log-weights", pair, batch, proposal, log_weight, layout, first_row)


def check_finite(
    pair: Pair, batch: Batch, proposal: Proposal, log_weight: Tensor, layout: Layout, first_row: int
) -> None:
    """No log-weight (K, N) of a block is infinite or NaN: their mean is an ELBO.

    Raises:
        EstimateError: Naming the row, whose first is `first_row`, and the first site of such a density.
    """
    _check(lambda t: ~t.isfinite(), "log-weights of an ELBO", pair, batch, proposal, log_weight, layout, first_row)


def _check(
    is_bad: Callable[[Tensor], Tensor],
    what: str,
    pair: Pair,
    batch: Batch,
    proposal: Proposal,
    log_weight: Tensor,
    layout: Layout,
    first_row: int,
) -> None:
    bad = is_bad(log_weight)
    if not bool(bad.any()):
        return
    k, n = (int(i) for i in bad.nonzero()[0])
    latents = proposal.part(layout, slice(n, n + 1), slice(k, k + 1))[0]
    row, size = tuple(array[n : n + 1] for array in batch), proposal.outer_size(1)
    programs = (("guide", pair.guide), ("model", pair.model))
    tapes = ((role, run_program(pair, program, row, size, layout, latents)) for role, program in programs)
    raise EstimateError(
        f"row {first_row + n}: expected finite {what}, found {float(log_weight[k, n])} at draw {k}: "
        f"{site_at_fault(tapes, layout, is_bad=is_bad)}"
    )


def site_at_fault(
    tapes: Iterable[tuple[str, Tape]],
    layout: Layout,
    column: int = 0,
    is_bad: Callable[[Tensor], Tensor] = not_a_weight,
) -> str:
    """The first site whose density is none at a datum of a run, in words, among the runs of named programs."""
    for role, tape in tapes:
        if name := site_where(tape, layout, is_bad, column):
            return f"the density of site {name!r} of the {role} is none there"
    return "no single density is to blame, but their difference"


def site_where(tape: Tape, layout: Layout, is_so: Callable[[Tensor], Tensor], column: int) -> str:
    """The first site of a run of whose log-densities some are so at a datum, or an empty text."""
    for name, site in tape.sites.items():
        found = is_so(bounded_log_prob(site, layout)).float()
        of_data = sum_to_data(scale_and_mask(found, 1.0, site["mask"]), layout)
        if bool(of_data[:, column if of_data.shape[1] > 1 else 0].any()):
            return name
    return ""


def evaluate_guide(
    pair: Pair, batch: Batch, latents: Sequence[Mapping[str, Tensor]], layout: Layout, num_particles: int | None
) -> Tensor:
    """log q(z given x), (K, N), of given latent values (`num_particles` in each dictionary)."""
    tapes = [run_program(pair, pair.guide, batch, num_particles, layout, values) for values in latents]
    return Terms([(tape, tape) for tape in tapes], batch, layout, scaled=False).log_guide


def evaluate_model(
    pair: Pair, batch: Batch, latents: Sequence[Mapping[str, Tensor]], layout: Layout, num_particles: int | None
) -> tuple[Tensor, Tensor]:
    """log p(x given z) and log p(z), each (K, N), of given latent values (`num_particles` in each dictionary)."""
    tapes = [run_program(pair, pair.model, batch, num_particles, layout, values) for values in latents]
    terms = Terms([(tape, tape) for tape in tapes], batch, layout, scaled=False)
    log_lik, log_prior = terms.log_lik, terms.log_prior
    if layout.may_leave_support:
        inside = torch.cat([_inside(tape, layout) for tape in tapes]).expand(log_prior.shape)
        log_lik = torch.where(inside, log_lik, 0.0)
        log_prior = torch.where(inside, log_prior, -torch.inf)
    log_lik, log_prior = torch.broadcast_tensors(log_lik, log_prior)
    return log_lik, log_prior


def _inside(model: Tape, layout: Layout) -> Tensor:
    """Whether the latent values of each particle and datum lie in the model's support, (K, N)."""
    outside = [outside_support(model.sites[name], layout) for name in layout.may_leave_support]
    return ~torch.stack(torch.broadcast_tensors(*outside)).any(0)
