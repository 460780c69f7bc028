"""What a fit leaves behind: one record an epoch, readable by row or by column."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, overload

import numpy as np

__all__ = ["History", "Record"]


class Record(NamedTuple):
    """Means over the data of one epoch, in nats per datum, and the state at its end.

    An epoch that the last step leaves unfinished has one, too, of its steps until then: a fit that goes on replaces it.
    """

    epoch: int
    """Number of the epoch, from 1."""
    step: int
    """Steps done at its end."""
    objective: float
    """What is trained (beta, schedules and free bits included)."""
    elbo: float
    """True ELBO, beta = 1; NaN where the objective does not tell."""
    distortion: float
    """-E log p(x given z)."""
    rate: float
    """KL(q(z given x), p(z))."""
    grad_norm: float
    """Norm of the whole gradient before clipping, mean over steps."""
    beta: float
    """Weight of the rate in the last step."""
    learning_rate: float
    """Learning rate of the last step."""
    seconds: float
    """Training time so far, validation included."""
    validation_elbo: float
    """True ELBO of the validation data; NaN without them."""
    validation_distortion: float = math.nan
    """-E log p(x given z) of the validation data."""
    validation_rate: float = math.nan
    """KL(q(z given x), p(z)) of the validation data."""
    validation_kl: Mapping[str, tuple[float, ...]] = {}  # a read-only view could be neither copied nor pickled
    """KL of each latent scalar there, by site, where `fit(record_kl=True)` asked for it; see `History.kl`."""


class History(Sequence[Record]):
    """The records of a fit: `history[-1]` is a row, `history["elbo"]` a column.

    Example:
        >>> history = History([Record(1, 10, -2.0, -2.0, 1.5, 0.5, 3.0, 1.0, 1e-3, 0.1, float("nan"))])
        >>> history[0].rate, history["elbo"]
        (0.5, array([-2.]))
    """

    def __init__(self, records: Sequence[Record] = ()) -> None:
        self._records = list(records)

    def append(self, record: Record) -> None:
        """Adds the record of an epoch."""
        self._records.append(record)

    def kl(self, site: str) -> np.ndarray:
        """KL of each scalar of a latent site on the validation data, (epochs, D), in nats per datum.

        Raises:
            ValueError: It was not recorded; the sites are named that were.
        """
        recorded = self._records[0].validation_kl if self._records else {}
        if site not in recorded:
            found = f"that of {', '.join(map(repr, recorded))}" if recorded else "none"
            mend = "ask for one of those" if recorded else "pass validation=... and record_kl=True to fit"
            raise ValueError(f"site {site!r}: expected a recorded KL, found {found}; {mend}")
        return np.array([record.validation_kl[site] for record in self._records])

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    @overload
    def __getitem__(self, item: int) -> Record: ...
    @overload
    def __getitem__(self, item: slice) -> History: ...
    @overload
    def __getitem__(self, item: str) -> np.ndarray: ...
    def __getitem__(self, item: int | slice | str) -> Record | History | np.ndarray:
        if isinstance(item, str):
            return np.array([getattr(record, item) for record in self._records])
        return History(self._records[item]) if isinstance(item, slice) else self._records[item]

    def __repr__(self) -> str:
        return f"History({len(self)} epochs)"
