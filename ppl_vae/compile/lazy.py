"""A function that runs as written until compiling it pays."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ppl_vae.compile.build import Compiled, compile_function
from ppl_vae.compile.capture import CaptureError, TensorFunction
from ppl_vae.compile.payback import Payback

__all__ = ["Lazy"]


class Lazy:
    """A function of tensors that is compiled once that pays, for arguments of the shapes of the first call.

    Args:
        function: Takes tensors and returns a sequence of tensors.
        module: What it computes with.
        choice: Whether to compile: at once, never, or once it pays.
        num_calls: How many calls there will be, about.
        num_varied: How many of the first arguments may be turned around for a second trial.
        work: What runs, for a warning.
    """

    def __init__(
        self,
        function: TensorFunction,
        module: nn.Module,
        choice: Literal["auto"] | bool,
        num_calls: int,
        num_varied: int,
        work: str,
    ) -> None:
        self._function, self._module = function, module
        self._payback, self._calls_left, self._tried = Payback(choice), num_calls, False
        self._num_varied, self._work = num_varied, work
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
        varied = [a.flip(0) for a in arguments[: self._num_varied]]
        try:
            self._compiled = compile_function(
                self._function, [arguments, [*varied, *arguments[self._num_varied :]]], self._module
            )
        except CaptureError as error:
            warnings.warn(f"{self._work} runs uncompiled: {error}", UserWarning, stacklevel=2)
