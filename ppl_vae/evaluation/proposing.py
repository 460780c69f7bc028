"""Draws from the guide block by block, as written or compiled."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ppl_vae.compile import Lazy, flipped
from ppl_vae.evaluation.proposal import Proposal, propose
from ppl_vae.pair import Pair
from ppl_vae.shrinking import undivided
from ppl_vae.tape import Batch, Layout

__all__ = ["Proposer"]


class Proposer:
    """Draws of the guide and their log q.

    Args:
        pair: The pair, in evaluation mode.
        layout: Layout of the pair.
        compile: Whether to compile the guide: at once, never, or once it pays.
        num_blocks: How many blocks of draws there will be, as far as that is known.
        num_particles: Draws for each datum of a usual block.
    """

    def __init__(
        self, pair: Pair, layout: Layout, compile: Literal["auto"] | bool, num_blocks: int, num_particles: int
    ) -> None:
        self._pair, self._layout, self._num_particles = pair, layout, num_particles
        self._event_dims: dict[str, int] = {}
        self._masked: tuple[str, ...] = ()
        self._usual = layout.vectorized and num_particles > 1
        self._choice, self._num_blocks = compile, num_blocks
        self._draw: Lazy | None = None

    def expect(self, num_blocks: int) -> None:
        """So many blocks of draws are left, as is better known now."""
        if self._draw is not None:
            self._draw.expect(num_blocks)

    def __call__(self, batch: Batch, count: int) -> Proposal:
        """Draws `count` values for each datum of a block."""
        if not self._usual or count != self._num_particles:
            return propose(self._pair, batch, count, self._layout)
        if self._draw is None:
            self._draw = Lazy(
                self._as_tensors,
                self._pair,
                self._choice,
                self._num_blocks,
                flipped(len(batch)),
                "the guide of this evaluation",
            )
        with undivided(f"{count} draws of the guide for each of {len(batch[0])} data"):
            log_guide, *tensors = self._draw(*batch)
        latents = dict(zip(self._event_dims, tensors, strict=False))
        masks = {name: mask > 0 for name, mask in zip(self._masked, tensors[len(latents) :], strict=True)}
        return Proposal([latents], self._event_dims, True, log_guide, [masks])

    def _as_tensors(self, *batch: Tensor) -> tuple[Tensor, ...]:
        proposal = propose(self._pair, batch, self._num_particles, self._layout)
        self._event_dims, self._masked = proposal.event_dims, tuple(proposal.masks[0])
        kind = proposal.log_guide.dtype  # what is compiled returns numbers
        masks = (mask.to(kind) for mask in proposal.masks[0].values())
        return proposal.log_guide, *proposal.latents[0].values(), *masks
