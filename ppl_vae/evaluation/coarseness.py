"""How far rounding moves log-weights whose terms cancel: a look at a few draws in double precision."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from ppl_vae.evaluation.probing import looked
from ppl_vae.pair import Pair
from ppl_vae.rng import seeded
from ppl_vae.roundings import cancels, of_data, off_by
from ppl_vae.tape import Batch, Layout, Site, Tape, run_program
from ppl_vae.terms import outer_plates

__all__ = ["COARSE", "HIDDEN", "ROUNDING", "rounding_of_terms", "rounds", "warn_of_rounding"]

ROUNDING = "rounding: use double precision (pair.double(), and data of it)"

HIDDEN = (
    "log-weights or latents are so large that rounding hides how weights differ: their estimate may be off by any "
    "amount; use a better guide, or data and double precision that leave smaller numbers"
)

COARSE = 1e-3
"""Nats; what rounding adds below it a mean may have, too."""

_DRAWS, _LOOKED_AT = 4, 16
_FINE = 1e-10  # of double precision


def rounds(pair: Pair, batch: Batch, layout: Layout, guide: Tape) -> bool:
    """Whether a pair, of which a run of the guide on some data is given, has terms that cancel in its precision."""
    with seeded(0, batch[0].device):
        latents = None if layout.may_leave_support else guide.latents
        model = run_program(pair, pair.model, batch, None, layout, latents)
    return any(_is_coarse(site) for tape in (guide, model) for site in tape.sites.values())


def rounding_of_terms(pair: Pair, batch: Batch, layout: Layout, seed: int, device: torch.device) -> np.ndarray:
    """Root mean square of what rounding within log-densities does to the log-weight of a draw, (N,), in nats.

    Of the sites whose log-densities are differences of large numbers, as that of a count of 10,000, or of a Gamma
    latent of as large parameters; 0 where nothing can be told.
    """

    def look() -> np.ndarray:
        with seeded(seed, device):
            off = torch.cat([_off(pair, batch, layout, size) for size in outer_plates(_DRAWS, layout)])
        return off.square().mean(0).sqrt().cpu().numpy()

    return np.nan_to_num(looked(look, np.zeros(len(batch[0]))), posinf=0.0)


def warn_of_rounding(pair: Pair, batch: Batch, layout: Layout, what: str) -> None:
    """Warns where single data are off by rounding within log-densities that a result has no error for.

    Args:
        pair: The pair.
        batch: Data, of which a few are looked at.
        layout: Of the pair.
        what: The result, in words.
    """
    some = tuple(x[:_LOOKED_AT] for x in batch)
    off = rounding_of_terms(pair, some, layout, 0, batch[0].device)
    if (typical := float(np.sqrt(np.square(off).mean()))) > COARSE:
        warnings.warn(
            f"{what}: off by about {typical:.2g} nats for a datum, which no error in it tells, from {ROUNDING}",
            UserWarning,
            stacklevel=2,
        )


def _off(pair: Pair, batch: Batch, layout: Layout, size: int | None) -> Tensor:
    """How far the log-weights of a run are off, (K, N)."""
    guide = run_program(pair, pair.guide, batch, size, layout)
    model = run_program(pair, pair.model, batch, size, layout, guide.latents)
    off = torch.zeros(size or 1, len(batch[0]), dtype=torch.float64, device=batch[0].device)
    for sign, tape in ((1, model), (-1, guide)):
        for site in filter(_is_coarse, tape.sites.values()):
            off = off + sign * of_data(off_by(site)[0], site, layout).reshape(-1, off.shape[1])
    return off


def _is_coarse(site: Site) -> bool:
    value = site["value"]
    return cancels(site) and (not value.is_floating_point() or torch.finfo(value.dtype).eps > _FINE)
