"""A command that several processes run together: the first of them speaks and writes for all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path

from ppl_vae.distributed import Group, started

__all__ = ["processes"]


@contextmanager
def processes() -> Iterator[Group]:
    """Context of a command with the processes that `torchrun` started, if it did; only the first prints.

    Raises:
        GroupError: The processes do not find each other.
    """
    with started() as group, ExitStack() as stack:
        if not group.leads:
            stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))))
        yield group
