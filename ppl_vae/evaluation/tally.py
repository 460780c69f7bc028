"""Counts the weights of the samples of a block with what may be wrong: rounding, of the samples too, and edges."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.evaluation.coarseness import rounding_of_terms, rounds
from ppl_vae.evaluation.edges import Edges, bounded_latents, numbers_of
from ppl_vae.evaluation.lattice import latents_on_a_lattice, rounding_on_a_lattice
from ppl_vae.evaluation.proposal import Proposal
from ppl_vae.pair import Pair
from ppl_vae.supports import support_of
from ppl_vae.tape import Batch, Layout, Tape
from ppl_vae.weights import Stream, Summary

__all__ = ["Frailty", "Tally", "size_of_terms"]


class Frailty(NamedTuple):
    """What the weights of a pair may suffer from."""

    bounded: tuple[str, ...]
    """Latents whose draws may round to the edge of their support."""
    fine: tuple[str, ...]
    """Latents whose draws may be closer together than numbers of their type."""
    discrete: tuple[str, ...]
    """All latents, where all are discrete: draws of one value tell nothing of others."""
    rounds: bool
    """Whether the terms of log-weights may cancel, so that rounding within them counts."""

    @classmethod
    def of(cls, pair: Pair, one: Batch, layout: Layout, guide: Tape) -> Frailty:
        """Those of a pair, of which a run of the guide on some data is given."""
        names = layout.local_latents
        all_discrete = all(support_of(guide.sites[name]["fn"]).is_discrete for name in names)
        return cls(
            bounded_latents(guide, layout),
            latents_on_a_lattice(guide, layout),
            names if all_discrete else (),
            rounds(pair, one, layout, guide),
        )


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
        self._edges = Edges(len(batch[0]), frailty.bounded, layout)
        self._values = _Values(len(batch[0]))
        self._lattice: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, log_weight: Tensor, size: Tensor, proposal: Proposal, wanted: Tensor | None = None) -> None:
        """Adds a unit of samples.

        Args:
            log_weight: Their log-weights (k, N).
            size: Size of the largest term of each (k, N).
            proposal: The samples themselves.
            wanted: Data (N,) that they are added for; None is for all.
        """
        self._stream.add(log_weight, wanted, size)
        self._edges.add(log_weight, proposal, wanted)
        if self._lattice is None and self._frailty.fine and len(log_weight) > 1:  # the first of them tell
            self._lattice = rounding_on_a_lattice(proposal, self._frailty.fine, self._layout)
        for name, numbers, counted in numbers_of(proposal, self._frailty.discrete, self._layout):
            self._values.add(name, numbers, counted, wanted)

    def summary(self, seed: int) -> Summary:
        """What the weights say, where they are all that is known.

        Raises:
            EstimateError: All weights of a datum are zero.
        """
        self._stream.check_possible()
        return self.summary_of_any(seed)

    def summary_of_any(self, seed: int) -> Summary:
        """What the weights say, of data whose weights are all zero as well.

        With a look at the rounding of terms that cancel, whose noise has a seed. Equal weights tell of a perfect guide
        where its draws differ. Those of one value are equal whatever the guide gives to others: k-hat is +inf.
        """
        found, batch = self._stream.summary(), self._batch
        if self._frailty.discrete:
            found = found._replace(khat=np.where(self._values.differ, found.khat, np.inf))
        if self._lattice is not None:
            found = found.with_rounding(self._lattice[0])
        if not self._frailty.rounds:
            return found
        return found.with_rounding(rounding_of_terms(self._pair, batch, self._layout, seed, batch[0].device))

    def at_edge(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """Samples at the edge of a latent's support: their share of estimates of log p(x) (N,), and their number.

        Of a datum whose samples are closer together than numbers of their type these are all.
        """
        num_samples = self._stream.num_samples.numpy()
        value = np.where(np.isneginf(value), 0.0, value)  # of nothing, the share is none
        share = np.minimum(np.exp(self._edges.log_weight - value) / num_samples, 1.0)
        counts = np.minimum(self._edges.count, num_samples)
        every = self._on_a_lattice
        return {"at_edge": np.where(every, 1.0, share), "num_at_edge": np.where(every, num_samples, counts)}

    @property
    def drawn_at_edge(self) -> np.ndarray:
        """Share of the samples that lie there (N,)."""
        return np.where(self._on_a_lattice, 1.0, np.minimum(self._edges.count / self._stream.num_samples.numpy(), 1.0))

    @property
    def _on_a_lattice(self) -> np.ndarray:
        """Whether the samples of a datum are closer together than numbers of their type (N,)."""
        return np.zeros(len(self._batch[0]), dtype=bool) if self._lattice is None else self._lattice[1]


class _Values:
    """Whether draws of discrete latents differ."""

    def __init__(self, num_data: int) -> None:
        self._differ = torch.zeros(num_data, dtype=torch.bool)
        self._first: dict[str, Tensor] = {}

    def add(self, name: str, numbers: Tensor, counted: Tensor, wanted: Tensor | None) -> None:
        """Adds draws of a latent (k, N, D), where they count, for the data that are wanted (N,), or all."""
        others = (
            ((numbers != self._first.setdefault(name, numbers[0].clone())) & counted).flatten(2).any(2).any(0).cpu()
        )
        self._differ |= others if wanted is None else others & wanted

    @property
    def differ(self) -> np.ndarray:
        """Where they do (N,)."""
        return self._differ.numpy()


def size_of_terms(log_lik: Tensor, log_prior: Tensor, proposal: Proposal) -> Tensor:
    """Size of the largest term of each log-weight (k, N), which its rounding goes by."""
    return torch.maximum(torch.maximum(log_lik.abs(), log_prior.abs()), proposal.log_guide.abs())
