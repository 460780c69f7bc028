"""Buffers that the steps of a fit move, such as the running means of a batch norm."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from ppl_vae.errors import PairError

__all__ = ["Moving", "check_own_memory"]


def check_own_memory(module: nn.Module) -> None:
    """Refuses parameters and buffers that were expanded: their numbers cannot be put back, as nobody can write to them.

    Raises:
        PairError: There is one; its name is said.
    """
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise PairError(
                f"{name}: expected a place in memory for each number, found one that several share, as expand makes "
                "it, which no fit can put back: register it as tensor.clone(), or leave out validation, run_dir and "
                "on_nonfinite"
            )


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
