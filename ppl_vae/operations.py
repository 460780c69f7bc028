"""Counts what a computation does: how many operations make a tensor, and how much memory they take for it."""

from __future__ import annotations

from typing import Any

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
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = (t.untyped_storage() for t in tree_leaves(result) if isinstance(t, Tensor))
        sizes = {storage.data_ptr(): storage.nbytes() for storage in made}
        taken = sum(size for place, size in sizes.items() if place not in given)
        self.count += taken > 0
        self.bytes += taken
        return result
