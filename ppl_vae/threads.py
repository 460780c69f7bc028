"""How many threads torch computes on, and which one runs programs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppl_vae.errors import PplVaeError

__all__ = ["one_thread", "running_programs"]

_AT_WORK, _AT_WORK_IN = threading.RLock(), [""]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute every operation on one thread, in the whole process; afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def running_programs() -> Iterator[None]:
    """Context in which no other thread may run programs: Pyro's handlers, and whether it checks, are the process's.

    The thread itself may enter again. Nobody waits, so that nobody waits for ever.

    Raises:
        PplVaeError: Another thread is in it.
    """
    if not _AT_WORK.acquire(blocking=False):
        raise PplVaeError(
            f"expected one thread that checks, fits or evaluates pairs, found another one at work, "
            f"{_AT_WORK_IN[0]!r}: Pyro's handlers are those of the whole process; let it finish, or use processes"
        )
    try:
        _AT_WORK_IN[0] = threading.current_thread().name
        yield
    finally:
        _AT_WORK.release()
