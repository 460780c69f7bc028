"""Rewrites of a captured graph into what the compiler does better with; the numbers stay, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

__all__ = ["rewrite"]

aten = torch.ops.aten

Call = Callable[..., fx.Node]


def rewrite(graph: fx.GraphModule) -> None:
    """Applies every rewrite where it applies; nodes carry stand-ins for their values in `meta["val"]`."""
    for target, replace in _REWRITES:
        for node in graph.graph.find_nodes(op="call_function", target=target):
            with graph.graph.inserting_before(node):
                new = replace(graph.graph.call_function, *node.args, **node.kwargs)
            if new is not None:
                new.meta = node.meta
                node.replace_all_uses_with(new)
                graph.graph.erase_node(node)
    for node in graph.graph.nodes:
        node.meta.clear()  # the compiler finds them anew
    graph.recompile()


def _affine(
    call: Call, bias: fx.Node, x: fx.Node, weight: fx.Node, *, beta: float = 1, alpha: float = 1
) -> fx.Node | None:
    """b + x W as x W - (-b): the compiler would turn a sum into a call that first writes b into every row."""
    if beta != 1 or alpha != 1:
        return None
    return call(aten.sub.Tensor, (call(aten.mm.default, (x, weight)), call(aten.neg.default, (bias,))))


# Coefficients of x^13, x^11, ..., x and of x^6, x^4, x^2, 1 in a rational approximation of tanh that is right to a few
# units in the last place of float32, and of the point from which tanh is 1 there (as in Eigen).
_TANH_ABOVE = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_BELOW = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_TANH_END = 7.90531110763549805


def _tanh(call: Call, x: fx.Node) -> fx.Node | None:
    """tanh as a ratio of polynomials, at a third of the cost."""
    if _value(x).dtype != torch.float32:
        return None
    inside = call(aten.clamp.default, (x, -_TANH_END, _TANH_END))
    square = call(aten.mul.Tensor, (inside, inside))
    above = call(aten.mul.Tensor, (inside, _polynomial(call, square, _TANH_ABOVE)))
    return call(aten.div.Tensor, (above, _polynomial(call, square, _TANH_BELOW)))


def _polynomial(call: Call, x: fx.Node, coefficients: Sequence[float]) -> fx.Node:
    first, second, *others = coefficients
    value = call(aten.add.Tensor, (call(aten.mul.Tensor, (x, first)), second))
    for coefficient in others:
        value = call(aten.add.Tensor, (call(aten.mul.Tensor, (value, x)), coefficient))
    return value


# Lanes of a vector unit, and how many numbers between 1 and 2 may be multiplied in float32.
_LANES, _MOST_FACTORS = 16, 100


def _sum_of_bernoulli(
    call: Call, summed: fx.Node, dims: Sequence[int], keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> fx.Node | None:
    """Sum of log-probabilities of bits: l x - max(l, 0) - log(1 + exp(-abs l)), the logarithm once for many factors."""
    chain = _bernoulli_below(summed)
    if chain is None or list(dims) != [-1] or keepdim or dtype is not None:
        return None
    sign, logits, x = chain
    *rows, size = _value(summed).shape
    factors = next((n for n in range(min(_MOST_FACTORS, size // _LANES), 0, -1) if size % (n * _LANES) == 0), 0)
    if not factors or _value(logits).dtype != torch.float32 or _value(logits).shape != _value(x).shape:
        return None
    shape = [*rows, factors, size // factors]
    logits, x = (call(aten.reshape.default, (t, shape)) for t in (logits, x))
    linear, decay = _linear_and_decay(call, logits, x)
    product = call(aten.prod.dim_int, (call(aten.add.Tensor, (decay, 1.0)), -2))
    linear = call(aten.sum.dim_IntList, (linear, [-2]))
    total = call(aten.sum.dim_IntList, (call(aten.add.Tensor, (linear, call(aten.log.default, (product,)))), [-1]))
    return total if sign > 0 else call(aten.neg.default, (total,))


def _bernoulli_below(node: fx.Node) -> tuple[int, fx.Node, fx.Node] | None:
    """Sign, logits and bits of the cross-entropy that a node shows in another shape, if it is one."""
    sign = 1
    while node.target in (aten.view.default, aten.neg.default):
        sign *= -1 if node.target is aten.neg.default else 1
        node = node.args[0]  # type: ignore[assignment]
    if node.target is not aten.binary_cross_entropy_with_logits.default or not _is_plain(*node.args[2:], **node.kwargs):
        return None
    return sign, node.args[0], node.args[1]  # type: ignore[return-value]


def _bernoulli(call: Call, logits: fx.Node, x: fx.Node, *options: Any, **others: Any) -> fx.Node | None:
    """max(l, 0) - x l + log(1 + exp(-abs l)): its logarithm costs half of log1p and errs by 6e-8 at most."""
    if not _is_plain(*options, **others):
        return None
    linear, decay = _linear_and_decay(call, logits, x)
    return call(aten.add.Tensor, (linear, call(aten.log.default, (call(aten.add.Tensor, (decay, 1.0)),))))


def _linear_and_decay(call: Call, logits: fx.Node, x: fx.Node) -> tuple[fx.Node, fx.Node]:
    """max(l, 0) - x l, and exp(-abs l)."""
    linear = call(aten.sub.Tensor, (call(aten.relu.default, (logits,)), call(aten.mul.Tensor, (x, logits))))
    return linear, call(aten.exp.default, (call(aten.neg.default, (call(aten.abs.default, (logits,)),)),))


def _is_plain(weight: Any = None, pos_weight: Any = None, reduction: Any = 1) -> bool:
    return weight is None and pos_weight is None and reduction == 0


def _value(node: fx.Node) -> torch.Tensor:
    """A stand-in for the value of a node, with its shape and dtype."""
    value: torch.Tensor = node.meta["val"]
    return value


# In this order: what is summed is looked for before its parts are rewritten.
_REWRITES: tuple[tuple[Any, Callable[..., fx.Node | None]], ...] = (
    (aten.sum.dim_IntList, _sum_of_bernoulli),
    (aten.binary_cross_entropy_with_logits.default, _bernoulli),
    (aten.tanh.default, _tanh),
    (aten.addmm.default, _affine),
)
