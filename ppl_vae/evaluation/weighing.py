"""Draws and weighs all samples of the data of one block."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ppl_vae.errors import located
from ppl_vae.evaluation.draws import PosteriorDraws
from ppl_vae.evaluation.proposing import Proposer
from ppl_vae.evaluation.scoring import Scorer
from ppl_vae.rng import key, seeded
from ppl_vae.tape import Batch, Layout
from ppl_vae.weights import Stream, Summary

__all__ = ["Plan", "weigh"]


class Plan(NamedTuple):
    """How the samples of an evaluation are divided; noise belongs to blocks of these sizes, whatever the memory."""

    num_samples: int
    """K."""
    num_rows: int
    """Data of a block."""
    num_particles: int
    """Samples for each datum of a block."""
    num_draws: int
    """Posterior draws to keep for each datum."""
    seed: int
    """Of the samples."""


def weigh(
    batch: Batch, first: int, plan: Plan, layout: Layout, draw: Proposer, score: Scorer, device: torch.device
) -> tuple[Summary, dict[str, np.ndarray]]:
    """Summary of the K log-weights of each datum of a block whose first datum is `first`, and posterior draws."""
    stream = Stream(len(batch[0]), plan.num_samples, first)
    draws = PosteriorDraws(plan.num_draws, layout)
    for j, drawn in enumerate(range(0, plan.num_samples, plan.num_particles)):
        count = min(plan.num_particles, plan.num_samples - drawn)
        with located(f"rows {first} to {first + len(batch[0]) - 1}"):
            with seeded(key(plan.seed, first, j), device):
                proposal = draw(batch, count)
            log_lik, log_prior = score(batch, proposal, count)
        log_weight = log_lik + log_prior - proposal.log_guide
        stream.add(log_weight)
        draws.add(log_weight, log_lik, proposal, key(plan.seed, first, j, 1))
    return stream.summary(), draws.values()
