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
        PairError: A site is observed at something else than one of the arguments, row by row; it cannot be sampled; or
            its argument is of a type that does not hold what it draws.
    """
    guide = run_program(pair, pair.guide, batch, None, layout)
    as_given = run_program(pair, pair.model, batch, None, layout, guide.latents)
    drawn = run_program(pair, pair.model, batch, None, layout, simulate=True)
    made, filled = list(batch), [torch.zeros_like(array, dtype=torch.bool) for array in batch]
    for name, value in drawn.simulated.items():
        counts = mask_of(as_given.sites[name]).expand(value.shape)
        if not bool(counts.any()):
            continue
        sampled = _Drawn(value, counts)
        i = _argument(name, sampled, as_given, pair, batch, layout)
        sampled.check_held_by(batch[i], name)
        if torch.equal(sampled.into(batch[i]), batch[i]):  # equal arguments cannot be told apart by it, and need not be
            continue
        own = counts.reshape(batch[i].shape)
        if bool((filled[i] & own).any()):
            raise PairError(
                f"site {name!r}: expected an argument of its own, found that another site observes the same entries of "
                f"argument {i}: what two sites draw cannot be one datum"
            )
        made[i], filled[i] = sampled.into(made[i]), filled[i] | own
    return Simulated(tuple(made), drawn.latents)


class _Drawn(NamedTuple):
    """A simulated value of an observed site."""

    value: Tensor
    """The value."""
    counts: Tensor
    """Where no mask takes it away."""

    def into(self, array: Tensor) -> Tensor:
        """An argument with the value in it."""
        new = self.value.reshape(array.shape).to(array.dtype)
        return torch.where(self.counts.reshape(array.shape), new, array)

    def check_held_by(self, array: Tensor, name: str) -> None:
        """An argument holds the value as it is, but for the rounding of real numbers.

        Raises:
            PairError: It is of whole numbers, and the value is not.
        """
        kept = self.value.to(array.dtype).to(self.value.dtype) == self.value
        if array.is_floating_point() or bool((kept | ~self.counts).all()):
            return
        lost = float(self.value[~kept & self.counts][0])
        kind = str(array.dtype).removeprefix("torch.")
        raise PairError(
            f"site {name!r}: expected data of a type that holds what the model draws, found {kind} and a draw of "
            f"{lost:.4g}, which would be cut off; give the data as real numbers (x.float())"
        )

    def is_at(self, observed: Tensor, array: Tensor) -> bool:
        """Whether what a site observes, where it counts, is an argument, row by row."""
        alike = observed.numel() == array.numel() and len(observed) == len(array)
        return alike and bool(((observed.reshape(array.shape) == array) | ~self.counts.reshape(array.shape)).all())


def _argument(name: str, drawn: _Drawn, as_given: Tape, pair: Pair, batch: Batch, layout: Layout) -> int:
    """Which argument a site observes: that tensor, or the one that it follows to the simulated value."""
    observed = as_given.sites[name]["value"]
    for i, array in enumerate(batch):
        if observed is array:
            return i
    for i, array in enumerate(batch):
        if drawn.is_at(observed, array):  # equal numbers alone are no proof
            new = drawn.into(array)
            tape = run_program(pair, pair.model, [*batch[:i], new, *batch[i + 1 :]], None, layout, as_given.replay)
            if drawn.is_at(tape.sites[name]["value"], new):
                return i
    raise PairError(
        f"site {name!r}: expected to be observed at one of the arguments of the model, row by row, found other values: "
        "data cannot be simulated; pass what is observed as an argument, or use annealed_importance_sampling or "
        "log_likelihood, which need no simulated data"
    )
