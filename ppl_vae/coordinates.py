"""The scalars of a latent value, one by one: how far the guide of each is from its prior."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pyro.distributions import ExpandedDistribution, Normal
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal

from ppl_vae.kl import analytic_kl
from ppl_vae.reductions import has_mask
from ppl_vae.tape import Layout, Site

__all__ = ["Form", "ScalarKL", "by_datum", "data_second", "scalar_kl"]


Form = Literal["each", "marginal", "whole"]


class ScalarKL(NamedTuple):
    """KL(q, p) of a latent site, scalar by scalar."""

    values: Tensor
    """(K, N, D), in nats: in closed form where there is one, else log q - log p of one draw."""
    form: Form
    """`each`: both factorise over the D scalars, and the sum is the KL of the site. `marginal`: KL of the marginals of
    scalars that depend on each other. `whole`: the value is not taken apart, D = 1."""


def scalar_kl(guide: Site, model: Site, layout: Layout) -> ScalarKL:
    """KL(q, p) of every scalar of a latent site, for each particle and datum.

    Args:
        guide: The site in a run of the guide.
        model: The same site in a run of the model on those draws.
        layout: Layout of the pair.

    Example:
        >>> import torch, ppl_vae as pv
        >>> from ppl_vae.tape import run_program
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> batch = (torch.zeros(3, 2),)
        >>> layout, pair = pv.check(ppca, batch).layout, pv.as_pair(ppca)
        >>> guide = run_program(pair, pair.guide, batch, None, layout)
        >>> model = run_program(pair, pair.model, batch, None, layout, guide.latents)
        >>> scalar_kl(guide.sites["z"], model.sites["z"], layout).values.shape
        torch.Size([1, 3, 1])
    """
    q, p = _scalars(guide["fn"]), _scalars(model["fn"])
    if q is None or p is None or has_mask(guide):
        whole = _kl(guide["fn"], model["fn"], guide, layout)
        return ScalarKL(by_datum(scale_and_mask(whole, 1.0, guide["mask"]), 0, layout), "whole")
    each = _kl(q.fn, p.fn, guide, layout)
    return ScalarKL(
        by_datum(each, guide["fn"].event_dim, layout), "each" if q.independent and p.independent else "marginal"
    )


def by_datum(values: Tensor, event_dim: int, layout: Layout) -> Tensor:
    """Numbers of a site as (K, N, D): all of a datum in one row, whatever the plates within it."""
    found = data_second(values, event_dim, layout)
    return found.reshape(*found.shape[:2], -1)


def data_second(values: Tensor, event_dim: int, layout: Layout) -> Tensor:
    """Numbers of a site as (K, N, *rest), the rest being other plates of more than one row, then the event."""
    missing = -layout.particle_dim - (values.dim() - event_dim)
    full = values.reshape((1,) * missing + values.shape)
    moved = full.movedim(full.dim() - event_dim + layout.data_dim, 1)
    plates = [size for size in moved.shape[2 : moved.dim() - event_dim] if size != 1]
    return moved.reshape(*moved.shape[:2], *plates, *moved.shape[moved.dim() - event_dim :])


def _kl(q: Any, p: Any, guide: Site, layout: Layout) -> Tensor:
    closed = analytic_kl(q, p) if guide["name"] in layout.analytic else None
    return q.log_prob(guide["value"]) - p.log_prob(guide["value"]) if closed is None else closed


class _Scalars(NamedTuple):
    """A distribution of every scalar of a value."""

    fn: Any
    independent: bool


def _scalars(fn: Any) -> _Scalars | None:
    """The distribution of each scalar, with the event dimensions as batch; None where it is not known."""
    if not fn.event_shape:
        return _Scalars(fn, True)
    if isinstance(fn, ExpandedDistribution):
        inner = _scalars(fn.base_dist)
        return inner and _Scalars(inner.fn.expand(fn.batch_shape + fn.event_shape), inner.independent)
    if isinstance(fn, Independent):
        return _scalars(fn.base_dist)
    if isinstance(fn, MultivariateNormal | LowRankMultivariateNormal):
        return _Scalars(Normal(fn.mean, fn.variance.sqrt()), False)
    return None
