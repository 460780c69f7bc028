"""Means over held-out rows, divided where memory runs out, with the noise that belongs to the whole block."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ppl_vae.drawn import Draws, Given, drawn_first
from ppl_vae.errors import EstimateError
from ppl_vae.rng import reseed
from ppl_vae.shrinking import Places, Shrinking, as_index, rows_of, undivided
from ppl_vae.tape import Batch, Layout

__all__ = ["Divided"]

Work = Callable[[Batch], Iterable[Tensor]]
"""Runs guide and model of a pair on some rows, and returns means over them: scalars."""


class Divided:
    """Does the work for a block of rows at once, or half by half where memory runs out; the numbers stay the same.

    The guide draws for the whole block, whatever the pieces; what was too much is not tried again in later blocks.

    Args:
        layout: Layout of the pair.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._within_memory = Shrinking("validation")

    def __call__(self, work: Work, batch: Batch, seed: int) -> Tensor:
        """The means over a block, in double precision.

        Args:
            work: What is done.
            batch: The block.
            seed: Of its noise.

        Raises:
            EstimateError: Memory does not suffice for one row, or for all draws of the guide; or the pair has noise
                that belongs to no row.
        """
        drawn: Draws | None = None

        def part(places: Places, particles: range) -> tuple[Tensor]:
            nonlocal drawn
            if len(places) == len(batch[0]):
                reseed(seed, batch[0].device)
                means = torch.stack([*work(batch)])
            else:
                drawn = self._drawn(work, batch, seed) if drawn is None else drawn
                with Given(drawn, as_index(places), self._layout, lambda: _indivisible(len(places))):
                    means = torch.stack([*work(rows_of(batch, places))])
            return (means.detach().double()[:, None].expand(-1, len(places)),)

        (found,) = self._within_memory(part, range(len(batch[0])), range(1))
        return found[:, 0] if drawn is None else found.mean(1)

    def _drawn(self, work: Work, batch: Batch, seed: int) -> Draws:
        """Draws of the guide for the block."""
        if self._layout.global_latents or self._layout.subsampled:
            raise _indivisible(len(batch[0]) - 1)
        reseed(seed, batch[0].device)
        with undivided(f"draws of the guide for {len(batch[0])} rows of the validation data"):
            return drawn_first(work, batch)


def _indivisible(rows: int) -> EstimateError:
    return EstimateError(
        f"validation: expected memory for more than {rows} rows at once, found too little: the noise of this pair is "
        "not that of its rows, and cannot be divided; free memory, or train on a device that has more"
    )
