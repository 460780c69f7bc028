"""By what data are known again, so that a result is not taken for that of others, or of the same in another order."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from ppl_vae.arrays import Rows
from ppl_vae.errors import DataError
from ppl_vae.tape import Batch

__all__ = ["check_same", "signatures"]

_BLOCK = 4096


def signatures(batch: Batch) -> np.ndarray:
    """A number of each datum (n,), the same for the same numbers in single precision, whatever the type.

    Example:
        >>> one, other, again = signatures((torch.tensor([[0.5, 1.0], [1.0, 0.5], [0.5, 1.0]]),))
        >>> bool(one == again), bool(one == other)
        (True, False)
    """
    # Zero has two signs.
    numbers = [a.to("cpu", torch.float32).reshape(len(a), a[:1].numel()).numpy() + np.float32(0) for a in batch]
    rows = (b"".join(part.tobytes() for part in parts) for parts in zip(*numbers, strict=True))
    return np.array([int.from_bytes(hashlib.blake2b(row, digest_size=7).digest()) for row in rows], dtype=np.int64)


def check_same(known: np.ndarray | None, rows: Rows) -> None:
    """Data are those, in their order, of a result with these signatures; None is of a version that kept none.

    Raises:
        DataError: A row is another one.
    """
    if known is None:
        return
    found = np.concatenate([signatures(batch) for _, batch in rows.blocks(_BLOCK, torch.device("cpu"))])
    if not (differs := found != known).any():
        return
    row = int(differs.argmax())
    places = np.flatnonzero(known == found[row])
    what = f"the one that was row {places[0]}" if len(places) else "one that was not among them"
    raise DataError(
        f"row {row}: expected the data that were evaluated, in the same order, found {what}: pass them as they were "
        "given to log_likelihood, or evaluate these"
    )
