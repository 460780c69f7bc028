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
    "is_lack_of_memory",
    "located",
    "refusal",
]


class PplVaeError(Exception):
    """Base class of every error raised on purpose by ppl_vae."""


class DataError(PplVaeError, ValueError):
    """The data cannot be used: wrong shape, dtype, support, or a non-finite entry (the row is named)."""


class PairError(PplVaeError, ValueError):
    """Model and guide do not form a valid pair: the site, what was expected, what was found, and a mend."""


class EstimateError(PplVaeError, ArithmeticError):
    """A number could not be computed honestly: a loss, gradient or weight not finite, or too little memory."""


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
    except Exception as error:
        if not is_of_programs(error):
            raise
        raise PairError(f"{where}, failed: {type(error).__name__}: {first_line(error)}") from error


def is_of_programs(error: Exception) -> bool:
    """Whether an error is neither one of this package nor a lack of memory."""
    return not (isinstance(error, PplVaeError) or is_lack_of_memory(error))


# What torch calls it where it has no class of its own: on the CPU, in libraries, and in compiled code; and the loader
# of libraries, of one that is imported late.
_LACKS = (
    "DefaultCPUAllocator",
    "bad_alloc",
    "out of memory",
    "ALLOC_FAILED",
    "aoti_torch_empty_strided",
    "failed to map segment from shared object",
)


def is_lack_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, in Python or on a device of torch, or was raised from one that does.

    Example:
        >>> is_lack_of_memory(torch.OutOfMemoryError()), is_lack_of_memory(RuntimeError("out of range"))
        (True, False)
    """
    if error is None:
        return False
    told = isinstance(error, RuntimeError | ImportError) and any(lack in str(error) for lack in _LACKS)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError) or is_lack_of_memory(error.__cause__)


def refusal(error: BaseException | None) -> str:
    """What the system refuses, in its words, where an error says that; empty where it says something else.

    Example:
        >>> refusal(OSError(24, "Too many open files")), refusal(MemoryError()), refusal(OSError("not a gzip file"))
        ('Too many open files', 'memory ran out', '')
    """
    if is_lack_of_memory(error):
        return "memory ran out"
    if isinstance(error, OSError) and error.errno is not None:  # libraries raise some of their own without one
        return error.strerror or str(error)
    return ""


_TENSOR = re.compile(r"\s*\btensor\(([^()]*)\)")
_FEW = 3
# What torch says of a device, and what helps.
_HINTS = {
    "tensors to be on the same device": "what programs keep stays where it was made unless it is a parameter or a "
    'buffer: give it to a module by register_buffer, or ask for device "cpu"',
    "device-side assert": "a draw from probabilities that are NaN or outside [0, 1], or an index out of range, ends "
    'all use of the GPU by this process: go on in a new one; on device "cpu" the site is named',
}


def first_line(error: BaseException) -> str:
    r"""The first line of what an error says, a few numbers for each tensor in it, or its class where it says nothing.

    Example:
        >>> first_line(ValueError("too long\nby far")), first_line(KeyboardInterrupt())
        ('too long', 'KeyboardInterrupt')
        >>> first_line(ValueError("found invalid values:\ntensor([[-1., -2.],\n  [-3., -4.]], dtype=torch.float64)"))
        'found invalid values: -1, -2, -3 and more'
    """
    text = _TENSOR.sub(_few_numbers, str(error)).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return line + "".join(f" ({hint})" for sign, hint in _HINTS.items() if sign in line)


def _few_numbers(tensor: re.Match[str]) -> str:
    numbers = [n.strip("[] \n").removesuffix(".") for n in re.split(r", (?=[a-z_]+=)", tensor[1])[0].split(",")]
    return " " + ", ".join(numbers[:_FEW]) + " and more" * (len(numbers) > _FEW)
