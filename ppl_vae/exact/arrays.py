"""The boundary of the exact models: what a caller hands over becomes a checked float64 tensor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ppl_vae.arrays import Rows, check_numbers, check_unmasked
from ppl_vae.errors import DataError

__all__ = ["Array", "as_float64", "as_rows", "as_sample_rows", "row_blocks"]

Array = Tensor | np.ndarray
_BLOCK = 4096


def as_float64(value: object, name: str) -> Tensor:
    """Convert a tensor, array, number or nested list to a float64 tensor of the same shape, or raise DataError."""
    check_unmasked(name, value)
    array = value if isinstance(value, Tensor) else np.asarray(value)
    real = not array.is_complex() if isinstance(array, Tensor) else array.dtype.kind in "fiub"
    if not real:
        raise DataError(f"{name} has dtype {array.dtype}, expected real numbers (float32 or float64): convert it first")
    if isinstance(array, Tensor):
        check_numbers(name, array)
    return array.to(torch.float64) if isinstance(array, Tensor) else torch.from_numpy(array.astype(np.float64))


def as_rows(x: Array, dim: int | None = None, device: torch.device | None = None) -> Tensor:
    """Return data as a finite float64 matrix (N, D).

    Args:
        x: Data, shape (N, D) with N >= 1, real.
        dim: The D that the model expects; None accepts any.
        device: Where the result lives; None keeps the device of `x`.

    Raises:
        DataError: Wrong dtype, number of axes or D, no row, or an entry that is not finite (its row is named).
    """
    rows = as_float64(x, "x").to(device)
    _check_shape(tuple(rows.shape), dim)
    _check_finite(rows)
    return rows


def as_sample_rows(x: Array) -> Rows:
    """Return data as rows: a finite float64 matrix (N, D), or a memory-mapped one, left on disk in its own dtype.

    Raises:
        DataError: As `as_rows`; what is on disk is read once, in blocks.
    """
    if not _stays_on_disk(x):
        return Rows([as_rows(x).detach()])
    for _ in row_blocks(x):
        pass
    return Rows([x])


def row_blocks(x: Array, dim: int | None = None, device: torch.device | None = None) -> Iterator[Tensor]:
    """Yield data as finite float64 matrices (n, D): what is in memory as one, what is on disk block by block.

    Args:
        x: As for `as_rows`.
        dim: As for `as_rows`.
        device: As for `as_rows`.

    Raises:
        DataError: As `as_rows`.
    """
    if not _stays_on_disk(x):
        yield as_rows(x, dim, device)
        return
    as_float64(x[:0], "x")
    _check_shape(tuple(x.shape), dim)
    for first, (block,) in Rows([x]).blocks(_BLOCK):
        _check_finite(block, first)
        yield block.to(device, torch.float64)


def _stays_on_disk(x: Array) -> bool:
    return isinstance(x, np.memmap) and x.dtype.isnative


def _check_shape(shape: tuple[int, ...], dim: int | None = None) -> None:
    expected = f"(N, {'D' if dim is None else dim})"
    if len(shape) != 2 or (dim is not None and shape[1] != dim):
        raise DataError(f"x has shape {shape}, expected {expected}: one datum a row, flattened")
    if 0 in shape:
        raise DataError(f"x has shape {shape}, expected {expected} with at least one row and one column")


def _check_finite(rows: Tensor, first: int = 0) -> None:
    """Raise DataError for an entry that is not finite, in rows that follow `first` others."""
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        row = first + int((~finite).nonzero()[0, 0])
        raise DataError(f"x has a NaN or infinite entry in row {row}, expected finite numbers: drop or impute the row")
