"""What is evaluated: a pair in evaluation mode with checked data, put back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from ppl_vae.arrays import Rows, as_rows
from ppl_vae.checking import check, check_observations, check_rows, settled
from ppl_vae.device import choose_device, full_precision
from ppl_vae.distributed import Group, current
from ppl_vae.errors import PairError, located
from ppl_vae.evaluation.collect import Collection
from ppl_vae.pair import Pair, as_pair, frozen_modes, kept_state, on_device
from ppl_vae.progress import Progress
from ppl_vae.shrinking import undivided
from ppl_vae.tape import Batch, Layout
from ppl_vae.threads import running_programs
from ppl_vae.validation import validating

__all__ = ["Subject", "Swept", "Work", "evaluating", "rows_in_words"]

_PROBE_ROWS = 16

Work = Callable[[Batch, int], Mapping[str, np.ndarray]]
"""Says of a block of data, whose first row is given, what there is to say: arrays (n, ...), data first in each."""


class Swept(NamedTuple):
    """What has been said of the data of this process."""

    found: Collection
    """Arrays over all data, filled where this process went."""
    own: slice
    """Which data those are."""
    group: Group
    """The processes that share the data."""
    device: torch.device
    """Where the evaluation runs."""

    def gathered(self) -> dict[str, np.ndarray]:
        """The arrays over all data, what other processes said included.

        Every process has to call it, once none can fail any more: on leaving `evaluating`.
        """
        return self.found.gather(self.group, self.own, self.device)


class Subject(NamedTuple):
    """A pair that is evaluated."""

    pair: Pair
    """The pair, in evaluation mode, on the device."""
    rows: Rows
    """The data, where a block of them is quickly taken."""
    layout: Layout
    """Layout of the pair."""
    device: torch.device
    """Where the evaluation runs."""
    group: Group
    """The processes that share it."""

    def blocks(self, size: int, number: int | None = None) -> tuple[range, slice]:
        """First rows of the blocks of `size` data that this process evaluates, and which data those are.

        Blocks are whole: each has the noise that it has in one process alone.
        """
        count = len(self.rows) if number is None else number
        every = range(0, count, size)
        own = every[self.group.share(len(every))]
        return own, slice(min(own.start, count), min(own.stop, count))

    def sweep(
        self, size: int, title: str, progress: bool, work: Work, number: int | None = None, unit: str = "rows"
    ) -> Swept:
        """Goes through the blocks of this process, `size` data each.

        Args:
            size: Data of a block.
            title: What is done, beside the progress bar.
            progress: Show a progress bar where there is a terminal.
            work: What says something of a block; an error of a program in it names the rows.
            number: How many times a row is taken in all, from the first on and again; once each if None.
            unit: What a taken row stands for, in messages.
        """
        blocks, own = self.blocks(size, number)
        count = len(self.rows) if number is None else number
        found = Collection(count)
        with Progress(title, own.stop, progress and self.group.leads, "data" if number is None else unit) as bar:
            for first in blocks:
                batch = self._taken(first, min(first + size, count))
                with located(rows_in_words(first, len(batch[0]), unit)):
                    found.put(first, work(batch, first))
                bar.update(first + len(batch[0]), "")
        return Swept(found, own, self.group, self.device)

    def _taken(self, first: int, end: int) -> Batch:
        """Rows from `first` to before `end`, counted on from the beginning again behind the last."""
        if end <= len(self.rows):
            return self.rows.take(slice(first, end), self.device)
        return self.rows.take(torch.arange(first, end) % len(self.rows), self.device)


def rows_in_words(first: int, count: int, unit: str = "rows") -> str:
    """The rows of a block, for messages.

    Example:
        >>> rows_in_words(16, 4), rows_in_words(16, 1)
        ('rows 16 to 19', 'row 16')
    """
    return f"{unit} {first} to {first + count - 1}" if count > 1 else f"{unit.removesuffix('s')} {first}"


@contextmanager
def evaluating(pair: Any, data: Any, device: str | torch.device) -> Iterator[Subject]:
    """Context without gradients in which a pair that fits the data is evaluated; all of it is put back on leaving.

    Raises:
        PplVaeError: If another thread checks, fits or evaluates a pair.
        PairError: If the pair is not valid, has latents outside the data plate, or subsamples within a datum.
        DataError: If a datum lies outside the support of its site, the type of the parameters cannot tell the data
            apart, or torch cannot score counts as large in it.
        EstimateError: If memory runs out where work cannot be divided.
    """
    pair = as_pair(pair)
    target = pair.device if device == "auto" else choose_device(device)
    group = current()
    with ExitStack() as stack:
        stack.enter_context(running_programs())
        stack.enter_context(undivided("this evaluation"))
        stack.enter_context(full_precision(target))
        stack.enter_context(group.together(target))
        rows = settled(pair, as_rows(data), _PROBE_ROWS)
        layout = _checked(pair, rows)
        stack.enter_context(torch.no_grad())
        stack.enter_context(on_device(pair, target))
        stack.enter_context(frozen_modes(pair))
        stack.enter_context(kept_state(pair))
        stack.enter_context(validating(False))
        yield Subject(pair, rows.to(target), layout, target, group)


def _checked(pair: Pair, rows: Rows) -> Layout:
    """Layout of the pair, which has been checked together with every row."""
    layout = check(pair, rows.take(slice(0, _PROBE_ROWS)), proposes_outside=True).layout
    _check_local(layout)
    check_observations(pair, rows, layout)
    return check_rows(pair, rows, layout)


def _check_local(layout: Layout) -> None:
    layout.check_likelihood()
    if layout.global_latents:
        raise PairError(
            f"site {layout.global_latents[0]!r}: expected every latent inside the data plate, found it outside: data "
            "are not independent given the parameters, so a log-likelihood per datum does not exist; "
            "make it a parameter, or condition on a value of it"
        )
    if layout.subsampled:
        raise PairError(
            "a plate inside the data plate is subsampled: p(x given z) would be a noisy estimate inside a logarithm; "
            "use the whole plate in evaluation"
        )
