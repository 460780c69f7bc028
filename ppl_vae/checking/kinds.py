"""The floating type that a pair computes in, and its data in it: decided here for training and evaluation alike."""

from __future__ import annotations

from ppl_vae.arrays import Rows
from ppl_vae.checking.probes import quiet, trace
from ppl_vae.narrowing import check_narrowing
from ppl_vae.pair import Pair
from ppl_vae.tape import Batch

__all__ = ["first_run", "in_kind_of", "settled"]


def settled(pair: Pair, rows: Rows, count: int) -> Rows:
    """The rows in the type of the parameters of a pair that first runs on so many of them."""
    first_run(pair, rows.with_dtype(pair.dtype).take(slice(0, count), pair.device))
    return in_kind_of(pair, rows)


def first_run(pair: Pair, batch: Batch) -> None:
    """Runs both programs once, so that the parameters exist that they make when they first run.

    Before that the type of the parameters is not known: `pyro.param` may be all that a pair has.

    Raises:
        PairError: A program fails.
    """
    with quiet(pair):
        for role in ("guide", "model"):
            trace(pair, role, batch)


def in_kind_of(pair: Pair, rows: Rows, among: Rows | None = None) -> Rows:
    """The same rows, floating arrays in the type of the parameters, where they have one.

    Args:
        pair: One that has run.
        rows: Data in any type.
        among: Data that tell how numbers vary, where `rows` are a part.

    Raises:
        DataError: That type cannot tell the data apart.
    """
    converted = rows.with_dtype(pair.dtype)
    check_narrowing(converted, among)
    return converted
