"""The state of a module before something is tried on it, to be compared and put back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.attributes import Attributes

__all__ = ["Snapshot"]


class Snapshot:
    """Parameters and buffers of every submodule, and what Python keeps within its reach.

    A trial may write into tensors, put other tensors in their place, or change an attribute or a variable: `restore`
    undoes all three, `changed` names the first of the last two.
    """

    def __init__(self, module: nn.Module) -> None:
        self.attributes = Attributes(module)
        self._registered: list[tuple[Any, dict[str, Any]]] = [
            (home, dict(home)) for m in module.modules() for home in (m._parameters, m._buffers) if home
        ]
        tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}.values()
        self._tensors = [(t, t.data, t.detach().clone()) for t in tensors]

    def move(self, amount: float, nudge: float = 0.0) -> None:
        """Multiplies parameters and floating buffers by 1 + amount, and every other entry by 1 + nudge."""
        with torch.no_grad():
            for tensor, _, _ in self._tensors:
                if tensor.is_floating_point():
                    odd = torch.arange(tensor.numel(), device=tensor.device).remainder(2).view(tensor.shape)
                    tensor.mul_(1 + amount).mul_(1 + nudge * odd.to(tensor.dtype))

    def changed(self) -> str:
        """Name of the first attribute or variable that differs; empty if none does."""
        change = self.attributes.changed()
        return change.name if change is not None else self.attributes.moved()

    def restore(self) -> None:
        """Puts everything back."""
        self.attributes.restore()
        for home, before in self._registered:
            home.clear()
            home.update(before)
        with torch.no_grad():
            for tensor, data, value in self._tensors:
                if _place(tensor) != _place(data):
                    tensor.data = data
                tensor.copy_(value)


def _place(tensor: Tensor) -> int | None:
    """Where the numbers lie; None where a trial has left a tensor without any."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return None
