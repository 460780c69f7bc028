"""Reads the layout of a pair off one run of its programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ppl_vae.checking.sites import frame_of, is_point
from ppl_vae.kl import analytic_kl
from ppl_vae.reductions import is_rescaled, mask_of
from ppl_vae.supports import covers, first_outside, support_of
from ppl_vae.tape import DATA, Layout, Site, Tape

__all__ = ["cardinalities", "find_layout", "observed_size", "stated_size"]


def find_layout(guide: Tape, model: Tape, bounded: frozenset[str]) -> Layout:
    """The layout of a pair whose sites and plates have passed the rules; `bounded` are the sites of that field."""
    sites = [*model.sites.values(), *guide.sites.values()]
    frames = [f for s in sites for f in s["cond_indep_stack"]]
    nesting = max([-f.dim for f in frames] + [len(s["fn"].batch_shape) for s in sites])
    data_dim = next(f.dim for f in frames if f.name == DATA)
    latents = [n for n in guide.sites if n in model.latents]
    local = [n for n in latents if frame_of(guide.sites[n], DATA)]
    return Layout(
        data_dim=data_dim,
        particle_dim=-1 - nesting,
        vectorized=True,
        local_latents=tuple(local),
        global_latents=tuple(n for n in latents if n not in local),
        analytic=frozenset(n for n in local if _has_analytic_kl(n, guide, model)),
        cardinalities=cardinalities(guide, local),
        points=tuple(n for n in latents if is_point(guide.sites[n])),
        not_reparametrised=tuple(n for n in latents if not guide.sites[n]["fn"].has_rsample),
        may_leave_support=frozenset(n for n in latents if _may_leave(guide.sites[n], model.sites[n])),
        bounded=bounded,
        reconstructed=tuple(n for n, s in model.sites.items() if (s["infer"] or {}).get("is_reconstruction")),
        rescaled=any(is_rescaled(s) for s in sites),
        subsampled=any(f.name != DATA and f.size not in (-1, f.full_size) for f in frames),
        full_size=stated_size(model),
        num_dimensions=observed_size(model),
    )


def observed_size(model: Tape) -> int:
    """How many numbers of a datum are observed where no mask takes them away; 0 where it differs among data."""
    sizes = [_sizes_in_data(site) for site in model.sites.values() if site["is_observed"]]
    each = torch.stack(sizes).sum(0) if sizes else torch.zeros(1)
    return int(each[0]) if bool((each == each[0]).all()) else 0


def _sizes_in_data(site: Site) -> Tensor:
    """Entries of a site's value that belong to each datum and count, (N,)."""
    dim = frame_of(site, DATA).dim - site["fn"].event_dim
    counts = mask_of(site).expand(site["value"].shape).movedim(dim, 0)
    return counts.reshape(len(counts), -1).sum(1)


def stated_size(model: Tape) -> int | None:
    """Number of rows of the whole data set where the data plate states more than those of the batch."""
    frames = [frame for site in model.sites.values() if (frame := frame_of(site, DATA)) is not None]
    return next((f.full_size for f in frames if f.size not in (-1, f.full_size)), None)


def _may_leave(guide: Site, model: Site) -> bool:
    of_guide, of_model = support_of(guide["fn"]), support_of(model["fn"])
    contained = None if is_point(guide) else covers(of_model, of_guide)
    return first_outside(of_model, guide["value"]) is not None if contained is None else not contained


def _has_analytic_kl(name: str, guide: Tape, model: Tape) -> bool:
    """A closed form integrates z out with its parents held: they must come before it in the guide, as in the model."""
    q, p = guide.sites[name], model.sites[name]
    if not _same(q["scale"], p["scale"]):
        return False
    order, of_guide = list(model.latents), list(guide.sites)
    parents = order[: order.index(name)]
    if any(of_guide.index(parent) > of_guide.index(name) for parent in parents):
        return False
    try:
        return analytic_kl(guide.sites[name]["fn"], model.sites[name]["fn"]) is not None
    except RuntimeError:  # parameters that do not broadcast, as of categoricals of different sizes
        return False


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return torch.equal(left, right)
    return left is right or (isinstance(left, int | float) and left == right)


def cardinalities(guide: Tape, local: Iterable[str]) -> Mapping[str, int]:
    """Number of values of those local latents that can be gone through, as many at every row of the run."""
    sizes = {}
    for name in local:
        site = guide.sites[name]
        nested = len(site["cond_indep_stack"]) > 1
        if site["fn"].has_enumerate_support and not nested:
            with suppress(NotImplementedError):  # as many values as the row says
                sizes[name] = len(site["fn"].enumerate_support(expand=False))
    return sizes
