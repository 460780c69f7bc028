"""Which rows a step sees: a function of (seed, step) alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ppl_vae.distributed import Group
from ppl_vae.rng import key, permutation

__all__ = ["Order"]


# Rows of a file: consecutive ones that stay together, and how many such blocks are shuffled among each other.
_BLOCK, _WINDOW = 64, 256

_ALONE = Group()


class Order:
    """Every row once an epoch, in an order of its own for each epoch; the last batch of an epoch may be smaller.

    Rows on disk are shuffled as well as reading allows: blocks of 64 consecutive rows come in random order, and the
    rows of every 256 blocks are shuffled among each other. A file of no more rows than that is shuffled as a whole.

    Each process of a group gets its share of every batch: all of them together, the batch of one process alone.

    Example:
        >>> order = Order(num_rows=5, batch_size=2, seed=0)
        >>> [len(index) for index in order.epoch(0)], order.per_epoch
        ([2, 2, 1], 3)
        >>> bool((order.at(4) == list(order.epoch(1))[1]).all())
        True
    """

    def __init__(
        self, num_rows: int, batch_size: int, seed: int, *, on_disk: bool = False, group: Group = _ALONE
    ) -> None:
        self._num_rows, self._batch_size, self._seed = num_rows, batch_size, seed
        self._group = group
        self._in_blocks = on_disk and num_rows > _BLOCK * _WINDOW

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        return math.ceil(self._num_rows / self._batch_size)

    def epoch(self, epoch: int) -> Iterator[Tensor]:
        """The rows of each step of an epoch, of this process; it has none where a batch has too few."""
        return map(self._share, self._rows(epoch).split(self._batch_size))

    def at(self, step: int) -> Tensor:
        """The rows of a step, of this process."""
        return self._share(self._rows(step // self.per_epoch).split(self._batch_size)[step % self.per_epoch])

    def size(self, step: int) -> int:
        """Number of rows of a step, over all processes."""
        return min(self._batch_size, self._num_rows - step % self.per_epoch * self._batch_size)

    def has_single_rows(self, steps: int) -> bool:
        """Whether some process has a single row in one of the first `steps` steps.

        Example:
            >>> Order(num_rows=5, batch_size=2, seed=0).has_single_rows(steps=2)
            False
            >>> Order(num_rows=5, batch_size=2, seed=0).has_single_rows(steps=3)
            True
        """
        sizes = {self.size(step) for step in (0, self.per_epoch - 1) if step < steps}
        shares = [Group(rank, self._group.size).share(size) for size in sizes for rank in range(self._group.size)]
        return any(share.stop - share.start == 1 for share in shares)

    def _share(self, rows: Tensor) -> Tensor:
        return rows[self._group.share(len(rows))]

    def _rows(self, epoch: int) -> Tensor:
        if not self._in_blocks:
            return permutation(self._num_rows, self._seed, epoch)
        blocks = permutation(math.ceil(self._num_rows / _BLOCK), self._seed, epoch)
        windows = []
        for number, window in enumerate(blocks.split(_WINDOW)):
            rows = (window[:, None] * _BLOCK + torch.arange(_BLOCK)).flatten()
            rows = rows[rows < self._num_rows]
            windows.append(rows[permutation(len(rows), key(self._seed, number), epoch)])
        return torch.cat(windows)
