"""Questions about the support of a distribution: what it is, its bounds, and the first row of data outside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    OneHotCategorical,
    TransformedDistribution,
    VonMises,
    constraints,
)
from torch.distributions import transforms as t

__all__ = [
    "base_of",
    "bounds",
    "common",
    "covers",
    "differ",
    "entries_outside",
    "excluded_values",
    "first_outside",
    "is_constant",
    "is_fixed",
    "is_stateless",
    "support_name",
    "support_of",
    "support_of_data",
    "unmixed",
]


_TRANSFORMED = TransformedDistribution.support
_SLACK = 1e-6  # pi in single precision is not pi
_WRAPPERS = Independent, ExpandedDistribution, MaskedDistribution
_MONOTONE = (
    t.AffineTransform,
    t.ExpTransform,
    t.PowerTransform,
    t.SigmoidTransform,
    t.SoftplusTransform,
    t.TanhTransform,
)


class _Unstated(constraints.Constraint):
    """Support of a distribution that does not tell: nothing is known to be outside."""

    def __init__(self, event_dim: int) -> None:
        super().__init__()
        self.event_dim = event_dim

    def check(self, value: Tensor) -> Tensor:
        return torch.ones(value.shape[: value.dim() - self.event_dim], dtype=torch.bool, device=value.device)

    def __repr__(self) -> str:
        return "unstated"


def support_of(distribution: Any) -> constraints.Constraint:
    """The support of a distribution, corrected where it claims more than it has.

    `VonMises` and everything that ends in an affine transform claim the whole line; some distributions claim nothing.

    Example:
        >>> import pyro.distributions as dist
        >>> support_of(dist.VonMises(0.0, 1.0))
        Interval(lower_bound=-3.141592653589793, upper_bound=3.141592653589793)
        >>> support_of(dist.TransformedDistribution(dist.Beta(2.0, 2.0), dist.transforms.AffineTransform(-1.0, 2.0)))
        Interval(lower_bound=-1.0, upper_bound=1.0)
    """
    if isinstance(distribution, VonMises):
        return constraints.interval(-math.pi, math.pi)
    if isinstance(distribution, TransformedDistribution) and type(distribution).support is _TRANSFORMED:
        return _image(distribution)
    if isinstance(distribution, _WRAPPERS):
        inner = support_of(distribution.base_dist)
        missing = len(distribution.event_shape) - inner.event_dim
        return constraints.independent(inner, missing) if missing > 0 else inner
    try:
        return distribution.support
    except NotImplementedError:
        return _Unstated(len(distribution.event_shape))


def support_of_data(distribution: Any) -> constraints.Constraint:
    """Where observed values may lie: the support, but for angles, which may be written with any number of turns."""
    inner = distribution
    while isinstance(inner, _WRAPPERS):
        inner = inner.base_dist
    return distribution.support if isinstance(inner, VonMises) else support_of(distribution)


def bounds(support: constraints.Constraint) -> tuple[Tensor, Tensor] | None:
    """Lower and upper bound of a support that is an interval in every coordinate; None for any other.

    Example:
        >>> from torch.distributions import constraints
        >>> bounds(constraints.positive)
        (tensor(0., dtype=torch.float64), tensor(inf, dtype=torch.float64))
        >>> bounds(constraints.simplex) is None
        True
    """
    base = base_of(support)
    lower: Any = getattr(base, "lower_bound", None)
    upper: Any = getattr(base, "upper_bound", None)
    if base is constraints.boolean:
        lower, upper = 0.0, 1.0
    elif lower is None and upper is None and base not in (constraints.real, constraints.real_vector):
        return None
    ends = -torch.inf if lower is None else lower, torch.inf if upper is None else upper
    return torch.as_tensor(ends[0], dtype=torch.float64), torch.as_tensor(ends[1], dtype=torch.float64)


def covers(outer: constraints.Constraint, inner: constraints.Constraint) -> bool | None:
    """Whether `outer` contains `inner`, up to the rounding of their bounds; None where bounds do not tell.

    Example:
        >>> from torch.distributions import constraints
        >>> covers(constraints.real, constraints.positive), covers(constraints.unit_interval, constraints.positive)
        (True, False)
    """
    wide, narrow = bounds(outer), bounds(inner)
    if wide is None or narrow is None:
        return None
    below, above = wide[0] - narrow[0], narrow[1] - wide[1]  # nan where both are the same infinity
    return not any(
        bool((excess > _SLACK * _size(ends)).any()) for excess, ends in ((below, narrow[0]), (above, narrow[1]))
    )


def is_fixed(support: constraints.Constraint) -> bool:
    """Whether a support is the same for every row: no bound is a tensor with more than one element."""
    limits = bounds(support)
    base = base_of(support)
    if limits is None:
        return not any(isinstance(v, Tensor) for v in vars(base).values())
    return all(limit.numel() == 1 for limit in limits)


def is_constant(support: constraints.Constraint) -> bool:
    """Whether no bound is a tensor: programs may make tensors of what they like."""
    return not any(isinstance(end, Tensor) for end in vars(base_of(support)).values())


def common(supports: Sequence[constraints.Constraint]) -> constraints.Constraint | None:
    """The support with one number for each bound that all entries of all supports are; None where they differ.

    Example:
        >>> from torch.distributions import constraints
        >>> common([constraints.interval(torch.zeros(3), torch.ones(3)), constraints.interval(0.0, 1.0)])
        Interval(lower_bound=0.0, upper_bound=1.0)
        >>> common([constraints.greater_than(torch.tensor([0.0, 1.0]))]) is None
        True
    """
    first, limits = supports[0], [bounds(support) for support in supports]
    known = [limit for limit in limits if limit is not None]
    if len(known) < len(limits):
        return None
    ends = (torch.cat([limit[i].flatten() for limit in known]) for i in range(2))
    if any(bool((end != end[0]).any()) for end in ends):
        return None
    base = base_of(first)
    plain = type(base)(**{name: _plain(torch.as_tensor(end)) for name, end in vars(base).items()})
    missing = first.event_dim - plain.event_dim
    return constraints.independent(plain, missing) if missing else plain


def is_stateless(support: constraints.Constraint) -> bool:
    """Whether a support is described by its class alone, as the real line is."""
    return not vars(base_of(support))


def differ(one: constraints.Constraint, other: constraints.Constraint) -> bool:
    """Whether the bounds of two supports differ; not known of what has no bounds, such as a mixture.

    Example:
        >>> from torch.distributions import constraints
        >>> differ(constraints.interval(0.0, 1.0), constraints.interval(0.0, 2.0))
        True
    """
    left, right = bounds(one), bounds(other)
    if left is None or right is None:
        return False
    return any(bool((a != b).any()) for a, b in zip(left, right, strict=True))


def first_outside(
    support: constraints.Constraint, value: Tensor, row_dim: int | None = None
) -> tuple[int, float] | None:
    """(row, value) of the first row with an entry outside the support; None if all are inside.

    Args:
        support: The support.
        value: Values of any shape.
        row_dim: Which batch dimension the rows are, counted from the right without those of an event; the first if
            None.
    """
    inside = support.check(value)
    if bool(inside.all()):
        return None
    base = base_of(support)
    elementwise = base.check(value) if base.event_dim == 0 else torch.zeros_like(value, dtype=torch.bool)
    value, good = torch.broadcast_tensors(value, elementwise)
    if row_dim is not None:
        dim = row_dim - (value.dim() - inside.dim())
        value, good, inside = value.movedim(dim, 0), good.movedim(dim, 0), inside.movedim(row_dim, 0)
    rows = inside.reshape(len(inside), -1).all(1) if inside.dim() else inside.reshape(1)
    row = int((~rows).nonzero()[0])
    entries, bad = (value[row], ~good[row]) if value.dim() else (value, ~good)
    return row, float(entries.reshape(-1)[bad.reshape(-1)][0])


def entries_outside(support: constraints.Constraint, value: Tensor) -> Tensor:
    """Which numbers of a value lie outside, broadcasting over it: all alike where they are one, as of a simplex.

    Example:
        >>> import torch
        >>> from torch.distributions import constraints
        >>> entries_outside(constraints.independent(constraints.positive, 1), torch.tensor([1.0, -1.0]))
        tensor([False,  True])
    """
    base = base_of(support)
    outside = ~base.check(value)
    return outside.reshape(outside.shape + (1,) * base.event_dim)


def excluded_values(distribution: Any) -> Tensor | None:
    """Which values of a discrete distribution have probability exactly zero, (values, *batch); None if it has no list.

    Probabilities given as zero count: torch replaces them by the smallest number it can tell from zero when it takes
    the logarithm, so that a log-probability does not show them.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> excluded_values(dist.Categorical(torch.tensor([0.5, 0.5, 0.0])))
        tensor([False, False,  True])
    """
    while isinstance(distribution, _WRAPPERS):
        distribution = distribution.base_dist
    try:
        log_prob = distribution.log_prob(distribution.enumerate_support(expand=False))
    except NotImplementedError:
        return None
    impossible = log_prob == -torch.inf
    if isinstance(distribution, Bernoulli):
        zero = torch.stack([1 - distribution.probs, distribution.probs]) == 0
    elif isinstance(distribution, Categorical | OneHotCategorical):
        zero = distribution.probs.movedim(-1, 0) == 0
    else:
        return impossible
    # torch takes the logarithm of its smallest number for that of a probability given as zero; of one that is merely
    # too small to be written, made of logits, it has the logarithm itself.
    floor = math.log(torch.finfo(log_prob.dtype).eps)
    return impossible | (zero & ((log_prob - floor).abs() < 0.01))


def unmixed(support: constraints.Constraint) -> constraints.Constraint:
    """The support of the components of a mixture, where they have one and the same; any other support as it is."""
    if isinstance(support, constraints.independent):
        inner = unmixed(support.base_constraint)
        same = inner is support.base_constraint
        return support if same else constraints.independent(inner, support.reinterpreted_batch_ndims)
    return vars(support)["base_constraint"] if _is_mixture_of_equals(support) else support


def base_of(support: constraints.Constraint) -> constraints.Constraint:
    """The support of a single number or vector, without what repeats or mixes it."""
    while isinstance(support, constraints.independent) or _is_mixture_of_equals(support):
        support = vars(support)["base_constraint"]
    return support


def support_name(support: constraints.Constraint) -> str:
    """A support in words, as in `real` or `interval(0, 1)`."""
    base = base_of(support)
    text = str(base)
    if any(isinstance(end, Tensor) and end.numel() > 1 for end in vars(base).values()):
        ends = (f"{name}={_in_words(end)}" for name, end in vars(base).items())
        text = f"{type(base).__name__}({', '.join(ends)})".lstrip("_")
    return text[0].lower() + text[1:].removesuffix("()")


def _in_words(end: Any) -> str:
    low, high = torch.as_tensor(end).aminmax()
    return f"{float(low):.4g}" if low == high else f"{float(low):.4g} to {float(high):.4g}"


def _image(distribution: TransformedDistribution) -> constraints.Constraint:
    """The support after the transforms: bounds go through those that act on each coordinate, others state theirs."""
    support = support_of(distribution.base_dist)
    for transform in _flat(distribution.transforms):
        limits = bounds(support)
        try:
            codomain = transform.codomain
        except NotImplementedError:
            return _Unstated(len(distribution.event_shape))
        if limits is None or not isinstance(transform, _MONOTONE):
            support = codomain
        else:
            ends = torch.stack(torch.broadcast_tensors(*(_end(transform, end, codomain) for end in limits)))
            low, high = ends.aminmax(dim=0)
            shifted = support.is_discrete and _keeps_integers(transform)
            support = constraints.integer_interval(low, high) if shifted else _interval(low, high, codomain)
    missing = len(distribution.event_shape) - support.event_dim
    return constraints.independent(support, missing) if missing > 0 else support


def _keeps_integers(transform: t.Transform) -> bool:
    """Whether a transform is a shift by whole numbers, or that and a change of sign."""
    if not isinstance(transform, t.AffineTransform):
        return False
    loc, scale = torch.as_tensor(transform.loc), torch.as_tensor(transform.scale)
    return bool((loc % 1 == 0).all()) and bool((scale.abs() == 1).all())


def _end(transform: t.Transform, end: Tensor, codomain: constraints.Constraint) -> Tensor:
    """Image of an end of an interval; torch's sigmoid stops short of the image of an infinite one."""
    image, known = transform(end), bounds(codomain)
    if known is None:
        return image
    nearest = torch.where((image - known[0]).abs() <= (image - known[1]).abs(), *known)
    return torch.where(torch.isinf(end) & torch.isfinite(nearest), nearest, image)


