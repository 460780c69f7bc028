"""Which rows a step sees: a function of (seed, step) alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from ppl_vae.rng import permutation

__all__ = ["Order"]


class Order:
    """Every row once an epoch, in an order of its own for each epoch; the last batch of an epoch may be smaller.

    Example:
        >>> order = Order(num_rows=5, batch_size=2, seed=0)
        >>> [len(index) for index in order.epoch(0)], order.per_epoch
        ([2, 2, 1], 3)
        >>> bool((order.at(4) == list(order.epoch(1))[1]).all())
        True
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self._num_rows, self._batch_size, self._seed = num_rows, batch_size, seed

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        return math.ceil(self._num_rows / self._batch_size)

    def epoch(self, epoch: int) -> Iterator[Tensor]:
        """The rows of each step of an epoch."""
        return iter(permutation(self._num_rows, self._seed, epoch).split(self._batch_size))

    def at(self, step: int) -> Tensor:
        """The rows of a step."""
        rows = permutation(self._num_rows, self._seed, step // self.per_epoch)
        return rows.split(self._batch_size)[step % self.per_epoch]
