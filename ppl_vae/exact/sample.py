"""The data of a fit: rows in memory or on disk, read in blocks, and what is measured of them once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce

import torch
from torch import Tensor

from ppl_vae.arrays import Rows

__all__ = ["Sample"]

# 4 MB of float64 in the features of a block: the matrix products are long enough, and what they share stays in cache.
BLOCK_ELEMENTS = 1 << 19
# Fewer rows than this make the matrix products short, however many features there are.
FEWEST_ROWS = 64


class Sample:
    """Rows x_n of data (N, D), their centre and spread, and how far each block of them reaches.

    Nothing here grows with N but one number a block: rows on disk stay on disk.

    Args:
        rows: One array (N, D), finite.
        num_features: Numbers that a fit makes of a row; they decide how many rows make a block.

    Attributes:
        centre: Mean of the rows, shape (D,).
        variance: Variance of each column, shape (D,), in squared units of x.
        scale: The power of two next to each column's standard deviation, shape (D,): dividing by it rounds nothing.
        reach: max |(x_n - centre) / scale| over the rows of each block, shape (number of blocks,).
    """

    def __init__(self, rows: Rows, num_features: int) -> None:
        self.rows = rows
        self.block_rows = max(FEWEST_ROWS, BLOCK_ELEMENTS // num_features)
        self.centre = _total(block.sum(0) for block in self.blocks()) / len(rows)
        self.variance = _total((block - self.centre).square().sum(0) for block in self.blocks()) / len(rows)
        self.scale = _power_of_two(self.variance.sqrt())
        self.reach = torch.stack([self._norms(block).max() for block in self.blocks()])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """D."""
        return self.rows.arrays[0].shape[1]

    def blocks(self) -> Iterator[Tensor]:
        """Yield consecutive blocks of rows, float64."""
        for _, (block,) in self.rows.blocks(self.block_rows):
            yield block.to(torch.float64)

    def take(self, index: Tensor) -> Tensor:
        """Return the rows of an index (n,), float64: (n, D)."""
        return self.rows.take(index)[0].to(torch.float64)

    def _norms(self, block: Tensor) -> Tensor:
        return torch.linalg.vector_norm((block - self.centre) / self.scale, dim=1)


def _total(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


def _power_of_two(values: Tensor) -> Tensor:
    """Return the power of two next above each value; 1 for a column without spread, or with too much for a double."""
    exponent = torch.frexp(values).exponent
    usable = values.isfinite() & (values > torch.finfo(values.dtype).tiny)
    return torch.where(usable, torch.ldexp(torch.ones_like(values), exponent), 1.0)
