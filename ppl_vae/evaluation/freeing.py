"""Distributions with their parameters set free: every datum gets shifts of its own on the unconstrained parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta, ExpandedDistribution, Independent, MaskedDistribution, TransformedDistribution
from torch import Tensor
from torch.distributions import constraints, transform_to
from torch.distributions import transforms as t

from ppl_vae.errors import PairError
from ppl_vae.supports import is_fixed

__all__ = ["Free", "Parameter", "freed", "name_of"]

# One parameter written in several ways: the last of each line is the one that is free.
_OTHER_FORMS = {"probs": "logits", "covariance_matrix": "scale_tril", "precision_matrix": "scale_tril"}


class Parameter(NamedTuple):
    """A parameter of a distribution that can be shifted."""

    value: Tensor
    """What the guide gives."""
    shape: torch.Size
    """Shape of its shift, one of its own for every entry of the batch."""
    inner: int
    """How many dimensions of the shape lie right of those of the site's plates."""


Free = Callable[[Parameter], Tensor | None]
"""Gives the shift of a parameter; 0 leaves it as it is, None keeps it fixed."""


def freed(fn: Any, free: Free, inner: int = 0) -> Any:
    r"""The distribution at `T(T^-1(theta) + delta)`: delta = 0 is the distribution itself.

    T maps R^n to what a parameter may be. Means move in units of the scale, and a Cholesky factor L becomes
    `L T(delta)`, so that one step size suits all. Distributions made by a flow, and transformed ones, keep their
    transforms: of a flow whose parameters cannot be reached, location and scale of its values are free.

    Args:
        fn: The distribution.
        free: Gives the shift of each parameter, in a fixed order.
        inner: Event dimensions of the site that are batch dimensions here.

    Raises:
        PairError: There is no parameter to shift; the site is not known here, the caller names it.
    """
    if isinstance(fn, MaskedDistribution):
        return MaskedDistribution(freed(fn.base_dist, free, inner), fn._mask)
    if isinstance(fn, Independent):
        ndims = fn.reinterpreted_batch_ndims
        return Independent(freed(fn.base_dist, free, inner + ndims), ndims)
    if isinstance(fn, ExpandedDistribution):
        return _rebuilt(fn.base_dist, free, inner, fn.batch_shape)
    if fn.arg_constraints:
        return _rebuilt(fn, free, inner, fn.batch_shape)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        return TransformedDistribution(freed(fn.base_dist, free, inner), fn.transforms)
    return _moved(fn, free, inner)


def name_of(fn: Any) -> tuple[str, bool]:
    """What a distribution is called, and whether all of its parameters can be free.

    Example:
        >>> import pyro.distributions as dist
        >>> name_of(dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        ('Normal', True)
    """
    while isinstance(fn, MaskedDistribution | Independent | ExpandedDistribution):
        fn = fn.base_dist
    return type(fn).__name__, bool(fn.arg_constraints)


def _rebuilt(fn: Any, free: Free, inner: int, batch_shape: torch.Size) -> Any:
    """The same distribution with every parameter shifted."""
    if isinstance(fn, Delta):
        raise PairError("found a point, which has no density to compare")
    values, num_free = {}, 0
    for name in _arguments(fn):
        value = getattr(fn, name, None)
        constraint = fn.arg_constraints.get(name)
        if constraint is not None and not constraint.is_discrete:
            value = _shifted(fn, name, value, constraint, free, inner, batch_shape)
            num_free += 1
        if value is not None:
            values[name] = value
    if not num_free:
        raise PairError(f"found {type(fn).__name__}, without parameters of which torch says what they may be")
    return type(fn)(**values)


def _arguments(fn: Any) -> Iterator[str]:
    """Arguments that make the distribution, each of several forms once."""
    known = inspect.signature(type(fn).__init__).parameters
    for name, argument in known.items():
        plain = argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
        if plain and name not in ("self", "validate_args") and _OTHER_FORMS.get(name) not in known:
            yield name


def _shifted(
    fn: Any, name: str, value: Any, constraint: Any, free: Free, inner: int, batch_shape: torch.Size
) -> Tensor:
    transform = transform_to(constraint) if is_fixed(constraint) else None
    if transform is None:
        raise PairError(f"found {type(fn).__name__}, whose {name} may be what another parameter allows")
    value = torch.as_tensor(value)
    event = value.shape[value.dim() - max(constraint.event_dim, value.dim() - len(batch_shape)) :]
    inverse = transform.inverse_shape(event)
    delta = free(Parameter(value, batch_shape + inverse, inner + len(inverse)))
    if delta is None:
        return value
    if isinstance(transform, t.LowerCholeskyTransform):
        return value @ transform(delta)
    return transform(transform.inv(value) + _unit(fn, name, value) * delta)


def _unit(fn: Any, name: str, value: Tensor) -> Tensor | float:
    """The scale in which a parameter moves: that of the distribution for one in the unit of its values."""
    if name not in ("loc", "cov_factor"):
        return 1.0
    scale = getattr(fn, "scale", None)
    scale = fn.stddev if scale is None else scale
    return scale.unsqueeze(-1) if name == "cov_factor" else scale


def _moved(fn: Any, free: Free, inner: int) -> Any:
    """A distribution of unknown parameters with location and scale of its values free."""
    event_dim = len(fn.event_shape)
    if not fn.has_rsample or fn.support not in (constraints.real, constraints.real_vector):
        raise PairError(f"found {type(fn).__name__}, of whose parameters nothing is known")
    shape = fn.batch_shape + fn.event_shape
    unit = torch.ones(())
    shifts = [free(Parameter(unit, shape, inner + event_dim)) for _ in range(2)]
    loc, log_scale = (unit.new_zeros(shape) if shift is None else shift for shift in shifts)
    # With a cache the inverse of a draw is the very draw, whose density a flow knows without inverting itself.
    return TransformedDistribution(fn, [t.AffineTransform(loc, log_scale.exp(), event_dim, cache_size=1)])
