"""Compiles a captured function, and proves on examples that it still computes what the function computes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.attributes import Attributes, Change
from ppl_vae.compile.capture import Captured, CaptureError, TensorFunction, capture
from ppl_vae.compile.rewrite import rewrite
from ppl_vae.compile.snapshot import Snapshot
from ppl_vae.errors import first_line
from ppl_vae.rng import seeded

__all__ = ["Compiled", "compile_function"]

Arguments = Sequence[Tensor]
Trial = Callable[[TensorFunction, float], list[Tensor]]

# What sums in another order may differ by: of the largest number of a tensor, and where its terms cancel, of a tenth of
# the largest gradient.
_ROUNDING, _ROUNDING_DOUBLE, _CANCELLING = 1e-5, 1e-10, 0.1
# Where the last digit of the parameters moves a tensor by more: so many times that, at most so many times the above.
_SLACK, _LARGEST_SLACK = 8.0, 20.0
_TRIALS = 3


class Compiled:
    """A compiled function of tensors, for arguments of the shapes and the state outside tensors it was made for."""

    def __init__(
        self, code: Callable[..., Sequence[Tensor]], tensors: dict[Tensor, str], attributes: Attributes
    ) -> None:
        self._code = code
        self._tensors, self._names = [*tensors], [*tensors.values()]
        self._layouts = _layouts(self._tensors)
        self._attributes = attributes

    @torch.no_grad()
    def __call__(self, *arguments: Tensor) -> Sequence[Tensor]:
        """What the function gives, without its graph for gradients."""
        return self._code(*self._tensors, *arguments)

    def outdated(self) -> Change | None:
        """What the function may read outside tensors and is no longer what it was, or a tensor that lies otherwise.

        A look takes microseconds.
        """
        return self._attributes.outdated() or self._laid_out_anew()

    def _laid_out_anew(self) -> Change | None:
        """The first tensor of another dtype, shape or strides: code is made for those."""
        now = _layouts(self._tensors)
        if now == self._layouts:
            return None
        i = next(i for i, (one, other) in enumerate(zip(now, self._layouts, strict=True)) if one != other)
        return Change(self._names[i], _in_words(*self._layouts[i]), _in_words(*now[i]))


def compile_function(function: TensorFunction, examples: Sequence[Arguments], module: nn.Module) -> Compiled:
    """Compiles a function of tensors, and compares it with the function on every example and the same noise.

    The comparison finds what a graph cannot hold: noise drawn outside torch, counters, anything that Python does anew
    in each call, a value kept from the capture. The module is as it was afterwards, whatever happens.

    Args:
        function: Takes tensors and returns a sequence of tensors; may call backward.
        examples: Arguments of one and the same shape; at least two that differ make the comparison mean something.
        module: What the function computes with: its parameters and buffers differ between the examples too.

    Raises:
        CaptureError: If the function cannot be captured or compiled, or is not reproduced.
    """
    state = Snapshot(module)
    device = examples[0][0].device
    try:
        with seeded(0, device):
            captured = capture(function, *examples[0])
            state.restore()
            rewrite(captured.graph)
            names = {t: name for name, t in (*module.named_parameters(), *module.named_buffers())}
            tensors = {t: names.get(t, "a tensor") for t in captured.tensors}
            compiled = Compiled(_build(captured, examples[0]), tensors, state.attributes)
            state.restore()
        for i, arguments in enumerate(examples):
            _compare_again(function, compiled, [partial(_trial, state, i + j, arguments) for j in range(_TRIALS)])
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"a trial of the step failed: {first_line(error)}") from error
    finally:
        state.restore()
    return compiled


def _build(captured: Captured, arguments: Arguments) -> Callable[..., Sequence[Tensor]]:
    inputs: list[Any] = [*captured.tensors, *arguments]
    options = _options(arguments[0].device)
    try:
        with _quiet():
            import torch._inductor

            with torch.no_grad(), _known_shapes():
                code = torch._inductor.compile(captured.graph, inputs, options=options)
                code(*inputs)  # what is left to compile is compiled in the first call
    except Exception as error:
        raise CaptureError(f"the compiler failed: {first_line(error)}") from error
    return code


def _options(device: torch.device) -> dict[str, bool]:
    on_cpu = device.type == "cpu"
    options = {"fallback_random": True, "cpp_wrapper": on_cpu}
    if not on_cpu and torch.__version__ < "2.13":
        options["reorder_for_locality"] = False  # noise, too, was drawn where it is used, in another order
    return options


def _trial(state: Snapshot, seed: int, arguments: Arguments, function: TensorFunction, nudge: float) -> list[Tensor]:
    """What a function gives on an example, with noise and parameters of its own; nothing else of it stays."""
    with seeded(seed, arguments[0].device):
        state.move(0.01 * seed, nudge)
        found = [t.detach() for t in function(*arguments)]
        if not isinstance(function, Compiled) and (name := state.changed()):
            raise CaptureError(f"the programs change {name!r} in each call")
        state.restore()
    return found


def _compare_again(function: TensorFunction, compiled: Compiled, trials: Sequence[Trial]) -> None:
    """Raises unless the first trial, or else all the others agree.

    Where rounding decides on which side of an edge a number falls, as of a bin of a spline, gradients differ by more
    than rounding, in a rare trial. What computes something else differs again.
    """
    try:
        _compare(function, compiled, trials[0])
    except CaptureError:
        for trial in trials[1:]:
            _compare(function, compiled, trial)


def _compare(function: TensorFunction, compiled: Compiled, trial: Trial) -> None:
    """Raises unless the compiled function gives what the function gives, up to the rounding that its numbers can have.

    Where a difference is larger than usual, the function itself tells whether rounding may be the reason: by how much
    its values move with the last digit of its parameters.
    """
    expected, found = trial(function, 0.0), trial(compiled, 0.0)
    allowed = _usual_rounding(expected)
    gap = _gap(expected, found, allowed)
    if gap and not _gap(expected, trial(function, 0.0), allowed):
        gap = _gap(expected, found, _possible_rounding(expected, trial(function, _last_digit(expected)), allowed))
    if gap and not all(bool(t.isfinite().all()) for t in expected):
        raise CaptureError("the step is not finite on the rows that it was tried on: there is nothing to compare")
    if gap:
        why = "the programs do something in Python that changes from call to call, such as drawing noise outside torch"
        if expected[0].device.type == "cuda":
            why += ", or compiled code draws in another order"
        if torch.is_autocast_enabled(expected[0].device.type):
            why = "torch.autocast is on, and compiled code computes in the dtype of the parameters"
        raise CaptureError(f"the compiled step differs from the step by {gap:.2g}: {why}")


def _usual_rounding(values: Sequence[Tensor]) -> list[float]:
    """What each tensor may differ by: a part of its own scale; where terms cancel, of that of all after the first."""
    whole = max((_scale(t) for t in values[1:]), default=0.0)
    rounding = _ROUNDING_DOUBLE if _in_double(values) else _ROUNDING
    return [rounding * max(_scale(t), _CANCELLING * whole) for t in values]


def _possible_rounding(values: Sequence[Tensor], nudged: Sequence[Tensor], usual: Sequence[float]) -> list[float]:
    """The same for ill-conditioned numbers, such as the weights of particles whose log-weights are large."""
    moves = (_scale(one - other) for one, other in zip(values, nudged, strict=True))
    return [max(a, min(_SLACK * move, _LARGEST_SLACK * a)) for a, move in zip(usual, moves, strict=True)]


def _gap(expected: Sequence[Tensor], found: Sequence[Tensor], allowed: Sequence[float]) -> float:
    """The first difference that is larger than allowed; 0 if there is none."""
    for one, other, most in zip(expected, found, allowed, strict=True):
        if not torch.allclose(one, other, rtol=0.0, atol=most, equal_nan=True):
            return float((one - other).nan_to_num(torch.inf).abs().max())
    return 0.0


def _layouts(tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, torch.Size, tuple[int, ...]]]:
    return [(t.dtype, t.shape, t.stride()) for t in tensors]


def _in_words(dtype: torch.dtype, shape: torch.Size, strides: tuple[int, ...]) -> str:
    return f"{tuple(shape)} of {dtype} with strides {strides}"


def _in_double(values: Sequence[Tensor]) -> bool:
    return all(t.dtype == torch.float64 for t in values)


def _last_digit(values: Sequence[Tensor]) -> float:
    return torch.finfo(torch.float64 if _in_double(values) else torch.float32).eps


def _scale(tensor: Tensor) -> float:
    return float(tensor.nan_to_num(posinf=0.0, neginf=0.0).abs().max()) if tensor.numel() else 0.0


@contextmanager
def _known_shapes() -> Iterator[None]:
    """Context that says that every shape is fixed, which the compiler wants to know before it looks into its cache."""
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(assume_static_by_default=True))
    with tracing(TracingContext(mode)):
        yield


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
