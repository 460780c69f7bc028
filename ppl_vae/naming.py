"""What keys of dictionaries and entries of sets are called: the same in every process, or told apart from what is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from enum import Enum
from itertools import chain
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from ppl_vae.contents import spelled

__all__ = ["Names", "is_named", "is_text"]

_OPEN = "["
_UNNAMED = "[some "
_SPELLED = (bool, int, float, complex, bytes, type(None), torch.dtype, torch.device)


def is_named(name: str) -> bool:
    """Whether names lead to one thing, which they lead to in every process.

    Example:
        >>> names = Names(torch.nn.Linear(1, 1))
        >>> [is_named(names.of(key)) for key in ("a", 1, torch.tanh, object())]
        [True, True, True, False]
    """
    return _UNNAMED not in name


class Names:
    """Names of keys: text is its own, whatever else has a name stands in brackets.

    Those are numbers, None, members of an `Enum`, classes, named functions, tuples of such, and what is registered with
    the root: parameters, buffers and modules, or the parameters that an optimiser moves. Any other key is what it is by
    its address, which is another one in the next process.

    Args:
        root: The module or the optimiser.

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> [Names(layer).of(key) for key in ("a", (1.5, "a"), layer.bias, torch.zeros(1))]
        ['a', "[(1.5, 'a')]", '[bias]', '[some Tensor]']
    """

    def __init__(self, root: nn.Module | Optimizer) -> None:
        self._registered = {id(value): (name, value) for name, value in _registered(root)}

    def of(self, key: Any) -> str:
        """The name of a key."""
        if isinstance(key, str) and not isinstance(key, Enum):
            return str(key)
        found = self._spelled(key)
        return f"{_UNNAMED}{type(key).__name__}]" if found is None else f"{_OPEN}{found}]"

    def entries(self, source: Iterable[Any]) -> Iterator[tuple[str, Any]]:
        """Entries of a set by their names and in the order of these; two of one name have none."""
        named = [(self.of(entry), entry) for entry in source]
        count = Counter(name for name, _ in named)
        for name, entry in sorted(named, key=lambda item: item[0]):
            yield (name if count[name] == 1 else f"{_UNNAMED}{type(entry).__name__}]"), entry

    def _spelled(self, key: Any) -> str | None:
        if id(key) in self._registered:
            return self._registered[id(key)][0]
        if type(key) is tuple:
            parts = [repr(part) if type(part) is str else self._spelled(part) for part in key]
            return None if None in parts else f"({', '.join(map(str, parts))}{',' * (len(parts) == 1)})"
        if isinstance(key, Enum):
            return f"{type(key).__qualname__}.{key.name}"
        if type(key) in _SPELLED or isinstance(key, np.generic):
            return spelled(key)
        return f"{key.__module__}.{key.__qualname__}" if _is_named_itself(key) else None


def is_text(label: str) -> bool:
    """Whether the name of a key is that of a text."""
    return not label.startswith(_OPEN)


def _registered(root: nn.Module | Optimizer) -> Iterator[tuple[str, Any]]:
    if isinstance(root, nn.Module):
        yield from chain(root.named_parameters(), root.named_buffers(), root.named_modules())
        return
    for number, group in enumerate(root.param_groups):
        yield from ((f"parameter {number}.{place}", p) for place, p in enumerate(group["params"]))


def _is_named_itself(key: Any) -> bool:
    """Whether it is a class, or a function that belongs to no object."""
    if isinstance(key, BuiltinFunctionType):
        return isinstance(key.__self__, type | ModuleType | None)
    return isinstance(key, type | FunctionType)
