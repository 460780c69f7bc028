"""The data of a fit: rows in memory or on disk, read in blocks, and what is measured of them once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce

import torch
from torch import Tensor

from ppl_vae.arrays import Rows

__all__ = ["Sample"]

# 2 MB of float64 in the features of a block: the matrix products are long enough, and what they share stays in cache.
BLOCK_ELEMENTS = 1 << 18
# Fewer rows than this make the matrix products short, however many features there are.
FEWEST_ROWS = 64
# Rows, evenly spaced, that tell where the data are and how far they spread: precision is not needed.
TYPICAL_ROWS = 4096
# Median of |z| under the standard normal distribution.
NORMAL_DEVIATION = 0.6745


class Sample:
    """Rows x_n of data (N, D), where they are and how far they spread, and how far each block of them reaches.

    Nothing here grows with N but one number a block: rows on disk stay on disk.

    Args:
        rows: One array (N, D), finite.
        num_features: Numbers that a fit makes of a row; they decide how many rows make a block.
        matrices: Whether a fit sees the columns together, so that their correlation can be taken out.

    Attributes:
        centre: Median of each column, over some of the rows, shape (D,): what lies far off does not move it.
        variance: Variance of each column, shape (D,), in squared units of x.
        scale: The power of two next to each column's spread about the centre, shape (D,): dividing by it rounds
            nothing.
        threads: How many threads may share the blocks; one where a device has threads of its own.
        units: L, lower triangular (D, D): `scale` times a root of the columns' correlation, or times the identity.
        reach: max |L^-1 (x_n - centre)| over the rows of each block, shape (number of blocks,).
    """

    def __init__(self, rows: Rows, num_features: int, matrices: bool) -> None:
        self.rows = rows
        self.block_rows = max(FEWEST_ROWS, BLOCK_ELEMENTS // num_features)
        some = self.take(torch.arange(0, len(rows), -(-len(rows) // TYPICAL_ROWS)))
        self.centre = some.median(dim=0).values
        self.threads = torch.get_num_threads() if self.centre.device.type == "cpu" else 1
        mean = _total((block - self.centre).sum(0) for block in self.blocks()) / len(rows) + self.centre
        self.variance = _total((block - mean).square().sum(0) for block in self.blocks()) / len(rows)
        typical = (some - self.centre).abs().median(dim=0).values / NORMAL_DEVIATION
        # Where most rows share one value, the others alone have a spread.
        self.scale = _power_of_two(torch.where(typical > 0, typical, self.variance.sqrt()))
        self.units = torch.diag(self.scale)
        if matrices:
            self.units = self.scale.unsqueeze(-1) * _root_of_correlation((some - self.centre) / self.scale)
        reach = [torch.linalg.vector_norm(self.standardised(block), dim=0).max() for block in self.blocks()]
        self.reach = torch.stack(reach)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """D."""
        return self.rows.arrays[0].shape[1]

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return -(-len(self) // self.block_rows)

    def block(self, index: int) -> Tensor:
        """Return one block of rows, float64."""
        first = index * self.block_rows
        return self.rows.take(slice(first, first + self.block_rows))[0].to(torch.float64)

    def blocks(self) -> Iterator[Tensor]:
        """Yield all blocks in their order."""
        return map(self.block, range(self.num_blocks))

    def take(self, index: Tensor) -> Tensor:
        """Return the rows of an index (n,), float64: (n, D)."""
        return self.rows.take(index)[0].to(torch.float64)

    def standardised(self, x: Tensor) -> Tensor:
        """Return y = L^-1 (x - centre) of rows (n, D), transposed: (D, n)."""
        return torch.linalg.solve_triangular(self.units, (x - self.centre).T, upper=False)


def _total(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


def _power_of_two(values: Tensor) -> Tensor:
    """Return the power of two next above each value; 1 for a column without spread, or with too much for a double."""
    exponent = torch.frexp(values).exponent
    usable = values.isfinite() & (values > torch.finfo(values.dtype).tiny)
    return torch.where(usable, torch.ldexp(torch.ones_like(values), exponent), 1.0)


def _root_of_correlation(u: Tensor) -> Tensor:
    """Return a lower triangular root (D, D) of the second moments of rows; the identity where they are singular.

    Rows far off have the weight that brings them to the length of the others.
    """
    dim = u.shape[1]
    weights = dim / u.square().sum(1).clamp(min=dim)
    second = (u.T * weights) @ u / len(u)
    second += torch.diag((second.diagonal() == 0).to(u))
    factor, info = torch.linalg.cholesky_ex(second)
    return factor if info == 0 else torch.eye(dim).to(u)
