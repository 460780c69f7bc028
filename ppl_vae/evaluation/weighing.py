"""Draws and weighs all samples of the data of one block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.errors import located
from ppl_vae.evaluation.draws import PosteriorDraws
from ppl_vae.evaluation.precision import pilot_needed, samples_needed
from ppl_vae.evaluation.proposal import Proposal, check_weights
from ppl_vae.evaluation.proposing import Proposer
from ppl_vae.evaluation.scoring import Scorer
from ppl_vae.evaluation.tally import Frailty, Tally, size_of_terms
from ppl_vae.pair import Pair
from ppl_vae.rng import key, seeded
from ppl_vae.tape import Batch, Layout
from ppl_vae.weights import Stream, Summary, check_possible

__all__ = ["Block", "Plan", "Weighed", "Weigher", "all_weights", "weigh"]


_ROUNDING = 0x40D  # what noise is for


class Plan(NamedTuple):
    """How the samples of an evaluation are divided; noise belongs to blocks of these sizes, whatever the memory."""

    num_samples: int
    """K; with a target, the most that a datum may have."""
    num_rows: int
    """Data of a block."""
    num_particles: int
    """Samples for each datum of a block."""
    num_draws: int
    """Posterior draws to keep for each datum."""
    seed: int
    """Of the samples."""
    target_stderr: float | None = None
    """Standard error that is enough for a datum, in nats; None draws K samples for each."""


class Weighed(NamedTuple):
    """Samples of a block of data with their weights."""

    log_weight: Tensor
    """log p(x, z) - log q(z given x) (k, N), in nats; of no meaning where they were not wanted."""
    log_lik: Tensor
    """log p(x given z) (k, N)."""
    size: Tensor
    """Size of the largest term of each log-weight (k, N)."""
    proposal: Proposal
    """The samples."""
    noise: int
    """Key of their noise."""


class Weigher(NamedTuple):
    """Draws samples of the guide and weighs them, unit by unit."""

    pair: Pair
    """The pair, in evaluation mode."""
    layout: Layout
    """Layout of the pair."""
    draw: Proposer
    """What draws."""
    score: Scorer
    """What scores."""
    device: torch.device
    """Where."""
    frailty: Frailty
    """What weights may suffer from."""
    end: int
    """Row after the last of this process."""

    def unit(self, batch: Batch, first: int, j: int, count: int, seed: int, wanted: Tensor | None = None) -> Weighed:
        """Unit j of the samples of a block whose first datum is `first`; those of data not `wanted` are not scored.

        All data of the block are drawn for, so that the noise of one owes nothing to what others want.
        """
        with located(f"rows {first} to {first + len(batch[0]) - 1}"):
            with seeded(key(seed, first, j), self.device):
                proposal = self.draw(batch, count)
            log_lik, log_prior = self.score(batch, proposal, count, wanted)
            log_weight = log_lik + log_prior - proposal.log_guide
            check_weights(self.pair, batch, proposal, log_weight, self.layout, first)
        size = size_of_terms(log_lik, log_prior, proposal)
        return Weighed(log_weight, log_lik, size, proposal, key(seed, first, j, 1))


class Block(NamedTuple):
    """What was found of the data of a block."""

    summary: Summary
    """Of the weights of each datum."""
    draws: dict[str, np.ndarray]
    """Posterior draws."""
    num_drawn: np.ndarray
    """Samples in the estimate of each datum (N,)."""
    num_pilot: np.ndarray
    """Further samples, that decided how many there are (N,)."""
    at_edge: np.ndarray
    """Share of the weight on samples that round to the edge of a latent's support (N,)."""
    num_at_edge: np.ndarray
    """How many there are (N,)."""


