"""Buffers that the steps of a fit move, such as the running means of a batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Moving"]


class Moving:
    """The moving buffers of a module as they were before the last step, which may have put NaN into them.

    Args:
        module: The module, before the first step.
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
        self._steps = 0

    @torch.no_grad()
    def remember(self) -> None:
        """Is called before every step; after the first one it knows which buffers move."""
        if self._steps == 1:
            self._kept = [(buffer, before) for buffer, before in self._kept if not torch.equal(buffer, before)]
        for buffer, before in self._kept:
            before.copy_(buffer)
        self._steps += 1

    @torch.no_grad()
    def put_back(self) -> None:
        """Undoes what the last step did to them."""
        for buffer, before in self._kept:
            buffer.copy_(before)
        self._steps = 0

    @property
    def tensors(self) -> list[Tensor]:
        """These buffers; none before the second step, when it is not yet known which they are."""
        return [buffer for buffer, _ in self._kept] if self._steps > 1 else []
