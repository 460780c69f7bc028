"""Data that another floating type cannot tell apart, such as seconds since 1970 in single precision."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.errors import DataError

__all__ = ["check_narrowing", "narrowing_cautions"]

_FEWEST = 5  # rows that tell a spread
_MOVED = 1e-3  # of the spread of a number: a thousandth of a nat and more, where a likelihood is as narrow as the data
_OF_PRECISION = 64  # where less is asked for than single precision, so many of its steps
_OF_ROUNDING = 16  # steps of the type of the data within which a number is the same in all rows
_BLOCK = 1 << 20


def check_narrowing(rows: Rows, among: Rows | None = None) -> None:
    """Checks that the conversion of rows to their type leaves what varies in them.

    Rounding is relative to a number, and what counts is how the number varies: a thousandth of its standard deviation
    over the rows is too much. What is the same number in all rows, but for rounding, may be rounded.

    Args:
        rows: The rows, with the type that they are to have.
        among: Others that tell how numbers vary, where those rows are a part that may be more alike.

    Raises:
        DataError: Naming the array and the number of a datum.
    """
    for words in _lost(rows, among):
        raise DataError(words)


def narrowing_cautions(rows: Rows) -> tuple[str, ...]:
    """What the conversion of rows takes from them, in words; how all data vary is not known of a part of them."""
    return tuple(_lost(rows))


def _lost(rows: Rows, among: Rows | None = None) -> Iterator[str]:
    """Of each array that loses what varies in it, the first such number, in words."""
    if rows.dtype is None or len(rows) < _FEWEST:
        return
    precision = torch.finfo(rows.dtype).eps
    for i, array in enumerate(rows.arrays):
        one = Rows([array])
        kind = one.take(slice(0, 1))[0].dtype
        if not kind.is_floating_point or precision <= torch.finfo(kind).eps:
            continue
        mean, spread, moved = _moments(one, rows.dtype)
        if among is not None and among.arrays[i].shape[1:] == array.shape[1:]:
            spread = torch.maximum(spread, _moments(Rows([among.arrays[i]]), rows.dtype)[1])
        allowed = max(_MOVED, _OF_PRECISION * precision) * spread
        varies = spread > _OF_ROUNDING * torch.finfo(kind).eps * mean.abs()
        bad = (moved > allowed) & varies
        if bad.any():
            worst = int(bad.nonzero()[0])
            name = f"data[{i}]" if len(rows.arrays) > 1 else "data"
            where = f", number {worst} of a datum" if len(bad) > 1 else ""
            yield (
                f"{name}{where}: expected numbers that keep what varies in them in {rows.dtype}, the type of the "
                f"pair's parameters, found mean {mean[worst]:.6g} and spread {spread[worst]:.3g}, moved by up to "
                f"{moved[worst]:.3g}; subtract the mean (and divide by the spread), or compute in more digits: "
                "pair.double()"
            )


def _moments(rows: Rows, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and largest rounding of each number of a datum, over all rows."""
    first = _flat(rows.take(slice(0, 1))[0])
    total, squares, moved = (torch.zeros_like(first[0]) for _ in range(3))
    for _, (block,) in rows.blocks(max(1, _BLOCK // first.numel())):
        value = _flat(block)
        excess = value - first
        total += excess.sum(0)
        squares += excess.square().sum(0)
        moved = torch.maximum(moved, (value.to(dtype).double() - value).abs().amax(0))
    mean = total / len(rows)
    return first[0] + mean, (squares / len(rows) - mean.square()).clamp_min(0).sqrt(), moved


def _flat(block: Tensor) -> Tensor:
    return block.reshape(len(block), -1).double()