def weigh(batch: Batch, first: int, plan: Plan, weigher: Weigher) -> Block:
    """Weighs the samples of a block whose first datum is `first`: K for each datum, or what its pilot says it needs.

    Of a datum whose weights are all zero the value is -inf: that is log p(x) only where it is known by other means.
    """
    wanted, num_pilot = torch.full((len(batch[0]),), plan.num_samples), np.zeros(len(batch[0]), dtype=np.int64)
    start = 0
    if plan.target_stderr is not None:
        start = 1  # of noise that no pilot has had: those count down
        num_samples, num_pilot = _ask_pilot(batch, first, plan, weigher, plan.target_stderr)
        _expect(num_samples, num_pilot, first, plan, weigher)
        wanted = torch.from_numpy(num_samples)
    tally = Tally(weigher.pair, batch, weigher.layout, weigher.frailty, wanted, first)
    draws = PosteriorDraws(plan.num_draws, weigher.layout)
    for j, drawn, count in _units(plan, int(wanted.max()), start):
        want = None if bool((wanted > drawn).all()) else wanted > drawn
        found = weigher.unit(batch, first, j, count, plan.seed, want)
        tally.add(found.log_weight, found.size, found.proposal, want)
        draws.add(found.log_weight, found.log_lik, found.proposal, found.noise, want)
    summary = tally.summary_of_any(key(plan.seed, first, _ROUNDING))
    return Block(summary, draws.values(), wanted.numpy(), num_pilot, **tally.at_edge(summary.value))


def _ask_pilot(
    batch: Batch, first: int, plan: Plan, weigher: Weigher, target_stderr: float
) -> tuple[np.ndarray, np.ndarray]:
    """How many samples each datum needs (N,), and how many of a pilot that is laid aside said so (N,).

    An estimate that used the pilot again, or that was taken for its small error, would be biased by that. So it is the
    pilot that goes on, until it is as long as its own answer asks for.
    """
    unit, pilot, weights = plan.num_particles, np.zeros(len(batch[0]), dtype=np.int64), list[Tensor]()
    longer = pilot < unit
    while longer.any():
        want = None if longer.all() else torch.from_numpy(longer)
        weights.append(weigher.unit(batch, first, -len(weights), unit, plan.seed, want).log_weight.cpu())
        pilot = pilot + unit * longer
        needed = _needed(weights, pilot, first, plan, target_stderr)
        longer = pilot < pilot_needed(needed, unit)
    return needed, pilot


def _expect(num_samples: np.ndarray, num_pilot: np.ndarray, first: int, plan: Plan, weigher: Weigher) -> None:
    """What is left to draw and score, for compiling to pay, if the data after a block are like those of it (N,)."""
    left = (weigher.end - first) / len(num_samples) - 1
    weigher.score.expect(int(num_samples.sum() + left * (num_samples + num_pilot).sum()))
    units = num_samples.max() + left * (num_samples.max() + num_pilot.max())
    weigher.draw.expect(math.ceil(units / plan.num_particles))


def _needed(weights: list[Tensor], pilot: np.ndarray, first: int, plan: Plan, target_stderr: float) -> np.ndarray:
    """Samples that each datum needs (N,), by the units of its pilot."""
    counts = torch.from_numpy(pilot)
    wants = [counts > j * plan.num_particles for j in range(len(weights))]
    units = list(zip(weights, wants, strict=True))
    hopeless = torch.stack([(w == -torch.inf).all(0) | ~want for w, want in units]).all(0)
    stream = Stream(len(pilot), counts, first)
    for log_weight, want in units:
        stream.add(torch.where(hopeless, 0.0, log_weight), want)
    needed = samples_needed(stream.summary(), pilot, plan.num_particles, target_stderr, plan.num_samples)
    # Nothing but zero weights says nothing of how many samples will do: all that are allowed.
    return np.where(hopeless.numpy(), plan.num_samples, needed)


def all_weights(batch: Batch, first: int, plan: Plan, weigher: Weigher) -> Tensor:
    """All K log-weights of a block whose first datum is `first`, (K, N), in nats: those that `weigh` streams.

    Raises:
        EstimateError: As from `weigh`: a weight is NaN or infinite, or all weights of a datum are zero.
    """
    units = _units(plan, plan.num_samples)
    found = torch.cat([weigher.unit(batch, first, j, count, plan.seed).log_weight for j, _, count in units])
    check_possible(found.logsumexp(0), torch.tensor(plan.num_samples).expand(found.shape[1]), first)
    return found


def _units(plan: Plan, num_samples: int, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """Number of each unit, how many samples were drawn before it, and how many it draws."""
    for j in range(math.ceil(num_samples / plan.num_particles)):
        drawn = j * plan.num_particles
        yield start + j, drawn, min(plan.num_particles, num_samples - drawn)
