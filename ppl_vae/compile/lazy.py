"""A function that runs as written until compiling it pays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from ppl_vae.compile.build import Compiled, compile_function
from ppl_vae.compile.capture import CaptureError, TensorFunction
from ppl_vae.compile.payback import Payback

__all__ = ["Lazy", "flipped"]

Other = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Makes arguments as usual as those given, and different."""


def flipped(num: int) -> Other:
    """Arguments of which the first so many are turned around.

    Example:
        >>> import torch
        >>> flipped(1)([torch.arange(3), torch.arange(3)])
        [tensor([2, 1, 0]), tensor([0, 1, 2])]
    """
    return lambda arguments: [a.flip(0) if i < num else a for i, a in enumerate(arguments)]


class Lazy:
    """A function of tensors that is compiled once that pays, for arguments of the shapes of the first call.

    Args:
        function: Takes tensors and returns a sequence of tensors.
        module: What it computes with.
        choice: Whether to compile: at once, never, or once it pays.
        num_calls: How many calls there will be, about.
        other: Makes the arguments of a second trial from those of the first.
        work: What runs, for a warning.
    """

    def __init__(
        self,
        function: TensorFunction,
        module: nn.Module,
        choice: Literal["auto"] | bool,
        num_calls: int,
        other: Other,
        work: str,
    ) -> None:
        self._function, self._module = function, module
        self._payback, self._calls_left, self._tried = Payback(choice), num_calls, False
        self._other, self._work = other, work
        self._shapes: list[tuple[int, ...]] = []
        self._compiled: Compiled | None = None

    def __call__(self, *arguments: Tensor) -> Sequence[Tensor]:
        """What the function gives."""
        shapes = [tuple(a.shape) for a in arguments]
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            return self._function(*arguments)
        if self._payback.due(self._calls_left):
            self._compile(arguments)
        self._calls_left -= 1
        if self._compiled is not None:
            return self._compiled(*arguments)
        with self._payback.watching():
            return self._function(*arguments)

    def expect(self, num_calls: int) -> None:
        """So many calls are left, as is better known now: whether compiling pays is decided anew."""
        self._calls_left = num_calls
        if not self._tried:
            self._payback.reopen()

    def _compile(self, arguments: Sequence[Tensor]) -> None:
        self._tried = True
        try:
            self._compiled = compile_function(self._function, [arguments, self._other(arguments)], self._module)
        except CaptureError as error:
            warnings.warn(f"{self._work} runs uncompiled: {error}", UserWarning, stacklevel=2)
