"""Counts what a computation does: how many operations make a tensor, and how much memory they take for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Operations"]


class Operations(TorchDispatchMode):
    """Context that counts the operations of torch that take memory anew; views and writes into tensors take none.

    Example:
        >>> import torch
        >>> x = torch.ones(3, 4)
        >>> with Operations() as operations:
        ...     y = (x.T + 1).exp()
        >>> operations.count, operations.bytes
        (2, 96)
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = _memory_of((args, kwargs)), _memory_of(result)
        taken = sum(size for place, size in made.items() if place not in given)
        self.count += taken > 0
        self.bytes += taken
        return result


def _memory_of(values: Any) -> dict[int, int]:
    """Bytes of the memory of every dense tensor, by where it lies."""
    tensors = (t for t in tree_leaves(values) if isinstance(t, Tensor) and t.layout is torch.strided)
    return {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}