def _interval(lower: Tensor, upper: Tensor, codomain: constraints.Constraint) -> constraints.Constraint:
    """The interval between bounds; the codomain itself where they are its own."""
    known = bounds(codomain)
    if known is not None and bool((lower == known[0]).all()) and bool((upper == known[1]).all()):
        return codomain
    low, high = _plain(lower), _plain(upper)
    if not bool(torch.isfinite(upper).any()):
        return constraints.greater_than(low)
    if not bool(torch.isfinite(lower).any()):
        return constraints.less_than(high)
    return constraints.interval(low, high)


def _plain(end: Tensor) -> Any:
    """A number where all entries are the same."""
    first = end.flatten()[0]
    return float(first) if bool((end == first).all()) else end


def _flat(transforms: Sequence[t.Transform]) -> list[t.Transform]:
    flat: list[t.Transform] = []
    for transform in transforms:
        if isinstance(transform, t.ComposeTransform):
            flat += _flat(transform.parts)
        elif isinstance(transform, t.IndependentTransform):
            flat += _flat([transform.base_transform])
        else:
            flat.append(transform)
    return flat


def _is_mixture_of_equals(support: constraints.Constraint) -> bool:
    """Whether it is the support of a mixture whose components have one and the same."""
    return isinstance(support, constraints.MixtureSameFamilyConstraint) and is_fixed(support.base_constraint)


def _size(end: Tensor) -> Tensor:
    return torch.where(torch.isfinite(end), end.abs(), 0.0).clamp_min(1.0)
