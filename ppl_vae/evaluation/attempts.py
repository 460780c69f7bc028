"""Work on blocks of data that goes on where it fails, and remembers why."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
import torch

from ppl_vae.distributed import Group
from ppl_vae.errors import EstimateError, PairError, first_line, located
from ppl_vae.evaluation.subject import Work, rows_in_words
from ppl_vae.shrinking import rows_of
from ppl_vae.tape import Batch

__all__ = ["Attempts", "reason_of", "row_of"]

_ROW = re.compile(r"^(?:process \d+: )?rows? (\d+)(?: to \d+)?[:,] ")


class Attempts:
    """Tries work on a block; where it fails, on each datum alone; where it fails there, every number is NaN.

    A `PairError` that no program caused is one of the pair, and of every datum: it is not tried again.

    Args:
        work: Says something of a block: arrays (n,).
        names: Of these arrays.

    Example:
        >>> def root(batch, first):
        ...     if (batch[0] < 0).any():
        ...         raise EstimateError(f"row {first}: expected a square, found less than 0")
        ...     return {"root": batch[0].sqrt().numpy()}
        >>> attempts = Attempts(root, ["root"])
        >>> attempts([torch.tensor([4.0, -1.0])], 0)["root"], attempts.reasons
        (array([ 2., nan]), {1: 'expected a square, found less than 0'})
    """

    def __init__(self, work: Work, names: Sequence[str]) -> None:
        self.reasons: dict[int, str] = {}
        self._work, self._names = work, tuple(names)

    def __call__(self, batch: Batch, first: int) -> dict[str, np.ndarray]:
        """What the work says of a block, or of the data of it."""
        size = len(batch[0])
        try:
            with located(rows_in_words(first, size)):
                return dict(self._work(batch, first))
        except (PairError, EstimateError) as error:
            of_the_pair = isinstance(error, PairError) and error.__cause__ is None
            if of_the_pair or size == 1:
                self.reasons |= dict.fromkeys(range(first, first + size), reason_of(error))
                return {name: np.full(size, np.nan) for name in self._names}
        each = [self(rows_of(batch, range(i, i + 1)), first + i) for i in range(size)]
        return {name: np.concatenate([one[name] for one in each]) for name in self._names}

    def gathered_reasons(self, group: Group, device: torch.device) -> dict[int, str]:
        """Row -> reason, of every process; each has to call it."""
        texts = group.texts(json.dumps(list(self.reasons.items())), device)
        return {row: reason for text in texts for row, reason in json.loads(text)}


def reason_of(error: Exception) -> str:
    """What an error says, without the rows, which may be counted among fewer data.

    Example:
        >>> reason_of(EstimateError("row 3: expected a finite weight, found nan"))
        'expected a finite weight, found nan'
    """
    return _ROW.sub("", first_line(error))


def row_of(error: Exception) -> int | None:
    """The row that an error names, or the first of those, among the data of the call; None where it names none."""
    found = _ROW.match(first_line(error))
    return int(found[1]) if found else None
