"""What a guide draws for some rows, kept, and given to it again for a part of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_vae.tape import Batch, Layout

__all__ = ["Draws", "Given", "drawn_first"]

Draws = dict[str, tuple[Tensor, int]]
"""Values of a guide's sites by name, and the number of event dimensions of each."""


def drawn_first(work: Callable[[Batch], object], batch: Batch) -> Draws:
    """What a guide draws in a piece of work that runs it before the model; the work is broken off there.

    Args:
        work: Runs guide, then model, on rows.
        batch: The rows.
    """
    drawing = _Drawing()
    with suppress(_AllDrawnError), drawing:
        work(batch)
    return drawing.values


class _AllDrawnError(Exception):
    """The model begins to read what the guide has drawn."""


class _Drawing(Messenger):
    """Keeps what a guide draws, and ends the run when the model comes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.values: Draws = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            raise _AllDrawnError

    def _pyro_post_sample(self, msg: Any) -> None:
        if not (msg["is_observed"] or isinstance(msg["fn"], _Subsample)):
            self.values[msg["name"]] = msg["value"].detach(), msg["fn"].event_dim


class Given(Messenger):
    """Context that gives a guide, once, what it has drawn for some of the rows.

    Args:
        drawn: What `drawn_first` returned.
        index: Which rows, in the order of the batch that was drawn for.
        layout: Layout of the pair.
        twice: Makes the error of a guide that draws again, as where particles run one after another.
    """

    def __init__(self, drawn: Draws, index: slice | Tensor, layout: Layout, twice: Callable[[], Exception]) -> None:
        super().__init__()
        self._left, self._index, self._data_dim, self._twice = dict(drawn), index, layout.data_dim, twice

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        if msg["name"] not in self._left:
            raise self._twice()
        value, event_dim = self._left.pop(msg["name"])
        index: list[slice | Tensor] = [slice(None)] * value.dim()
        index[value.dim() - event_dim + self._data_dim] = self._index
        msg["value"], msg["done"] = value[tuple(index)], True
