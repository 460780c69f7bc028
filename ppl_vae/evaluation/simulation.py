"""Data drawn from the model of a pair, with the latents that made them: exact draws of the posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.errors import PairError
from ppl_vae.pair import Pair
from ppl_vae.reductions import mask_of
from ppl_vae.rng import current_state, restore_state
from ppl_vae.tape import Batch, Layout, Tape, run_program

__all__ = ["Simulated", "simulate"]

_ROUNDING = 1e-4  # of a number and of what takes its place: convolutions round what they do not read
_IN_ORDER = "let each number read only those before it"


class Simulated(NamedTuple):
    """One ancestral draw for each row of a batch."""

    batch: tuple[Tensor, ...]
    """Arguments of the programs, with simulated data where the model observes them."""
    latents: dict[str, Tensor]
    """The latents that made them, by site."""


def simulate(pair: Pair, batch: Batch, layout: Layout) -> Simulated:
    """Draws z from the prior and x from p(x given z); arguments that the model does not observe stay as they are.

    So do the entries of those that a mask takes away. A distribution may read observed arguments, as a decoder reads
    the pixels before its own: the model is run again on what it has drawn, with the same noise, until that stays as it
    is. Each run settles one of the D numbers of a datum at least, in the order in which they depend on each other.
    That there is such an order is seen from other numbers in the place of one of each datum, which must not change what
    is drawn for it.

    Raises:
        PairError: A site is observed at something else than one of the arguments, row by row, or at no number
            (`pyro.factor`); it cannot be sampled; its argument is of a type that does not hold what it draws; its
            mask depends on what it draws; draws do not settle; or they settle though numbers depend on themselves.
    """
    latents = run_program(pair, pair.guide, batch, None, layout).latents
    noise = current_state(batch[0].device)

    def again(batch: Batch) -> _Run:
        restore_state(noise)
        return _run(pair, batch, layout, latents)

    first = made = _run(pair, batch, layout, latents)
    count = 0
    while made.moved and count < first.num_entries:
        made, count = again(made.batch), count + 1
    _check_settled(first, made)
    if count > 1:  # or nothing reads what is drawn
        _check_order(made, _run(pair, made.batch, layout, latents).batch, again, count)
    return Simulated(made.batch, made.latents)


class _Run(NamedTuple):
    """What one run of the model draws."""

    batch: tuple[Tensor, ...]
    """Arguments, with its draws where the model observes them."""
    latents: dict[str, Tensor]
    """Latents, by site."""
    counts: dict[str, Tensor]
    """Which entries of an observed site no mask takes away."""
    moved: tuple[str, ...]
    """Observed sites whose draws are not what the arguments held."""

    @property
    def num_entries(self) -> int:
        """How many numbers of a datum are drawn, at most."""
        rows = len(self.batch[0])
        return sum(int(counts.reshape(rows, -1).sum(1).max()) for counts in self.counts.values())


def _run(pair: Pair, batch: Batch, layout: Layout, latents: dict[str, Tensor]) -> _Run:
    """Draws once, where distributions read the arguments that there are; `latents` tell what sites observe."""
    as_given = run_program(pair, pair.model, batch, None, layout, latents)
    drawn = run_program(pair, pair.model, batch, None, layout, simulate=True)
    made, filled = list(batch), [torch.zeros_like(array, dtype=torch.bool) for array in batch]
    every, moved = {}, []
    for name, value in drawn.simulated.items():
        if not value.numel():
            raise PairError(
                f"site {name!r}: expected a model of sites that are drawn, found one that observes no number and only "
                "adds to log p(x, z), as pyro.factor does: what is drawn owes nothing to it, so that data cannot be "
                "simulated; use log_likelihood or annealed_importance_sampling, which count it"
            )
        counts = mask_of(as_given.sites[name]).expand(value.shape)
        if not bool(counts.any()):
            continue
        sampled = _Drawn(value, counts)
        i = _argument(name, sampled, as_given, pair, batch, layout)
        sampled.check_held_by(batch[i], name)
        every[name] = counts
        if bool(_alike(sampled.into(batch[i]), batch[i]).all()):
            continue  # equal arguments cannot be told apart by it, and need not be
        own = counts.reshape(batch[i].shape)
        if bool((filled[i] & own).any()):
            raise PairError(
                f"site {name!r}: expected an argument of its own, found that another site observes the same entries of "
                f"argument {i}: what two sites draw cannot be one datum"
            )
        made[i], filled[i] = sampled.into(made[i]), filled[i] | own
        moved.append(name)
    return _Run(tuple(made), drawn.latents, every, tuple(moved))


def _check_settled(first: _Run, last: _Run) -> None:
    """The last run has found its draws among its arguments, and the entries that count are those of the first."""
    if last.moved:
        raise PairError(
            f"site {last.moved[0]!r}: expected draws that settle once the arguments hold them, after "
            f"{first.num_entries + 1} runs at most, found that they still change: its distribution reads the numbers "
            "that it scores, so that it is no density of them, or the noise of one row depends on another, as in Gamma "
            f"and Poisson that read observed arguments; {_IN_ORDER}, or use annealed_importance_sampling or "
            "log_likelihood, which need no simulated data"
        )
    for name in first.counts.keys() | last.counts.keys():
        before, after = first.counts.get(name), last.counts.get(name)
        if before is None or after is None or not torch.equal(before, after):
            raise PairError(
                f"site {name!r}: expected a mask that leaves the same entries of simulated data as of those given, "
                "found one that depends on what is drawn; make the mask an argument of its own"
            )


def _check_order(made: _Run, other: Batch, again: Callable[[Batch], _Run], count: int) -> None:
    """What is drawn for a number does not depend on it, by itself or through numbers that read it.

    Args:
        made: Draws that have settled.
        other: Other draws, one number of each datum of which takes the place of that in `made`.
        again: Draws with the noise of `made`.
        count: How many runs it took to settle.
    """
    chosen = _one_of_each(made.batch, other)
    changed = _changed(made.batch, other, chosen, again, count)
    if not bool(changed.any()):
        return
    first = torch.zeros_like(changed)
    first[int(changed.nonzero()[0])] = True  # alone, as other rows may have moved the noise of this one
    chosen = [here & first.reshape(-1, *(1,) * (here.dim() - 1)) for here in chosen]
    if bool(_changed(made.batch, other, chosen, again, count).any()):
        i = next(i for i, here in enumerate(chosen) if bool(here.any()))
        raise PairError(
            f"argument {i}: expected numbers each of which is drawn whatever it was, found some that change with "
            "themselves: a distribution reads the numbers that it scores, or two read each other, so that there is no "
            f"density of them and no log p(x); {_IN_ORDER}"
        )


def _changed(made: Batch, other: Batch, chosen: list[Tensor], again: Callable[[Batch], _Run], count: int) -> Tensor:
    """Of which data a draw changes once other numbers stand in its place, where `chosen`, (N,)."""
    held = tuple(torch.where(here, new, old) for here, new, old in zip(chosen, other, made, strict=True))
    changed = torch.zeros(len(made[0]), dtype=torch.bool, device=made[0].device)
    for _ in range(count):
        drawn = again(held).batch
        for here, old, new, found in zip(chosen, made, held, drawn, strict=True):
            before, instead, after = (array.double() for array in (old, new, found))
            far = (after - before).abs() > _ROUNDING * (before.abs() + (instead - before).abs())
            changed |= (far & here).reshape(len(here), -1).any(1)
        moved = tuple(torch.where(here, new, found) for here, new, found in zip(chosen, held, drawn, strict=True))
        if bool(changed.any()) or all(bool(_alike(*pair).all()) for pair in zip(moved, held, strict=True)):
            break
        held = moved
    return changed


def _one_of_each(batch: Batch, other: Batch) -> list[Tensor]:
    """Which entry of each datum to take from others: one at random of those that differ, in the form of the batch."""
    differ = [(~_alike(a, b)).reshape(len(a), -1) for a, b in zip(batch, other, strict=True)]
    rank = torch.cat(differ, 1) * (torch.rand(len(batch[0]), sum(d.shape[1] for d in differ)) + 0.5).to(batch[0].device)
    chosen = (rank == rank.amax(1, keepdim=True)) & (rank > 0)
    return [c.reshape(a.shape) for c, a in zip(chosen.split([d.shape[1] for d in differ], 1), batch, strict=True)]


def _alike(one: Tensor, other: Tensor) -> Tensor:
    """Where numbers are equal, or both NaN."""
    return (one == other) | ((one != one) & (other != other))


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
        return alike and bool((_alike(observed.reshape(array.shape), array) | ~self.counts.reshape(array.shape)).all())


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
        "data cannot be simulated; pass what is observed as an argument of its own (a column is a part of one), or "
        "use annealed_importance_sampling or log_likelihood, which need no simulated data"
    )
