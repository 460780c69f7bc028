"""Counts so large that torch's log-probability of them is lost to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution
from torch import Tensor

from ppl_vae.checking.sites import distribution_name
from ppl_vae.errors import DataError
from ppl_vae.reductions import mask_of, site_log_prob
from ppl_vae.roundings import COUNTS, of_data, off_by, parts_of
from ppl_vae.tape import Layout, Site, Tape

__all__ = ["check_counts", "count_cautions"]

_SHARED = (dist.Multinomial, dist.DirichletMultinomial)
_OF_OURS = ("Poisson", "NegativeBinomial")
_NATS = 0.02


def count_cautions(model: Tape, layout: Layout) -> tuple[str, ...]:
    """What to know of observed sites whose log-probabilities are differences of numbers near n log n."""
    return tuple(_in_words(*found) for found in _found(model, layout))


def check_counts(model: Tape, layout: Layout, start: int) -> None:
    """Checks that torch's log-probabilities of counts, alone or in mixtures, err by 0.02 nats of a datum at most.

    Their error is what a run in double precision finds, or one rounding of each count, of which many add up as
    independent ones do, whichever is more.

    Args:
        model: A run of the model.
        layout: Layout of the pair.
        start: Number of its first row.

    Raises:
        DataError: Naming the row and the site.
    """
    for name, fn, error in _found(model, layout):
        raise DataError(f"row {start + int(error.argmax())}: {_in_words(name, fn, error)}")


def _found(model: Tape, layout: Layout) -> Iterator[tuple[str, Any, Tensor]]:
    """Sites where torch errs, with what errs there and the error of each datum (N,), in nats."""
    for name, site in model.sites.items():
        errs = [part for part in parts_of(site["fn"]) if isinstance(part, COUNTS)]
        if site["is_observed"] and errs:
            steps = _rounding(site, errs)
            if bool((of_data(steps, site, layout) > _NATS).any()):
                independent = of_data(steps.square(), site, layout).flatten().sqrt()
                error = torch.maximum(independent, _measured(site, layout))
                if bool((error > _NATS).any()):
                    yield name, errs[0], error


def _rounding(site: Site, errs: list[Any]) -> Tensor:
    """One step of numbers near n log n, of which torch takes differences, for each count that no mask takes away."""
    value, counts = site["value"].double(), mask_of(site).expand(site["value"].shape)
    is_shared = isinstance(errs[0], _SHARED)
    size, counts = (value.sum(-1), counts.any(-1)) if is_shared else (value, counts)
    for part in errs:
        if not is_shared and (total := getattr(part, "total_count", None)) is not None:
            total = torch.as_tensor(total).to(size)
            size = torch.maximum(size, total if part is _underneath(site["fn"]) else total.max())
    n = size.clamp_min(1)
    return torch.finfo(site_log_prob(site).dtype).eps * n * n.log() * counts


def _measured(site: Site, layout: Layout) -> Tensor:
    """How far log-probabilities are off those in double precision, but for what rounds them once, (N,).

    Zero where a distribution cannot be taken to double precision: it computes with more than tensors.
    """
    off, exact = off_by(site)
    off, once = (
        of_data(part, site, layout).flatten() for part in (off, torch.finfo(site_log_prob(site).dtype).eps * exact)
    )
    return (off.abs() - once.abs()).clamp_min(0).nan_to_num()


def _underneath(fn: Any) -> Any:
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return fn


def _in_words(name: str, fn: Any, error: Tensor) -> str:
    kind = distribution_name(fn)
    ours = f"take ppl_vae.distributions.{kind}, or " if kind in _OF_OURS else ""
    return (
        f"site {name!r}: expected counts whose log-probability torch's {kind} computes to {_NATS} nats, found some "
        f"where it errs by as much as {float(error.max()):.2g}; {ours}compute in double precision (pair.double(), and "
        "data in float64)"
    )
