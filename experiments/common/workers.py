"""Work of an experiment on several cores at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import torch

from experiments.common.progress import steps

__all__ = ["over_cores"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_cores(
    work: Callable[[Item], Result], items: Sequence[Item], what: str, num_processes: int = 1
) -> list[Result]:
    """Results of independent items, in their order; each process works on one thread.

    Args:
        work: A function of a module, or a `partial` of one: processes find it by its name.
        items: What to work on; the longest first, so that no process waits for the last one.
        what: Title of the progress bar.
        num_processes: How many at once; with 1 the work is done here.
    """
    if num_processes == 1:
        return [work(item) for item in steps(items, what)]
    with ProcessPoolExecutor(num_processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return [waiting.result() for waiting in steps([pool.submit(work, item) for item in items], what)]
