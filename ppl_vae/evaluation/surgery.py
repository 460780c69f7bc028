"""The rate by the aggregate posterior: what latents say of a datum, and how far they all are from the prior."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.errors import EstimateError, PairError
from ppl_vae.evaluation.proposal import Proposal, propose
from ppl_vae.pair import Pair
from ppl_vae.progress import Progress
from ppl_vae.reductions import mask_of, outside_support
from ppl_vae.rng import key, permutation, seeded
from ppl_vae.supports import is_fixed, support_of
from ppl_vae.tape import Batch, Layout, run_program
from ppl_vae.terms import Terms, outer_plates
from ppl_vae.wording import in_words

__all__ = ["Surgery", "aggregate_draws", "log_guide_of_others"]

_DRAWS, _ROWS = 64, 512
_SURGERY = 1 << 20  # key of noise that belongs to no block of data


@dataclass(frozen=True)
class Surgery:
    r"""Rate = mutual information + KL(q(z), p(z)), with the aggregate posterior q(z) = 1/N sum_m q(z given x_m).

    Of these N data `mutual_information` is unbiased, and at most log N. As an estimate for the population that they are
    a sample of it is too low in mean, and `upper`, where q(z) leaves out the datum that made z, too high: the two say
    how much. Standard errors are those of the draws.

    Reference:
        Hoffman and Johnson (2016), ELBO Surgery. Poole, Ozair, van den Oord, Alemi and Tucker (2019), On Variational
        Bounds of Mutual Information.
    """

    mutual_information: float
    """I(n; z) = E log q(z given x_n) / q(z), in nats."""
    mutual_information_stderr: float
    """Its standard error, in nats."""
    upper: float
    """The same with q(z) of all data but x_n, in nats; infinite where no other datum could have made a z."""
    upper_stderr: float
    """Its standard error, in nats."""
    rate: float
    """KL(q(z given x), p(z)), mean over data, in nats per datum."""
    rate_stderr: float
    """Its Monte Carlo standard error, in nats."""
    num_data: int
    """N."""
    num_draws: int
    """How many z the expectation is a mean of."""

    @property
    def marginal_kl(self) -> float:
        """KL(q(z), p(z)) of these data, rate - mutual information, in nats; too high in mean for the population."""
        return self.rate - self.mutual_information

    @property
    def marginal_kl_stderr(self) -> float:
        """Its standard error, in nats."""
        return math.hypot(self.rate_stderr, self.mutual_information_stderr)

    def __str__(self) -> str:
        information = in_words(self.mutual_information, self.mutual_information_stderr, 0.0)
        return (
            f"rate {self.rate:.2f} = mutual information {information} (at most log {self.num_data} = "
            f"{math.log(self.num_data):.2f}) + marginal KL {in_words(self.marginal_kl, self.marginal_kl_stderr, 0.0)} "
            f"nats; the mutual information of the population is between {self.mutual_information:.2f} and "
            f"{self.upper:.2f} in mean"
        )


def aggregate_draws(
    pair: Pair, rows: Rows, layout: Layout, num_draws: int, seed: int, device: torch.device, bar: Progress
) -> tuple[Tensor, Tensor]:
    r"""log q(z given x_n) - log q(z) of draws of the aggregate posterior, and the same without x_n in q(z).

    Draw i comes from datum n(i), all data in a random order, again and again.

    Returns:
        Two tensors (num_draws,), float64, in nats.

    Raises:
        PairError: The guide has draws of its own beside the model's latents.
        EstimateError: log q is NaN.
    """
    order = permutation(len(rows), seed, _SURGERY)
    made_by = order.repeat(math.ceil(num_draws / len(rows)))[:num_draws]
    own, others = [], []
    step = layout.largest_batch(_DRAWS)
    for first in range(0, num_draws, step):
        index = made_by[first : first + step]
        batch = rows.take(index, device)
        with seeded(key(seed, _SURGERY, first), device):
            drawn = propose(pair, batch, 1, layout)
        found = [
            _own_and_others(pair, part, drawn, layout, index - start)
            for start, part in rows.blocks(layout.largest_batch(_ROWS), device)
        ]
        own.append(torch.stack([of_own for of_own, _ in found]).logsumexp(0))
        others.append(torch.stack([of_others for _, of_others in found]).logsumexp(0))
        bar.update(first + len(index), "")
    log_own, log_others = torch.cat(own), torch.cat(others)
    return (
        log_own - torch.logaddexp(log_own, log_others) + math.log(len(rows)),
        log_own - log_others + (math.log(len(rows) - 1) if len(rows) > 1 else 0.0),
    )


def _own_and_others(
    pair: Pair, batch: Batch, drawn: Proposal, layout: Layout, position: Tensor
) -> tuple[Tensor, Tensor]:
    """log q(z_i given x_n(i)) where the block holds that datum, else -inf; log of the sum of q over the others."""
    log_q = log_guide_of_others(pair, batch, drawn, layout).double().cpu()
    if log_q.isnan().any():
        raise EstimateError(
            "aggregate posterior: expected a log q(z given x) of any z at any datum, found NaN: the guide's support "
            "differs between data in a way that its density does not tell; pass num_aggregate=0"
        )
    is_own = position.unsqueeze(-1) == torch.arange(log_q.shape[1])
    return log_q.where(is_own, -torch.inf).logsumexp(1), log_q.where(~is_own, -torch.inf).logsumexp(1)


def log_guide_of_others(pair: Pair, batch: Batch, drawn: Proposal, layout: Layout) -> Tensor:
    """log q(z_i given x_m) of one draw from each of P data at the M data of a batch, (P, M), in nats."""
    found = [
        _log_guide(pair, batch, size, values, layout)
        for size, values in _at_every_datum(drawn, layout, len(batch[0]), drawn.log_guide.shape[1])
    ]
    return torch.cat(found)


def _log_guide(pair: Pair, batch: Batch, size: int | None, values: dict[str, Tensor], layout: Layout) -> Tensor:
    tape = run_program(pair, pair.guide, batch, size, layout, values)
    if extra := [name for name in tape.latents if name not in values]:
        raise PairError(
            f"site {extra[0]!r}: expected a guide whose density can be evaluated at any latent, found a draw of its "
            "own beside the model's latents; pass num_aggregate=0"
        )
    for name in values:
        if not bool(mask_of(tape.sites[name]).all()):
            raise PairError(
                f"site {name!r}: expected a latent that every datum has, found a mask, so that q(z given x) of one "
                "datum is none of another; pass num_aggregate=0"
            )
    log_q = Terms([(tape, tape)], batch, layout, scaled=False).log_guide
    for site in tape.sites.values():  # densities of torch say anything outside a support of their own
        if not is_fixed(support_of(site["fn"])):
            log_q = torch.where(outside_support(site, layout), -torch.inf, log_q)
    return log_q


def _at_every_datum(
    drawn: Proposal, layout: Layout, num_data: int, num_draws: int
) -> Iterator[tuple[int | None, dict[str, Tensor]]]:
    """The values of one draw a particle, each the same for all data, for the plates that run them."""
    particles = {name: _by_particle(z, drawn.event_dims[name], layout) for name, z in drawn.latents[0].items()}
    for first, size in enumerate(outer_plates(num_draws, layout)):
        values = {}
        for name, z in particles.items():
            part = z[first] if size is None else z
            axis = part.dim() - drawn.event_dims[name] + layout.data_dim
            values[name] = part.expand(*part.shape[:axis], num_data, *part.shape[axis + 1 :])
        yield size, values


def _by_particle(z: Tensor, event_dim: int, layout: Layout) -> Tensor:
    """Values of P data (..., P, ..., *event) as those of P particles of one datum (P, ..., 1, ..., *event)."""
    missing = -layout.particle_dim - 1 - (z.dim() - event_dim)
    z = z.reshape((1,) * missing + z.shape)
    axis = z.dim() - event_dim + layout.data_dim
    return z.movedim(axis, 0).unsqueeze(axis + 1)
