"""Work on many particles of many data, divided where memory runs out."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from ppl_vae.errors import EstimateError, PairError, PplVaeError, first_line, is_lack_of_memory

__all__ = ["Places", "Shrinking", "as_index", "rows_of", "undivided"]

Places = range | Tensor
"""Which data: consecutive ones, or those of an index (n,)."""
Work = Callable[[Places, range], tuple[Tensor, ...]]
"""Takes data and particles, returns matrices (particles, data)."""

_Some = TypeVar("_Some", range, Places)


class Shrinking:
    """Does the work for some particles of some data at once, or half by half where memory runs out.

    What was too much is not tried again: `limit` falls to what has fitted. As a piece may be done again, and in other
    pieces, work draws no noise that counts.

    Args:
        work: What is done, for messages.
        limit: How many particles times data are tried at once.
        advice: What to do about the limit, so that memory does not run out; it is warned of once. None says nothing.

    Example:
        >>> import torch
        >>> x = torch.arange(6.0)
        >>> def double(data, particles):
        ...     if len(data) * len(particles) > 4:
        ...         raise MemoryError
        ...     return (2 * x[data.start : data.stop].expand(len(particles), -1),)
        >>> double_of = Shrinking("doubling")
        >>> double_of(double, range(6), range(2))[0].shape, double_of.limit
        (torch.Size([2, 6]), 3)
    """

    def __init__(self, work: str, limit: int = sys.maxsize, advice: Callable[[int], str] | None = None) -> None:
        self.limit = limit
        self._work, self._advice = work, advice
        self._largest_failure, self._failed = 0, False

    def __call__(self, work: Work, data: Places, particles: range) -> tuple[Tensor, ...]:
        """What the work gives for these data and particles.

        Raises:
            EstimateError: Memory does not suffice for one particle of one datum.
        """
        if len(data) * len(particles) <= self.limit:
            found = self._attempt(work, data, particles)
            if found is not None:
                return found
            gc.collect()  # what was half made, wherever it refers to itself
        if len(particles) > 1:
            parts = [self(work, data, half) for half in _halves(particles)]
            return tuple(torch.cat(matrices, dim=0) for matrices in zip(*parts, strict=True))
        parts = [self(work, half, particles) for half in _halves(data)]
        return tuple(torch.cat(matrices, dim=1) for matrices in zip(*parts, strict=True))

    def _attempt(self, work: Work, data: Places, particles: range) -> tuple[Tensor, ...] | None:
        """What the work gives; None where memory ran out. The error holds on to what was half made, and ends here."""
        size = len(data) * len(particles)
        try:
            found = work(data, particles)
        except Exception as error:
            if not is_lack_of_memory(error):
                raise
            self._largest_failure, self._failed = max(size, self._largest_failure), True
            if size <= 1:
                raise EstimateError(
                    f"{self._work}: expected memory for one particle of one datum at least, found too little, from "
                    f"{self._largest_failure} particles times data at once down to 1: {first_line(error)}; free "
                    "memory, or evaluate on a device that has more"
                ) from error
            return None
        if self._failed:
            self._settle(size)
        return found

    def _settle(self, size: int) -> None:
        """Takes what is the first to fit after a failure."""
        self.limit, self._failed = size, False
        if self._advice is not None:
            warnings.warn(
                f"{self._work}: memory ran out for {self._largest_failure} particles times data at once; from here on "
                f"at most {size}, which changes no number: {self._advice(size)}",
                UserWarning,
                stacklevel=2,
            )
            self._advice = None


def _halves(whole: _Some) -> tuple[_Some, _Some]:
    middle = (len(whole) + 1) // 2
    return whole[:middle], whole[middle:]


def as_index(places: Places) -> slice | Tensor:
    """The same as an index; that of consecutive places makes no copy."""
    return slice(places.start, places.stop) if isinstance(places, range) else places


def rows_of(batch: Sequence[Tensor], places: Places) -> tuple[Tensor, ...]:
    """Some rows of the arrays of a batch."""
    return tuple(a[as_index(places)] for a in batch)


@contextmanager
def undivided(work: str, advice: str = "evaluate fewer data in a call, or with fewer samples") -> Iterator[None]:
    """Context of work that is done at once or not at all, as that with noise, which belongs to all of it.

    Args:
        work: What is done, for the message.
        advice: What takes less memory.

    Raises:
        EstimateError: Memory ran out.
    """
    try:
        yield
    except Exception as error:
        knows_better = isinstance(error, PplVaeError) and not isinstance(error, PairError)
        if knows_better or not is_lack_of_memory(error):
            raise
        raise EstimateError(
            f"{work}: expected memory for all of it at once, found too little: {first_line(error)}; {advice}, or use a "
            "device that has more"
        ) from error
