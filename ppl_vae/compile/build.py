"""Compiles a captured function, and proves on examples that it still computes what the function computes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ppl_vae.compile.capture import Captured, CaptureError, TensorFunction, capture
from ppl_vae.compile.rewrite import rewrite
from ppl_vae.rng import seeded

__all__ = ["Compiled", "compile_function"]

Arguments = Sequence[Tensor]

# What float32 sums in another order may differ by, of the largest number that takes part.
_ROUNDING = 1e-4


class Compiled:
    """A compiled function of tensors, for arguments of the shapes it was made for."""

    def __init__(self, code: Callable[..., Sequence[Tensor]], tensors: list[Tensor]) -> None:
        self._code = code
        self._tensors = tensors

    @torch.no_grad()
    def __call__(self, *arguments: Tensor) -> Sequence[Tensor]:
        """What the function gives, without its graph for gradients."""
        return self._code(*self._tensors, *arguments)


def compile_function(function: TensorFunction, examples: Sequence[Arguments], state: Sequence[Tensor] = ()) -> Compiled:
    """Compiles a function of tensors, and compares it with the function on every example and the same noise.

    The comparison finds what a graph cannot hold: noise drawn outside torch, counters, anything that Python does anew
    in each call, a value kept from the capture.

    Args:
        function: Takes tensors and returns a sequence of tensors; may call backward.
        examples: Arguments of one and the same shape; at least two that differ make the comparison mean something.
        state: Tensors that change between calls, such as parameters and buffers: they differ between the examples too,
            and are put back.

    Raises:
        CaptureError: If the function cannot be captured or compiled, or is not reproduced.
    """
    device = examples[0][0].device
    with _restored(state), seeded(0, device):
        captured = capture(function, *examples[0])
        rewrite(captured.graph)
        compiled = Compiled(_build(captured, examples[0]), captured.tensors)
    for i, arguments in enumerate(examples):
        with _restored(state), seeded(i, device):
            _move(state, i)
            expected = [t.detach() for t in function(*arguments)]
        with _restored(state), seeded(i, device):
            _move(state, i)
            found = compiled(*arguments)
        _check_same(expected, found)
    return compiled


def _move(state: Sequence[Tensor], amount: int) -> None:
    with torch.no_grad():
        for tensor in state:
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.01 * amount)


def _build(captured: Captured, arguments: Arguments) -> Callable[..., Sequence[Tensor]]:
    inputs: list[Any] = [*captured.tensors, *arguments]
    options = {"fallback_random": True, "cpp_wrapper": inputs[0].device.type == "cpu"}
    try:
        with _quiet():
            import torch._inductor

            with torch.no_grad():
                code = torch._inductor.compile(captured.graph, inputs, options=options)
                code(*inputs)  # what is left to compile is compiled in the first call
    except Exception as error:
        text = str(error).strip().splitlines()
        raise CaptureError(f"the compiler failed: {text[0] if text else type(error).__name__}") from error
    return code


def _check_same(expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    scale = max(float(t.nan_to_num().abs().max()) for t in expected if t.numel())
    for one, other in zip(expected, found, strict=True):
        if not torch.allclose(one, other, rtol=_ROUNDING, atol=_ROUNDING * scale, equal_nan=True):
            gap = float((one - other).nan_to_num(torch.inf).abs().max())
            raise CaptureError(
                f"the compiled step differs from the step by {gap:.2g}: the programs do something in Python that "
                "changes from call to call, such as drawing noise outside torch"
            )


@contextmanager
def _restored(state: Sequence[Tensor]) -> Iterator[None]:
    before = [t.clone() for t in state]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the compiler remarks on operations that it calls instead of compiling, and on itself."""
    logger = logging.getLogger("torch._inductor")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
