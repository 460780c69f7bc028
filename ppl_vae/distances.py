"""Squared distances whose order can be trusted: products of matrices, and differences where those leave it open."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["DistanceBlock", "distance_blocks", "neighbour_reach"]

_ELEMENTS = 1 << 18  # of an array: it stays in the cache
_Matrix = NDArray[np.float64]


class DistanceBlock:
    r"""Squared distances of some rows a to all rows b, each within a bound of $\sum_k (a_k - b_k)^2$, or equal to it.

    Products of matrices tell $|a|^2 + |b|^2 - 2 a \cdot b$ quickly, but not to the last bit: what is as far as
    something else comes out nearer or farther, and what is close beside its distance to the origin is lost. What their
    error leaves open is settled by the sum, which is the same for (a, b) and (b, a), and exact for whole numbers.
    """

    rows: slice
    """Of a."""
    values: _Matrix
    """(len(rows), m)."""
    error: _Matrix
    """What the values may be off the sum, (len(rows), m)."""

    def __init__(self, rows: slice, a: _Matrix, b: _Matrix, values: _Matrix, error: _Matrix) -> None:
        self.rows, self.values, self.error = rows, values, error
        self._a, self._b = a[rows], b

    def near(self, reach: _Matrix) -> NDArray[np.bool_]:
        """Whether it is open on which side of a squared distance, or of one for each row or column, a value lies."""
        return np.abs(self.values - reach) <= self.error

    def settle(self, where: NDArray[np.bool_]) -> None:
        """Compute some of the values as sums."""
        pairs, values = np.flatnonzero(where), self.values.reshape(-1)
        for part in _parts(len(pairs), self._b.shape[1]):
            left, right = np.divmod(pairs[part], len(self._b))
            difference = self._a[left] - self._b[right]
            values[pairs[part]] = np.einsum("nd,nd->n", difference, difference)


def distance_blocks(a: _Matrix, b: _Matrix) -> Iterator[DistanceBlock]:
    """Squared distances of rows a (n, d) to rows b (m, d), a block of a at a time.

    Reference:
        Higham (2002), Accuracy and Stability of Numerical Algorithms, section 3.1, on the errors of sums of products.

    Example:
        >>> a = np.array([[0.0, 0.0], [1.0, 0.0]])
        >>> (block,) = distance_blocks(a, a)
        >>> block.settle(block.near(1.0))
        >>> block.values < 1.0
        array([[ True, False],
               [False,  True]])
    """
    centre = b.mean(0)
    near_a, near_b = a - centre, b - centre
    square_a, square_b = (np.einsum("nd,nd->n", x, x) for x in (near_a, near_b))
    minus_twice = -2.0 * near_b.T
    # Four sums of d products, that of the differences among them, err by d + 2 roundings each, and centring by a few.
    unit = (4 * a.shape[1] + 20) * np.finfo(float).eps
    for rows in _parts(len(a), len(b)):
        squares = square_a[rows, None] + square_b
        values = near_a[rows] @ minus_twice
        values += squares
        yield DistanceBlock(rows, a, b, values, np.multiply(unit, squares, out=squares))


def neighbour_reach(x: _Matrix, k: int) -> _Matrix:
    """Squared distance of each row (n, d) to its k-th nearest neighbour, itself not counted, (n,).

    Example:
        >>> neighbour_reach(np.array([[0.0], [1.0], [3.0]]), 1)
        array([1., 1., 4.])
    """
    reach = np.empty(len(x))
    for block in distance_blocks(x, x):
        np.fill_diagonal(block.values[:, block.rows.start :], np.inf)
        most = np.partition(block.values + block.error, k - 1)[:, k - 1 : k]
        block.settle(block.values - block.error <= most)
        reach[block.rows] = np.partition(block.values, k - 1)[:, k - 1]
    return reach


def _parts(n: int, width: int) -> Iterator[slice]:
    """Slices of n rows, of so many that an array of this width stays small."""
    size = max(_ELEMENTS // width, 1)
    yield from (slice(start, start + size) for start in range(0, n, size))
