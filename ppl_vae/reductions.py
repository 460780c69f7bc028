"""What one recorded site contributes: its log-probability, its scale, and its sum for each particle and datum."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution
from torch import Tensor

from ppl_vae.supports import entries_outside, support_of, support_of_data
from ppl_vae.tape import DATA, Layout, Site

__all__ = [
    "bounded_log_prob",
    "draw_log_prob",
    "has_mask",
    "is_local",
    "is_rescaled",
    "mask_of",
    "nested_scale",
    "outside_support",
    "scale_within_data",
    "site_log_prob",
    "sum_but",
    "sum_to_data",
]


def is_local(site: Site) -> bool:
    """Whether a site lies inside the data plate."""
    return any(frame.name == DATA for frame in site["cond_indep_stack"])


def site_log_prob(site: Site) -> Tensor:
    """The log-density of a site at its value, as its distribution gives it, or as a run kept it."""
    if "unscaled_log_prob" in site:
        return site["unscaled_log_prob"]
    return site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])


def draw_log_prob(site: Site) -> Tensor:
    """The log-density that a latent was drawn with: masks weigh a site, they do not change how it is drawn."""
    return _unmasked(site["fn"]).log_prob(site["value"], *site["args"], **site["kwargs"])


def _unmasked(fn: Any) -> Any:
    if isinstance(fn, MaskedDistribution):
        return _unmasked(fn.base_dist)
    if isinstance(fn, Independent):
        return Independent(_unmasked(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, ExpandedDistribution):
        return _unmasked(fn.base_dist).expand(fn.batch_shape)
    return fn


def bounded_log_prob(site: Site, layout: Layout) -> Tensor:
    """The log-density of a site; minus infinity outside a support that depends on latents, whatever torch computes."""
    log_prob = site_log_prob(site)
    if site["name"] not in layout.bounded:
        return log_prob
    return torch.where(support_of_data(site["fn"]).check(site["value"]), log_prob, -torch.inf)


def mask_of(site: Site) -> Tensor:
    """Which entries of a site count, by the masks of handlers and of its distribution; broadcasts over its value."""
    fn = site["fn"]
    masks = [(True if site["mask"] is None else site["mask"], len(fn.event_shape))]
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        if isinstance(fn, MaskedDistribution):
            masks.append((fn._mask, len(fn.event_shape)))
        fn = fn.base_dist
    found = torch.ones((), dtype=torch.bool, device=site["value"].device)
    for mask, missing in masks:
        given = torch.as_tensor(mask, device=found.device)
        found = found & given.reshape(given.shape + (1,) * missing)
    return found


def has_mask(site: Site) -> bool:
    """Whether a handler or the distribution of a site masks it, whatever the mask."""
    fn = site["fn"]
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    return site["mask"] is not None or isinstance(fn, MaskedDistribution)


def outside_support(site: Site, layout: Layout) -> Tensor:
    """Whether a number of each particle and datum that counts lies outside the support of its site, (K, N)."""
    support = support_of_data(site["fn"]) if site["is_observed"] else support_of(site["fn"])
    outside = (entries_outside(support, site["value"]) & mask_of(site)).float()
    own = len(site["fn"].event_shape)
    return sum_to_data(outside.sum(list(range(-own, 0))) if own else outside, layout) > 0


def scale_within_data(site: Site) -> Tensor | float:
    """The scale of a site without the factor (data set / batch) of the data plate."""
    scale = site["scale"]
    for frame in site["cond_indep_stack"]:
        if frame.name == DATA and frame.size not in (-1, frame.full_size):
            scale = scale * frame.size / frame.full_size
    return scale


def nested_scale(site: Site) -> float:
    """The scale that subsampled plates inside (or beside) the data plate put on a site."""
    frames = (f for f in site["cond_indep_stack"] if f.name != DATA)
    return math.prod(f.full_size / f.size for f in frames if f.size not in (-1, f.full_size))


def is_rescaled(site: Site) -> bool:
    """Whether a site carries a scale that no plate put there."""
    scale = scale_within_data(site)
    return isinstance(scale, Tensor) or not math.isclose(scale, nested_scale(site))


def sum_to_data(log_prob: Tensor, layout: Layout) -> Tensor:
    """Sums every batch dimension but those of the particles and the data: (K, N)."""
    return sum_but(log_prob, layout.particle_dim, layout.data_dim)


def sum_but(log_prob: Tensor, particle_dim: int, data_dim: int | None) -> Tensor:
    """Sums every batch dimension but those of the particles and, unless None, of the data."""
    ndim = -particle_dim
    if log_prob.dim() < ndim:
        log_prob = log_prob.reshape((1,) * (ndim - log_prob.dim()) + log_prob.shape)
    others = [d for d in range(particle_dim + 1, 0) if d != data_dim]
    return log_prob.sum(others) if others else log_prob
