"""Counts the weights of the samples of a block with what may be wrong: rounding, and the edge of a support."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.evaluation.coarseness import rounding_of_terms, rounds
from ppl_vae.evaluation.edges import at_edge, bounded_latents
from ppl_vae.evaluation.proposal import Proposal
from ppl_vae.pair import Pair
from ppl_vae.tape import Batch, Layout, Tape
from ppl_vae.weights import Stream, Summary

__all__ = ["Frailty", "Tally", "size_of_terms"]


class Frailty(NamedTuple):
    """What the weights of a pair may suffer from."""

    bounded: tuple[str, ...]
    """Latents whose draws may round to the edge of their support."""
    rounds: bool
    """Whether the terms of log-weights may cancel, so that rounding within them counts."""

    @classmethod
    def of(cls, pair: Pair, one: Batch, layout: Layout, guide: Tape) -> Frailty:
        """Those of a pair, of which a run of the guide on some data is given."""
        return cls(bounded_latents(guide, layout), rounds(pair, one, layout, guide))


class Tally:
    """Log-weights of the samples of a block, unit by unit, as `Stream` counts them, with those at an edge.

    Args:
        pair: What they are weights of.
        batch: The block (N, *event).
        layout: Layout of the pair.
        frailty: What they may suffer from.
        num_samples: K; a tensor (N,) where it differs among data.
        first: Row of the first datum, for messages.
    """

    def __init__(
        self, pair: Pair, batch: Batch, layout: Layout, frailty: Frailty, num_samples: int | Tensor, first: int
    ) -> None:
        self._pair, self._batch, self._layout, self._frailty = pair, batch, layout, frailty
        self._stream = Stream(len(batch[0]), num_samples, first)
        self._log_edge = torch.full((len(batch[0]),), -torch.inf, dtype=torch.float64)
        self._num_at_edge = torch.zeros(len(batch[0]), dtype=torch.int64)

    def add(self, log_weight: Tensor, size: Tensor, proposal: Proposal, wanted: Tensor | None = None) -> None:
        """Adds a unit of samples.

        Args:
            log_weight: Their log-weights (k, N).
            size: Size of the largest term of each (k, N).
            proposal: The samples themselves.
            wanted: Data (N,) that they are added for; None is for all.
        """
        self._stream.add(log_weight, wanted, size)
        if (edge := at_edge(proposal, self._frailty.bounded, self._layout)) is not None:
            counted = edge if wanted is None else edge & wanted.to(edge.device)
            self._log_edge = torch.logaddexp(self._log_edge, _log_sum(log_weight, counted))
            self._num_at_edge += counted.sum(0).cpu()

    def summary(self, seed: int) -> Summary:
        """What the weights say, with a look at the rounding of terms that cancel, whose noise has a seed."""
        found, batch = self._stream.summary(), self._batch
        if not self._frailty.rounds:
            return found
        return found.with_rounding(rounding_of_terms(self._pair, batch, self._layout, seed, batch[0].device))

    def share_at_edge(self, value: np.ndarray) -> np.ndarray:
        """Share of estimates of log p(x) (N,) that rests on samples at the edge of a latent's support, (N,)."""
        return np.exp(self._log_edge.numpy() - value) / self._stream.num_samples.numpy()

    @property
    def drawn_at_edge(self) -> np.ndarray:
        """Share of the samples themselves that lie there (N,)."""
        return (self._num_at_edge / self._stream.num_samples).numpy()


def size_of_terms(log_lik: Tensor, log_prior: Tensor, proposal: Proposal) -> Tensor:
    """Size of the largest term of each log-weight (k, N), which its rounding goes by."""
    return torch.maximum(torch.maximum(log_lik.abs(), log_prior.abs()), proposal.log_guide.abs())


def _log_sum(log_weight: Tensor, counted: Tensor) -> Tensor:
    """Log of the sum of the weights that count, (N,)."""
    return torch.where(counted, log_weight, -torch.inf).double().logsumexp(0).cpu()
