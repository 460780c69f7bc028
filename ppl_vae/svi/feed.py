"""Brings the rows of each step to the device: from memory at once, from disk one batch ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.svi.order import Order

__all__ = ["Feed", "Serving"]

_AHEAD = 4


@dataclass(frozen=True)
class Serving:
    """What a step gets: its rows are `array.index_select(0, index)` of each array."""

    index: Tensor
    """Positions of the rows."""
    arrays: tuple[Tensor, ...]
    """The whole data set where it is in memory, else the rows alone."""


class Feed:
    """Batches of a data set in the order of a fit.

    Rows in memory are gathered in the step itself. Rows on disk are read by a thread of its own, some batches ahead, so
    that reading and training overlap.
    """

    def __init__(self, rows: Rows, order: Order, device: torch.device) -> None:
        self.rows, self.order, self._device = rows, order, device

    def epoch(self, epoch: int, limit: int, skip: int = 0) -> Iterator[Serving]:
        """At most `limit` batches of an epoch, after the first `skip`."""
        indices = [*islice(self.order.epoch(epoch), skip, skip + limit)]
        return self._ahead(indices) if self.rows.mapped else map(self.serve, indices)

    def serve(self, index: Tensor) -> Serving:
        """The batch of some rows."""
        if self.rows.mapped:
            return Serving(torch.arange(len(index), device=self._device), self.rows.take(index, self._device))
        return Serving(index.to(self._device), tuple(a for a in self.rows.arrays if isinstance(a, Tensor)))

    def _ahead(self, indices: list[Tensor]) -> Iterator[Serving]:
        with ThreadPoolExecutor(1, thread_name_prefix="ppl_vae-feed") as reader:
            waiting: list[Future[Serving]] = []
            try:
                for position in range(len(indices)):
                    last = min(len(indices), position + 1 + _AHEAD)
                    waiting += [reader.submit(self.serve, i) for i in indices[position + len(waiting) : last]]
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()
