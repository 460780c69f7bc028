"""The errors a user can meet, all under one base class."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = [
    "CheckpointError",
    "DataError",
    "EstimateError",
    "GroupError",
    "LockedError",
    "PairError",
    "PplVaeError",
    "StorageError",
    "first_line",
    "located",
]


class PplVaeError(Exception):
    """Base class of every error raised on purpose by ppl_vae."""


class DataError(PplVaeError, ValueError):
    """The data cannot be used: wrong shape, dtype, support, or a non-finite entry (the row is named)."""


class PairError(PplVaeError, ValueError):
    """Model and guide do not form a valid pair: the site, what was expected, what was found, and a mend."""


class EstimateError(PplVaeError, ArithmeticError):
    """A number could not be computed honestly: non-finite loss, gradient or log-weight."""


class GroupError(PplVaeError, RuntimeError):
    """Processes that work together cannot: one has ended or does not answer, or they were given different things."""


class StorageError(PplVaeError):
    """A file of a run cannot be written, read or removed: which one, and why."""


class CheckpointError(StorageError):
    """A checkpoint was not written, or none can be used: each file is named, and what is wrong with it."""


class LockedError(StorageError):
    """Another process works in the run directory: its number is said."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Context in which what a program raises becomes a `PairError` that says where; the error itself is its cause.

    Errors of this package and a lack of memory pass as they are.
    """
    try:
        yield
    except (PplVaeError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise PairError(f"{where}, failed: {type(error).__name__}: {first_line(error)}") from error


_TENSOR = re.compile(r"\s*\btensor\(([^()]*)\)")
_FEW = 3


def first_line(error: BaseException) -> str:
    r"""The first line of what an error says, a few numbers for each tensor in it, or its class where it says nothing.

    Example:
        >>> first_line(ValueError("too long\nby far")), first_line(KeyboardInterrupt())
        ('too long', 'KeyboardInterrupt')
        >>> first_line(ValueError("found invalid values:\ntensor([[-1., -2.],\n  [-3., -4.]], dtype=torch.float64)"))
        'found invalid values: -1, -2, -3 and more'
    """
    text = _TENSOR.sub(_few_numbers, str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _few_numbers(tensor: re.Match[str]) -> str:
    numbers = [n.strip("[] \n").removesuffix(".") for n in re.split(r", (?=[a-z_]+=)", tensor[1])[0].split(",")]
    return " " + ", ".join(numbers[:_FEW]) + " and more" * (len(numbers) > _FEW)
