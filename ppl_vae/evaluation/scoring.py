"""Scores draws of a guide under the model, chunk by chunk, within a memory, as written or compiled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ppl_vae.compile import Lazy
from ppl_vae.evaluation.proposal import Proposal, evaluate_model
from ppl_vae.operations import Operations
from ppl_vae.pair import Pair
from ppl_vae.tape import Batch, Layout

__all__ = ["CHUNK_ROWS", "Scorer"]

# Decodes at once: more run no faster and fall out of the cache.
CHUNK_ROWS = 1024


class Scorer:
    """log p(x given z) and log p(z) of the draws of a block.

    Args:
        pair: The pair, in evaluation mode.
        layout: Layout of the pair.
        memory: Bytes that one run of the model may make.
        compile: Whether to compile the model: at once, never, or once it pays.
        num_scores: How many draws will be scored in all, over particles and data.
        rows: Data of a chunk, at most. Few, where draws of part of the data of a block will be scored.
    """

    def __init__(
        self,
        pair: Pair,
        layout: Layout,
        memory: int,
        compile: Literal["auto"] | bool,
        num_scores: int,
        rows: int = CHUNK_ROWS,
    ) -> None:
        self._pair, self._layout, self._memory = pair, layout, memory
        self._choice, self._num_scores, self._rows = compile, num_scores, rows
        self._affordable = 0
        self._usual: int | None = None
        self._score_usual: Lazy | None = None

    def __call__(
        self, batch: Batch, proposal: Proposal, count: int, wanted: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores `count` draws for each datum of a block: (K, N) each, in nats; 0 where not `wanted` (N,)."""
        rows, particles = self._chunk_shape(batch, proposal, count)
        if wanted is None:
            places = [slice(i, i + rows) for i in range(0, len(batch[0]), rows)]
            columns = [self._column(batch, proposal, count, particles, place) for place in places]
            log_lik, log_prior = (torch.cat(parts, dim=1) for parts in zip(*columns, strict=True))
            return log_lik, log_prior
        log_lik, log_prior = torch.zeros(2, *proposal.log_guide.shape).to(proposal.log_guide)
        chosen = wanted.nonzero()[:, 0].to(batch[0].device)
        for some in chosen.split(rows):
            # The last one is repeated, so that compiled code finds the shape that it was made for.
            place = torch.cat([some, some[-1:].expand(rows - len(some))])
            for whole, part in zip(
                (log_lik, log_prior), self._column(batch, proposal, count, particles, place), strict=True
            ):
                whole[:, some] = part[:, : len(some)]
        return log_lik, log_prior

    def _column(
        self, batch: Batch, proposal: Proposal, count: int, particles: int, place: slice | Tensor
    ) -> tuple[Tensor, ...]:
        """Scores of the draws of some data."""
        part = tuple(a[place] for a in batch)
        blocks = []
        for k in range(0, count, particles):
            latents = proposal.part(self._layout, place, slice(k, k + particles))
            blocks.append(self._score(part, latents, proposal.outer_size(min(particles, count - k))))
        return tuple(torch.cat(parts) for parts in zip(*blocks, strict=True))

    def _score(
        self, batch: Batch, latents: Sequence[dict[str, Tensor]], particles: int | None
    ) -> tuple[Tensor, Tensor]:
        if particles is None or particles != self._usual:
            return evaluate_model(self._pair, batch, latents, self._layout, particles)
        if self._score_usual is None:
            self._score_usual = self._lazy(list(latents[0]), len(batch[0]), particles)
        log_lik, log_prior = self._score_usual(*[t.contiguous() for t in (*latents[0].values(), *batch)])
        return log_lik, log_prior

    def _lazy(self, names: Sequence[str], rows: int, particles: int) -> Lazy:
        def score(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            latents, batch = dict(zip(names, tensors, strict=False)), tensors[len(names) :]
            return evaluate_model(self._pair, batch, [latents], self._layout, particles)

        calls = self._num_scores // (rows * particles)
        return Lazy(score, self._pair, self._choice, calls, len(names), "the model of this evaluation")

    def _chunk_shape(self, batch: Batch, proposal: Proposal, count: int) -> tuple[int, int]:
        """Rows and particles that one run of the model handles: as even as may be, so that most have one shape."""
        if not self._affordable:
            self._affordable = self._measure(batch, proposal)
        rows = min(len(batch[0]), self._affordable, self._rows)
        if not proposal.outer:
            return rows, 1
        chunks = math.ceil(count / max(1, self._affordable // rows))
        particles = math.ceil(count / chunks)
        self._usual = self._usual or particles
        return rows, particles

    def _measure(self, batch: Batch, proposal: Proposal) -> int:
        """How many draws one run of the model may score within the memory."""
        one = proposal.part(self._layout, slice(0, 1), slice(0, 1))
        with Operations() as operations:
            evaluate_model(self._pair, tuple(a[:1] for a in batch), one, self._layout, proposal.outer_size(1))
        return max(1, min(CHUNK_ROWS, self._memory // max(1, operations.bytes)))
