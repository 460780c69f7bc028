"""Captures a function of tensors as a graph: Python and Pyro run once, and leave the hot path."""

from __future__ import annotations

import linecache
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae.errors import PplVaeError, first_line

__all__ = ["CaptureError", "Captured", "capture"]

TensorFunction = Callable[..., Sequence[Tensor]]

_NUMBERS = {getattr(torch.ops.aten, name).default for name in ("_local_scalar_dense", "allclose", "equal")}
_ARRAYS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
_LIBRARIES = (Path(torch.__file__).parent, Path(pyro.__file__).parent, Path(__file__).parents[1])


class CaptureError(PplVaeError):
    """A function cannot be captured; the message says what in it depends on the values of tensors."""


class Captured(NamedTuple):
    """A graph of tensor operations, `graph(*tensors, *arguments)`."""

    graph: fx.GraphModule
    """The operations."""
    tensors: list[Tensor]
    """Parameters, buffers and constants that the function reached by itself; the graph reads them where they are."""


def capture(function: TensorFunction, *arguments: Tensor) -> Captured:
    """Runs a function once on tensors without values, and records what it does to them.

    Tensors that the function holds (parameters, buffers, constants) become inputs of the graph, so that it sees them
    change. Noise is an operation like any other, drawn from torch's generators in the same order.

    Args:
        function: Takes tensors and returns a sequence of tensors; may call backward.
        arguments: Examples of its arguments: shapes and dtypes matter, values do not.

    Raises:
        CaptureError: If the function looks at the value of a tensor, or does what a graph cannot hold.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = make_fx(_refusing_reads(function), tracing_mode="fake", _allow_non_fake_inputs=True)(*arguments)
    except Exception as error:
        raise CaptureError(f"{_place_of(error)}{first_line(error)}") from error
    return Captured(graph, _lift_attributes(graph))


def _refusing_reads(function: TensorFunction) -> TensorFunction:
    """The function, which fails where it reads a number from a tensor that has values.

    A graph would keep the number, whatever the tensor becomes. Tensors without values refuse by themselves.
    """

    def refusing(*arguments: Tensor) -> Sequence[Tensor]:
        with _NoReadsInTorch(), _NoReadsInPython():
            return function(*arguments)

    return refusing


class _NoReadsInTorch(TorchDispatchMode):
    """Refuses what becomes a number, such as `item`, `float`, or a tensor in the place of a size."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {})) if func not in _NUMBERS else _read(func, args, kwargs)


class _NoReadsInPython(TorchFunctionMode):
    """Refuses what looks into the memory of a tensor, of which torch knows nothing more."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {})) if func not in _ARRAYS else _read(func, args, kwargs)


def _read(func: Any, args: Any, kwargs: Any) -> Any:
    if all(isinstance(t, FakeTensor) for t in args if isinstance(t, Tensor)):
        return func(*args, **(kwargs or {}))
    raise CaptureError(
        "a number is read from a tensor, and a graph would keep it as it is now; compute with the tensor itself"
    )


def _lift_attributes(graph: fx.GraphModule) -> list[Tensor]:
    """Turns the tensors that a graph holds into its first inputs; returns them in that order."""
    tensors: dict[str, Tensor] = {}
    first = next(iter(graph.graph.nodes))
    placeholders: dict[str, fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        if node.target not in placeholders:
            tensors[node.target] = getattr(graph, node.target)
            with graph.graph.inserting_before(first):
                placeholders[node.target] = graph.graph.placeholder(f"held_{len(tensors)}")
        node.replace_all_uses_with(placeholders[node.target])
        graph.graph.erase_node(node)
    for name in tensors:
        delattr(graph, name)
    graph.recompile()
    return list(tensors.values())


def _place_of(error: Exception) -> str:
    """The innermost line of the user's own code under an error."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and not any(file.is_relative_to(library) for library in _LIBRARIES):
            line = linecache.getline(frame.filename, frame.lineno or 0).strip()
            return f"{file.name}, line {frame.lineno}, `{line}`: "
    return ""
