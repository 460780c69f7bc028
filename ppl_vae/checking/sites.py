"""Small questions about a recorded sample site."""

from __future__ import annotations

from typing import Any

from pyro.distributions import Delta

from ppl_vae.tape import Site

__all__ = ["distribution_name", "frame_of", "is_point"]


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
