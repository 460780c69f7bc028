"""Data drawn from the model of a pair, with the latents that made them: exact draws of the posterior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.checking.sites import mask_of
from ppl_vae.errors import PairError
from ppl_vae.pair import Pair
from ppl_vae.tape import Batch, Layout, Tape, run_program

__all__ = ["Simulated", "simulate"]


class Simulated(NamedTuple):
    """One ancestral draw for each row of a batch."""

    batch: tuple[Tensor, ...]
    """Arguments of the programs, with simulated data where the model observes them."""
    latents: dict[str, Tensor]
    """The latents that made them, by site."""


def simulate(pair: Pair, batch: Batch, layout: Layout) -> Simulated:
    """Draws z from the prior and x from p(x given z); arguments that the model does not observe stay as they are.

    So do the entries of those that a mask takes away.

    Raises:
        PairError: A site is observed at something else than one of the arguments, row by row.
    """
    guide = run_program(pair, pair.guide, batch, None, layout)
    as_given = run_program(pair, pair.model, batch, None, layout, guide.latents)
    drawn = run_program(pair, pair.model, batch, None, layout, simulate=True)
    made = list(batch)
    for name, value in drawn.simulated.items():
        counts = mask_of(as_given.sites[name]).expand(value.shape)
        if bool(counts.any()):
            i = _argument(name, as_given, batch, counts)
            new = value.reshape(batch[i].shape).to(batch[i].dtype)
            made[i] = torch.where(counts.reshape(batch[i].shape), new, batch[i])
    return Simulated(tuple(made), drawn.latents)


def _argument(name: str, as_given: Tape, batch: Batch, counts: Tensor) -> int:
    """Which argument a site is observed at, where it counts."""
    value = as_given.sites[name]["value"]
    for i, array in enumerate(batch):
        alike = value.numel() == array.numel() and len(value) == len(array)
        if alike and bool(((value.reshape(array.shape) == array) | ~counts.reshape(array.shape)).all()):
            return i
    raise PairError(
        f"site {name!r}: expected to be observed at one of the arguments of the model, row by row, found other values: "
        "data cannot be simulated; pass what is observed as an argument"
    )
