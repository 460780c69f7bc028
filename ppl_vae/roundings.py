"""How far log-densities are off what they are in double precision: where they are differences of large numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import Independent
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Distribution

from ppl_vae.libraries import is_ours
from ppl_vae.reductions import sum_to_data
from ppl_vae.tape import Layout, Site

__all__ = ["COUNTS", "cancels", "of_data", "off_by", "parts_of"]

COUNTS = (
    dist.Poisson,
    dist.NegativeBinomial,
    dist.GammaPoisson,
    dist.Binomial,
    dist.BetaBinomial,
    dist.Multinomial,
    dist.DirichletMultinomial,
)
# Their log-densities are differences of log-gammas.
_CANCELLING = (*COUNTS, dist.Gamma, dist.InverseGamma, dist.Beta, dist.Dirichlet, dist.StudentT)


def cancels(site: Site) -> bool:
    """Whether torch takes the log-density of a site as a difference of numbers that may be much larger."""
    return any(isinstance(part, _CANCELLING) for part in parts_of(site["fn"]))


def parts_of(fn: Any) -> Iterator[Any]:
    """A distribution and all that it is made of, but for ours."""
    if not is_ours(type(fn).__module__):
        yield fn
        for part in vars(fn).values():
            if isinstance(part, Distribution):
                yield from parts_of(part)


def off_by(site: Site) -> tuple[Tensor, Tensor]:
    """How far the log-densities of a site are off, and what they are in double precision, both without its mask.

    Zeros where a distribution cannot be taken to double precision: it computes with more than tensors.
    """
    fn = site["fn"]
    while isinstance(fn, Independent):  # whose sum is rounded, too, whatever is summed
        fn = fn.base_dist
    try:
        exact = _in_double(fn).log_prob(site["value"].double())
    except Exception:
        return (torch.zeros((), dtype=torch.float64, device=site["value"].device),) * 2
    found = fn.log_prob(site["value"])
    return torch.where(found == exact, 0.0, found.double() - exact), exact


def of_data(terms: Tensor, site: Site, layout: Layout) -> Tensor:
    """The sum of terms of a site for each particle and datum, (K, N)."""
    shape = site["fn"].batch_shape
    inner = tuple(range(len(shape), terms.dim()))
    summed = (terms.sum(inner) if inner else terms).expand(shape)
    return sum_to_data(scale_and_mask(summed, 1.0, site["mask"]), layout)


def _in_double(fn: Any) -> Any:
    """A copy of a distribution whose tensors, and those of what it is made of, are in double precision."""
    made = copy.copy(fn)
    for name, value in vars(fn).items():
        if isinstance(value, Distribution):
            made.__dict__[name] = _in_double(value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            made.__dict__[name] = value.double()
    return made
