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
from ppl_vae.libraries import is_ours
from ppl_vae.reductions import sum_to_data
from ppl_vae.tape import Layout, Tape

__all__ = ["check_counts", "count_cautions"]

_SHARED = (dist.Multinomial, dist.DirichletMultinomial)
_COUNTS = (dist.Poisson, dist.NegativeBinomial, dist.GammaPoisson, dist.Binomial, dist.BetaBinomial, *_SHARED)
_OF_OURS = ("Poisson", "NegativeBinomial")
_NATS = 0.02


def count_cautions(model: Tape, layout: Layout) -> tuple[str, ...]:
    """What to know of observed sites whose log-probabilities are differences of numbers near n log n."""
    return tuple(_in_words(*found) for found in _found(model, layout))


def check_counts(model: Tape, layout: Layout, start: int) -> None:
    """Checks that no log-probability of counts errs by more than a few hundredths of a nat.

    Args:
        model: A run of the model.
        layout: Layout of the pair.
        start: Number of its first row.

    Raises:
        DataError: Naming the row and the site.
    """
    for name, kind, error in _found(model, layout):
        raise DataError(f"row {start + int(error.argmax())}: {_in_words(name, kind, error)}")


def _found(model: Tape, layout: Layout) -> Iterator[tuple[str, str, Tensor]]:
    """Sites where torch errs, with the name of their distribution and the error of each datum (N,), in nats."""
    for name, site in model.sites.items():
        fn = _underneath(site["fn"])
        if site["is_observed"] and isinstance(fn, _COUNTS) and not is_ours(type(fn).__module__):
            squares = _rounding(fn, site["value"]).square()
            shape = site["fn"].batch_shape
            inner = tuple(range(len(shape), squares.dim()))
            summed = (squares.sum(inner) if inner else squares).expand(shape)
            error = sum_to_data(summed, layout).sqrt().flatten()
            if bool((error > _NATS).any()):
                yield name, distribution_name(fn), error


def _underneath(fn: Any) -> Any:
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return fn


def _rounding(fn: Any, value: Tensor) -> Tensor:
    """One step of numbers near n log n, of which torch takes differences."""
    parameters = [getattr(fn, name, None) for name in fn.arg_constraints]
    kinds = [p.dtype for p in parameters if isinstance(p, Tensor) and p.is_floating_point()]
    size = value.sum(-1) if isinstance(fn, _SHARED) else value
    if not isinstance(fn, _SHARED) and (total := getattr(fn, "total_count", None)) is not None:
        size = torch.maximum(size, torch.as_tensor(total).to(size))
    n = size.double().clamp_min(1)
    return torch.finfo(kinds[0] if kinds else torch.float32).eps * n * n.log()


def _in_words(name: str, kind: str, error: Tensor) -> str:
    ours = f"take ppl_vae.distributions.{kind}, or " if kind in _OF_OURS else ""
    return (
        f"site {name!r}: expected counts whose log-probability torch's {kind} computes to {_NATS} nats, found some "
        f"where it errs by as much as {float(error.max()):.2g}; {ours}compute in double precision (pair.double(), and "
        "data in float64)"
    )
