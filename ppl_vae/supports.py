"""Questions about the support of a distribution: its bounds, and the first row of data outside it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["bounds", "first_outside", "is_fixed", "support_name"]


def bounds(support: constraints.Constraint) -> tuple[Tensor, Tensor] | None:
    """Lower and upper bound of a support that is an interval in every coordinate; None for any other.

    Example:
        >>> from torch.distributions import constraints
        >>> bounds(constraints.positive)
        (tensor(0.), tensor(inf))
        >>> bounds(constraints.simplex) is None
        True
    """
    base = _base(support)
    if base in (constraints.real, constraints.real_vector):
        return torch.tensor(-torch.inf), torch.tensor(torch.inf)
    if base is constraints.boolean:
        return torch.tensor(0.0), torch.tensor(1.0)
    lower, upper = getattr(base, "lower_bound", None), getattr(base, "upper_bound", None)
    if lower is None and upper is None:
        return None
    return torch.as_tensor(-torch.inf if lower is None else lower), torch.as_tensor(
        torch.inf if upper is None else upper
    )


def is_fixed(support: constraints.Constraint) -> bool:
    """Whether a support is the same for every row: no bound is a tensor with more than one element."""
    limits = bounds(support)
    base = _base(support)
    if limits is None:
        return not any(isinstance(v, Tensor) for v in vars(base).values())
    return all(limit.numel() == 1 for limit in limits)


def first_outside(support: constraints.Constraint, value: Tensor) -> tuple[int, float] | None:
    """(row, value) of the first row with an entry outside the support; rows are dimension 0. None if all are inside."""
    inside = support.check(value)
    if bool(inside.all()):
        return None
    rows = inside.reshape(len(inside), -1).all(1) if inside.dim() else inside.reshape(1)
    row = int((~rows).nonzero()[0])
    base = _base(support)
    elementwise = base.check(value) if base.event_dim == 0 else torch.zeros_like(value, dtype=torch.bool)
    entries, bad = (value[row], ~elementwise[row]) if value.dim() else (value, ~elementwise)
    return row, float(entries.reshape(-1)[bad.reshape(-1)][0])


def support_name(support: constraints.Constraint) -> str:
    """A support in words, as in `real` or `interval(0, 1)`."""
    text = str(_base(support))
    return text[0].lower() + text[1:].removesuffix("()")


def _base(support: constraints.Constraint) -> constraints.Constraint:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support
