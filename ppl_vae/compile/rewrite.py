"""Rewrites of a captured graph into what the compiler does better with; the numbers stay, up to rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

__all__ = ["rewrite"]

aten = torch.ops.aten


def rewrite(graph: fx.GraphModule) -> None:
    """Applies every rewrite where it applies."""
    for node in list(graph.graph.nodes):
        replace = _REWRITES.get(node.target)
        if replace is None:
            continue
        with graph.graph.inserting_before(node):
            new = replace(graph.graph.call_function, *node.args, **node.kwargs)
        if new is not None:
            node.replace_all_uses_with(new)
            graph.graph.erase_node(node)
    graph.recompile()


def _affine(
    call: Callable[..., fx.Node], bias: fx.Node, x: fx.Node, weight: fx.Node, *, beta: float = 1, alpha: float = 1
) -> fx.Node | None:
    """b + x W as x W - (-b): the compiler would turn a sum into a call that first writes b into every row."""
    if beta != 1 or alpha != 1:
        return None
    return call(aten.sub.Tensor, (call(aten.mm.default, (x, weight)), call(aten.neg.default, (bias,))))


def _bernoulli(
    call: Callable[..., fx.Node],
    logits: fx.Node,
    x: fx.Node,
    weight: fx.Node | None = None,
    pos_weight: fx.Node | None = None,
    reduction: int = 1,
) -> fx.Node | None:
    """max(l, 0) - x l + log(1 + exp(-abs l)): its logarithm costs half of log1p and errs by 6e-8 at most."""
    if weight is not None or pos_weight is not None or reduction != 0:
        return None
    decay = call(aten.exp.default, (call(aten.neg.default, (call(aten.abs.default, (logits,)),)),))
    rest = call(aten.log.default, (call(aten.add.Tensor, (decay, 1.0)),))
    linear = call(aten.sub.Tensor, (call(aten.relu.default, (logits,)), call(aten.mul.Tensor, (x, logits))))
    return call(aten.add.Tensor, (linear, rest))


_REWRITES: dict[object, Callable[..., fx.Node | None]] = {
    aten.addmm.default: _affine,
    aten.binary_cross_entropy_with_logits.default: _bernoulli,
}
