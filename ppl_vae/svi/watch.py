"""Notices that the parameters of a pair are no longer those that a fit began with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import nn

from ppl_vae.errors import PairError
from ppl_vae.pair import Pair

__all__ = ["Watch"]


class Watch:
    """The parameters that train: the optimiser and compiled code hold these, and no others that come later.

    Args:
        pair: The pair, as the fit begins.
    """

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._names = {p: name for name, p in pair.named_parameters() if p.requires_grad}
        self.parameters = [*self._names]
        self._look()

    def check(self) -> None:
        """Takes microseconds where nothing was registered, replaced, frozen or unfrozen since the last look.

        Raises:
            PairError: Naming a parameter that trained and does not now, or trains now and did not.
        """
        if self._ids() == self._seen and [p.requires_grad for p in self._all] == self._train:
            return
        names = {p: name for name, p in self._pair.named_parameters() if p.requires_grad}
        for parameter, name in self._names.items():
            if parameter not in names:
                raise _changed(name, "has been replaced or taken away" if parameter.requires_grad else "was frozen")
        for parameter, name in names.items():
            if parameter not in self._names:
                raise _changed(name, "has requires_grad=True and had not, or is new")
        self._look()

    def _look(self) -> None:
        modules = [*self._pair.modules()]
        self._homes: list[dict[str, Any]] = [home for m in modules for home in (m._parameters, m._modules)]
        self._kept = [*self._registered()]  # alive, so that an id means one thing
        self._seen = self._ids()
        self._all: list[nn.Parameter] = [*self._pair.parameters()]
        self._train = [p.requires_grad for p in self._all]

    def _ids(self) -> list[int]:
        return [*map(id, self._registered())]

    def _registered(self) -> Iterator[Any]:
        return chain.from_iterable(map(dict.values, self._homes))


def _changed(name: str, what: str) -> PairError:
    return PairError(
        f"parameter {name!r}: the parameters of the pair changed during the fit: it {what}; make the change before fit"
    )
