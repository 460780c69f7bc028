"""Blocks of rows shared among threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from ppl_vae.threads import one_thread

__all__ = ["in_shares"]

T = TypeVar("T")
# Shares a thread: where another process holds a core, the thread there takes fewer of them.
SHARES = 4


def in_shares(work: Callable[[range], T], num_blocks: int, threads: int) -> Iterator[T]:
    """Yield what `work` makes of consecutive ranges of blocks, in their order.

    The operations on one block are small: threads that split them wait for each other after each, and far longer where
    the machine is busy. Here each thread has blocks of its own, and one core for them.

    Args:
        work: Function of a range of blocks, safe to run in several threads.
        num_blocks: Number of blocks, at least 1.
        threads: How many may work at once, at least 1.
    """
    if min(threads, num_blocks) == 1:
        yield work(range(num_blocks))
        return
    step = -(-num_blocks // (SHARES * threads))
    shares = [range(num_blocks)[first : first + step] for first in range(0, num_blocks, step)]
    # What torch does on one thread, MKL does only if the thread that calls it has said so.
    with one_thread(), ThreadPoolExecutor(threads, "ppl_vae-shares", torch.set_num_threads, (1,)) as pool:
        yield from pool.map(work, shares)
