"""Scores draws of a guide under the model, chunk by chunk, within a memory, as written or compiled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ppl_vae.compile import Lazy, flipped
from ppl_vae.evaluation.proposal import Proposal, evaluate_model
from ppl_vae.operations import Operations
from ppl_vae.options import whole_number
from ppl_vae.pair import Pair
from ppl_vae.shrinking import Places, Shrinking, as_index, rows_of
from ppl_vae.tape import Batch, Layout

__all__ = ["Scorer", "chunk_rows"]

# Decodes at once: on a CPU more run no faster and fall out of the cache, on a GPU fewer leave most of it idle.
CHUNK_ROWS, _CHUNK_ROWS_GPU = 1024, 1 << 16
_WORK = "scoring draws under the model"


class Scorer:
    """log p(x given z) and log p(z) of the draws of a block.

    Args:
        pair: The pair, in evaluation mode.
        layout: Layout of the pair.
        memory: Bytes that one run of the model may make; where less is left, runs score fewer draws.
        compile: Whether to compile the model: at once, never, or once it pays.
        num_scores: How many draws will be scored in all, over particles and data, as far as that is known.
        rows: Data of a chunk, at most; None sets no limit. Few, where draws of part of the data of a block will be
            scored.
    """

    def __init__(
        self,
        pair: Pair,
        layout: Layout,
        memory: int,
        compile: Literal["auto"] | bool,
        num_scores: int,
        rows: int | None = None,
    ) -> None:
        self._pair, self._layout, self._memory = pair, layout, whole_number("memory", memory, least=1)
        self._choice, self._num_scores, self._rows = compile, num_scores, rows
        self._within_memory: Shrinking | None = None
        self._limit = 0
        self._usual: int | None = None
        self._score_usual: Lazy | None = None
        self._usual_size = 1

    def expect(self, num_scores: int) -> None:
        """So many draws are left to be scored, as is better known now."""
        self._num_scores = num_scores
        if self._score_usual is not None:
            self._score_usual.expect(num_scores // self._usual_size)

    def __call__(
        self, batch: Batch, proposal: Proposal, count: int, wanted: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores `count` draws for each datum of a block: (K, N) each, in nats; 0 where not `wanted` (N,)."""
        rows, particles = self._chunk_shape(batch, proposal, count)
        draws = _parts(count, particles)
        if wanted is None:
            columns = [self._column(batch, proposal, place, draws) for place in _parts(len(batch[0]), rows)]
            log_lik, log_prior = (torch.cat(parts, dim=1) for parts in zip(*columns, strict=True))
            return log_lik, log_prior
        found: list[Tensor] = []
        chosen = wanted.nonzero()[:, 0].to(batch[0].device)
        for some in chosen.split(rows):
            # The last one is repeated, so that compiled code finds the shape that it was made for.
            place = torch.cat([some, some[-1:].expand(rows - len(some))])
            column = self._column(batch, proposal, place, draws)
            found = found or [part.new_zeros(proposal.log_guide.shape) for part in column]
            for whole, part in zip(found, column, strict=True):
                whole[:, some] = part[:, : len(some)]
        log_lik, log_prior = found
        return log_lik, log_prior

    def _column(self, batch: Batch, proposal: Proposal, place: Places, draws: Sequence[range]) -> tuple[Tensor, ...]:
        """Scores of the draws of some data."""
        assert self._within_memory is not None
        score = partial(self._part, batch, proposal)
        blocks = [self._within_memory(score, place, some) for some in draws]
        return tuple(torch.cat(parts) for parts in zip(*blocks, strict=True))

    def _part(self, batch: Batch, proposal: Proposal, place: Places, draws: range) -> tuple[Tensor, Tensor]:
        """Scores of some draws of some data, in one run of the model."""
        latents = proposal.part(self._layout, as_index(place), slice(draws.start, draws.stop))
        return self._score(rows_of(batch, place), latents, proposal.outer_size(len(draws)))

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

        self._usual_size = rows * particles
        calls = self._num_scores // self._usual_size
        return Lazy(score, self._pair, self._choice, calls, flipped(len(names)), "the model of this evaluation")

    def _chunk_shape(self, batch: Batch, proposal: Proposal, count: int) -> tuple[int, int]:
        """Rows and particles that one run of the model handles: as even as may be, so that most have one shape."""
        if self._within_memory is None:
            self._within_memory = self._measured(batch, proposal)
        affordable = self._within_memory.limit
        if affordable != self._limit:  # code is compiled for one shape
            self._limit, self._usual, self._score_usual = affordable, None, None
        rows = min(len(batch[0]), affordable, self._rows or affordable)
        if not proposal.outer:
            return rows, 1
        chunks = math.ceil(count / max(1, affordable // rows))
        particles = math.ceil(count / chunks)
        self._usual = self._usual or particles
        return rows, particles

    def _measured(self, batch: Batch, proposal: Proposal) -> Shrinking:
        """Runs of as many draws as the memory allows, by what one of them makes."""
        with Operations() as operations:
            Shrinking(_WORK)(partial(self._part, batch, proposal), range(1), range(1))
        each = max(1, operations.bytes)
        affordable = max(1, min(chunk_rows(batch[0].device), self._memory // each))
        return Shrinking(_WORK, affordable, lambda limit: f"memory={limit * each} has that from the beginning")


def chunk_rows(device: torch.device) -> int:
    """Decodes that a device does at once, where the memory allows."""
    return CHUNK_ROWS if device.type == "cpu" else _CHUNK_ROWS_GPU


def _parts(count: int, size: int) -> list[range]:
    """The numbers below `count`, `size` by `size`."""
    return [range(i, min(i + size, count)) for i in range(0, count, size)]
