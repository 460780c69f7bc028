"""The state of a module before something is tried on it, to be compared and put back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Snapshot"]


class Snapshot:
    """Parameters, buffers and plain attributes of every submodule.

    A trial may write into tensors, put other tensors in their place, or change an attribute: `restore` undoes all
    three, `changed` names the first plain attribute that is not what it was.
    """

    def __init__(self, module: nn.Module) -> None:
        self._attributes = [(m, name, dict(vars(m)), _copies(vars(m))) for name, m in module.named_modules()]
        self._registered: list[tuple[Any, dict[str, Any]]] = [
            (home, dict(home)) for m in module.modules() for home in (m._parameters, m._buffers) if home
        ]
        tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}.values()
        self._tensors = [(t, t.data, t.detach().clone()) for t in tensors]

    def move(self, amount: int) -> None:
        """Multiplies parameters and floating buffers by 1 + amount / 100."""
        with torch.no_grad():
            for tensor, _, _ in self._tensors:
                if tensor.is_floating_point():
                    tensor.mul_(1 + 0.01 * amount)

    def changed(self) -> str:
        """Name of the first plain attribute that differs; empty if none does."""
        for module, name, before, copies in self._attributes:
            for attribute, value in vars(module).items():
                if attribute in _MODULE_STATE or attribute.startswith("_cached"):  # as transforms keep their last pair
                    continue
                if attribute not in before or _differs(value, before[attribute], copies.get(attribute)):
                    return f"{name}.{attribute}".lstrip(".")
        return ""

    def restore(self) -> None:
        """Puts everything back."""
        for module, _, before, copies in self._attributes:
            plain = {name: value for name, value in before.items() if name not in _MODULE_STATE}
            for name in [n for n in vars(module) if n not in before]:
                del vars(module)[name]
            vars(module).update(plain)
            for name, value in copies.items():
                before[name].data.copy_(value)
        for home, before in self._registered:
            home.clear()
            home.update(before)
        with torch.no_grad():
            for tensor, data, value in self._tensors:
                if _place(tensor) != _place(data):
                    tensor.data = data
                tensor.copy_(value)


_MODULE_STATE = {name for name in vars(nn.Module()) if name.startswith("_") and not name.startswith("_ppl")}


def _place(tensor: Tensor) -> int | None:
    """Where the numbers lie; None where a trial has left a tensor without any."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return None


def _copies(attributes: dict[str, Any]) -> dict[str, Tensor]:
    return {n: v.detach().clone() for n, v in attributes.items() if type(v) is Tensor}


def _differs(value: Any, before: Any, copy: Tensor | None) -> bool:
    if value is before:
        return copy is not None and not torch.equal(value, copy)
    return not (isinstance(value, int | float | str | bool) and value == before)
