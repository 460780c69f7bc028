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
    made, filled = list(batch), [torch.zeros_like(array, dtype=torch.bool) for array in batch]
    for name, value in drawn.simulated.items():
        counts = mask_of(as_given.sites[name]).expand(value.shape)
        if not bool(counts.any()):
            continue
        places = _places(name, value, counts, as_given, batch)
        i = places[0] if len(places) == 1 else _observed(name, value, counts, places, pair, batch, guide, layout)
        new, own = value.reshape(batch[i].shape).to(batch[i].dtype), counts.reshape(batch[i].shape)
        if bool((filled[i] & own).any()):
            raise PairError(
                f"site {name!r}: expected an argument of its own, found that another site observes the same entries of "
                f"argument {i}: data that two sites draw cannot be simulated"
            )
        made[i], filled[i] = torch.where(own, new, made[i]), filled[i] | own
    return Simulated(tuple(made), drawn.latents)


def _places(name: str, drawn: Tensor, counts: Tensor, as_given: Tape, batch: Batch) -> list[int]:
    """Arguments that a site may be observed at: the one that it is given as it is, or those of the same numbers."""
    value = as_given.sites[name]["value"]
    for i, array in enumerate(batch):
        if value is array:
            return [i]
    alike = [i for i, array in enumerate(batch) if _agree(value, array, counts)]
    if not alike:
        raise _not_simulated(name)
    return [*alike, -1]  # equal numbers are no proof


def _observed(
    name: str, drawn: Tensor, counts: Tensor, places: list[int], pair: Pair, batch: Batch, guide: Tape, layout: Layout
) -> int:
    """The one argument that the site follows when simulated data are put there."""
    for i in places[:-1]:
        new, own = drawn.reshape(batch[i].shape).to(batch[i].dtype), counts.reshape(batch[i].shape)
        tried = torch.where(own, new, batch[i])
        with_new = [*batch[:i], tried, *batch[i + 1 :]]
        tape = run_program(pair, pair.model, with_new, None, layout, guide.latents)
        if _agree(tape.sites[name]["value"], tried, counts):
            return i
    raise _not_simulated(name)


def _agree(value: Tensor, array: Tensor, counts: Tensor) -> bool:
    """Whether a site is observed at the numbers of an argument, row by row, where it counts."""
    alike = value.numel() == array.numel() and len(value) == len(array)
    return alike and bool(((value.reshape(array.shape) == array) | ~counts.reshape(array.shape)).all())


def _not_simulated(name: str) -> PairError:
    return PairError(
        f"site {name!r}: expected to be observed at one of the arguments of the model, row by row, found other values: "
        "data cannot be simulated; pass what is observed as an argument"
    )
