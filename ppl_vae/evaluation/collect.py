"""Puts the results of consecutive blocks of data in their places."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ppl_vae.distributed import Group

__all__ = ["Collection"]


class Collection:
    """Arrays over all data, made once and filled block by block.

    Small results that are kept block after block would lie between the large ones that are given back, and keep the
    memory of those from being used again.

    Example:
        >>> collection = Collection(num_data=3)
        >>> collection.put(0, {"value": np.array([1.0, 2.0])})
        >>> collection.put(2, {"value": np.array([3.0])})
        >>> collection.arrays["value"]
        array([1., 2., 3.])
    """

    def __init__(self, num_data: int) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._num_data = num_data

    def put(self, first: int, block: Mapping[str, np.ndarray]) -> None:
        """Stores the arrays of a block whose first datum is `first`; data come first in each."""
        for name, values in block.items():
            if name not in self.arrays:
                self.arrays[name] = np.empty((self._num_data, *values.shape[1:]), values.dtype)
            self.arrays[name][first : first + len(values)] = values

    def gather(self, group: Group, own: slice, device: torch.device) -> dict[str, np.ndarray]:
        """The arrays with what all processes have put in their places; `own` are the data of this one."""
        if group.size == 1:
            return self.arrays
        mine = {name: torch.from_numpy(array[own]) for name, array in self.arrays.items()}
        parts = [part for part in group.gather(mine, device) if part]
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in (parts or [{}])[0]}
