"""What is evaluated: a pair in evaluation mode with checked data, put back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from ppl_vae.arrays import Rows, as_rows
from ppl_vae.checking import check, check_observations, check_rows
from ppl_vae.device import choose_device
from ppl_vae.distributed import Group, current
from ppl_vae.errors import PairError
from ppl_vae.pair import Pair, as_pair, frozen_modes, kept_state, on_device
from ppl_vae.shrinking import undivided
from ppl_vae.tape import Layout
from ppl_vae.validation import validating

__all__ = ["Subject", "evaluating"]

_PROBE_ROWS = 16


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

    def blocks(self, size: int) -> tuple[range, slice]:
        """First rows of the blocks of `size` data that this process evaluates, and which data those are.

        Blocks are whole: each has the noise that it has in one process alone.
        """
        every = range(0, len(self.rows), size)
        own = every[self.group.share(len(every))]
        return own, slice(min(own.start, len(self.rows)), min(own.stop, len(self.rows)))


@contextmanager
def evaluating(pair: Any, data: Any, device: str | torch.device) -> Iterator[Subject]:
    """Context without gradients in which a pair that fits the data is evaluated; all of it is put back on leaving.

    Raises:
        PairError: If the pair is not valid, has latents outside the data plate, or subsamples within a datum.
        DataError: If a datum lies outside the support of its site.
        EstimateError: If memory runs out where work cannot be divided.
    """
    pair = as_pair(pair)
    target = pair.device if device == "auto" else choose_device(device)
    group = current()
    with ExitStack() as stack:
        stack.enter_context(undivided("this evaluation"))
        stack.enter_context(group.together(target))
        rows = as_rows(data).with_dtype(pair.dtype)
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
    check_rows(pair, rows, layout)
    return layout


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
