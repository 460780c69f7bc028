"""Probability or density: what kind of number the log-likelihood of a pair is, and whether the data can bear it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ppl_vae.checking.probes import quiet, trace
from ppl_vae.checking.sites import distribution_name
from ppl_vae.pair import Pair
from ppl_vae.supports import support_of
from ppl_vae.tape import Site, Tape

__all__ = ["density_cautions", "kind_of_density"]

_ENTRIES = 1 << 16
_MOST_LEVELS, _TIMES = 256, 10  # as many as a byte has, each seen ten times


def kind_of_density(pair: Pair, batch: Sequence[Tensor]) -> Literal["probability", "density"]:
    """Whether p(x) is the probability of a datum, or a density in one of its observed sites.

    A probability is at most 1, a density has no bound: one cannot be set against the other.
    """
    with quiet(pair):
        model = trace(pair, "model", [x.to(pair.device) for x in batch])
    observed = [site for site in model.sites.values() if site["is_observed"]]
    return "density" if any(map(_is_continuous, observed)) else "probability"


def density_cautions(model: Tape) -> tuple[str, ...]:
    """What to know of observed sites that give a density to data of a few levels, such as grey or binary pixels.

    The density of such data has no upper bound: a scale that shrinks around a level raises it for ever.
    """
    observed = {name: site for name, site in model.sites.items() if site["is_observed"] and _is_continuous(site)}
    levels = {name: _num_levels(site["value"]) for name, site in observed.items()}
    return tuple(
        f"site {name!r}: {distribution_name(observed[name]['fn'])} gives a density to data of only {count} levels, "
        "which has no upper bound: its log p(x) says nothing, and compares with no probability; dequantise the data "
        "(ppl_vae.data.dequantize), or take a likelihood for discrete data"
        for name, count in levels.items()
        if count is not None
    )


def _is_continuous(site: Site) -> bool:
    return not support_of(site["fn"]).is_discrete


def _num_levels(value: Tensor) -> int | None:
    """How many different numbers there are, where they are few and each comes again and again."""
    entries = value.detach().flatten()[:_ENTRIES]
    count = len(entries.unique())
    return count if count <= _MOST_LEVELS and count * _TIMES <= len(entries) else None
