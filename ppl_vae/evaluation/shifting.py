"""Handlers that find the parameters of a guide that can be free, and shift them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.errors import PairError
from ppl_vae.evaluation.freeing import Free, Parameter, freed, name_of
from ppl_vae.pair import Pair
from ppl_vae.supports import differ, support_of
from ppl_vae.tape import Layout

__all__ = ["Recorder", "Shift", "Slot", "Within"]


class Slot(NamedTuple):
    """Where the shift of one parameter lies in a row of free numbers."""

    first: int
    """Its first column."""
    shape: tuple[int, ...]
    """Its shape for one datum."""
    data_dim: int
    """Dimension of the data among those of its shape, from the right."""

    def of(self, free: Tensor) -> Tensor:
        """The shift for all data."""
        columns = free[:, self.first : self.first + math.prod(self.shape)]
        shift = columns.reshape(len(free), *self.shape)
        return shift.movedim(0, shift.dim() + self.data_dim)


class Within:
    """A guide run within a handler."""

    def __init__(self, pair: Pair, handler: Messenger) -> None:
        self._guide, self._handler = pair.guide, handler

    def __call__(self, *batch: Any) -> None:
        """Runs it."""
        with self._handler:
            self._guide(*batch)


class Recorder(Messenger):
    """Finds every parameter that can be free: one that moves the support stays, or q would leave what the model allows.

    Densities of torch say anything outside a support, and an ELBO that counts them is above log p(x).
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout = layout
        self.slots: dict[str, list[Slot | None]] = {name: [] for name in layout.local_latents}
        self.values: list[Tensor] = []
        self.size = 0

    def _pyro_sample(self, msg: Any) -> None:
        if (name := msg["name"]) not in self.slots:
            return
        try:
            self.slots[name] = [self._slot(parameter) for parameter in _parameters(msg["fn"])]
            if not any(self.slots[name]):
                raise PairError(f"found {name_of(msg['fn'])[0]}, each of whose parameters moves its support")
        except PairError as error:
            raise PairError(
                f"site {name!r}: expected a distribution whose parameters can be free for each datum, {error}; "
                "log_likelihood gives the gap as a whole"
            ) from None

    def _slot(self, parameter: Parameter | None) -> Slot | None:
        if parameter is None:
            return None
        shape = list(parameter.shape)
        data_dim = self._layout.data_dim - parameter.inner
        del shape[data_dim]
        slot = Slot(self.size, tuple(shape), data_dim)
        self.values.append(parameter.value)
        self.size += math.prod(shape)
        return slot


def _parameters(fn: Any) -> list[Parameter | None]:
    """The parameters of a distribution that can be shifted; None in the place of one that moves its support."""
    found: list[Parameter] = []

    def record(parameter: Parameter) -> Tensor:
        found.append(parameter)
        return parameter.value.new_zeros(parameter.shape)

    support = support_of(freed(fn, record))
    return [None if differ(support, support_of(freed(fn, _only(i)))) else p for i, p in enumerate(found)]


def _only(i: int) -> Free:
    """Shifts of one for the i-th parameter, and of zero for the others."""
    numbers = count()

    def shift(parameter: Parameter) -> Tensor:
        return parameter.value.new_full(parameter.shape, float(next(numbers) == i))

    return shift


class Shift(Messenger):
    """Replaces the distribution of each site by its own family at shifted parameters."""

    def __init__(self, shifts: Mapping[str, Sequence[Tensor | None]]) -> None:
        super().__init__()
        self._shifts = shifts

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._shifts:
            shifts = iter(self._shifts[msg["name"]])
            msg["fn"] = freed(msg["fn"], lambda _: next(shifts))
