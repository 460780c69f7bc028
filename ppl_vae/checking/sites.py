"""Small questions about a recorded sample site."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta, ExpandedDistribution, Independent, MaskedDistribution
from torch import Tensor

from ppl_vae.tape import Site

__all__ = ["distribution_name", "frame_of", "is_point", "mask_of"]


def frame_of(site: Site, name: str) -> Any:
    """The frame of the plate of that name around a site, or None."""
    return next((f for f in site["cond_indep_stack"] if f.name == name), None)


def is_point(site: Site) -> bool:
    """Whether the site is a point mass."""
    return isinstance(getattr(site["fn"], "base_dist", site["fn"]), Delta)


def distribution_name(fn: Any) -> str:
    """Name of the distribution underneath expansions, masks and event dimensions."""
    while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__


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
