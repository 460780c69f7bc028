"""Means over held-out rows, divided where memory runs out, with the noise that belongs to the whole block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

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
        drawn: dict[str, tuple[Tensor, int]] | None = None

        def part(places: Places, particles: range) -> tuple[Tensor]:
            nonlocal drawn
            if len(places) == len(batch[0]):
                reseed(seed, batch[0].device)
                means = torch.stack([*work(batch)])
            else:
                drawn = self._drawn(work, batch, seed) if drawn is None else drawn
                with _Given(drawn, places, self._layout):
                    means = torch.stack([*work(rows_of(batch, places))])
            return (means.detach().double()[:, None].expand(-1, len(places)),)

        (found,) = self._within_memory(part, range(len(batch[0])), range(1))
        return found[:, 0] if drawn is None else found.mean(1)

    def _drawn(self, work: Work, batch: Batch, seed: int) -> dict[str, tuple[Tensor, int]]:
        """Draws of the guide for the block, and the dimensions of a value of each."""
        if self._layout.global_latents or self._layout.subsampled:
            raise _indivisible(len(batch[0]) - 1)
        reseed(seed, batch[0].device)
        drawing, what = _Drawing(), f"draws of the guide for {len(batch[0])} rows of the validation data"
        with undivided(what), suppress(_AllDrawnError), drawing:
            work(batch)
        return drawing.values


def _indivisible(rows: int) -> EstimateError:
    return EstimateError(
        f"validation: expected memory for more than {rows} rows at once, found too little: the noise of this pair is "
        "not that of its rows, and cannot be divided; free memory, or train on a device that has more"
    )


class _AllDrawnError(Exception):
    """The model begins to read what the guide has drawn."""


class _Drawing(Messenger):
    """Keeps what a guide draws, and ends the run when the model comes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, tuple[Tensor, int]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            raise _AllDrawnError

    def _pyro_post_sample(self, msg: Any) -> None:
        if not (msg["is_observed"] or isinstance(msg["fn"], _Subsample)):
            self.values[msg["name"]] = msg["value"].detach(), msg["fn"].event_dim


class _Given(Messenger):
    """Gives a guide, once, what it has drawn for some of the rows."""

    def __init__(self, drawn: dict[str, tuple[Tensor, int]], places: Places, layout: Layout) -> None:
        super().__init__()
        self._left, self._places, self._data_dim = dict(drawn), places, layout.data_dim

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        if msg["name"] not in self._left:  # particles one after another: each has draws of its own
            raise _indivisible(len(self._places))
        value, event_dim = self._left.pop(msg["name"])
        index: list[slice | Tensor] = [slice(None)] * value.dim()
        index[value.dim() - event_dim + self._data_dim] = as_index(self._places)
        msg["value"], msg["done"] = value[tuple(index)], True
