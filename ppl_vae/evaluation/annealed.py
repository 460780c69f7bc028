"""Annealed importance sampling of any pair with continuous latents, and bounds from both sides on simulated data."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.errors import EstimateError, PplVaeError, is_lack_of_memory, located
from ppl_vae.evaluation.annealed_result import AnnealedLogLikelihood, Sandwich
from ppl_vae.evaluation.annealing import Annealing, Frozen, forward, reverse, tune
from ppl_vae.evaluation.collect import Collection
from ppl_vae.evaluation.path import Path, num_values
from ppl_vae.evaluation.simulation import simulate
from ppl_vae.evaluation.subject import evaluating
from ppl_vae.options import whole_number
from ppl_vae.pair import Pair
from ppl_vae.progress import Progress
from ppl_vae.rng import key, seeded
from ppl_vae.tape import Batch, Layout
from ppl_vae.weights import Stream, Summary

__all__ = ["annealed_importance_sampling", "bidirectional_monte_carlo"]

_ROWS = 64
_TUNING, _FORWARD, _REVERSE, _DATA, _OTHER_TUNING, _OTHER_FORWARD = range(6)


def annealed_importance_sampling(
    pair: Any,
    data: Any,
    annealing: Annealing = Annealing(),
    seed: int = 0,
    *,
    compare_starts: bool = True,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> AnnealedLogLikelihood:
    r"""Estimates log p(x) of every datum by annealing from the guide, or the prior, to the posterior.

    Each datum has K chains of Hamiltonian Monte Carlo at T temperatures. Step sizes are tuned on chains of their own
    and then frozen, so that the mean weight is p(x) exactly. Constrained latents move in unconstrained coordinates;
    latents of finitely many values beside them are summed out at every step.

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`; its latents are inside the data plate, and those that
            are discrete have at most 256 joint values.
        data: Data (N, *event) or a tuple of arrays.
        annealing: Chains, temperatures and their schedule.
        seed: Of the chains.
        compare_starts: Run as many chains from the other start, too, which takes as long again: without them no datum
            is trusted.
        device: Where to evaluate; "auto" is where the parameters are.
        progress: Show a progress bar where there is a terminal.

    Raises:
        PairError: A latent is discrete with infinitely many values, or has a support that depends on others; the guide
            is the start and may leave the support of the model; or the pair is not valid.
        DataError: A datum lies outside the support of its site.
        EstimateError: A weight is NaN or infinite, or all of a datum are zero; the row is named.

    Reference:
        Neal (2001), Annealed Importance Sampling; Wu, Burda, Salakhutdinov and Grosse (2017), On the Quantitative
        Analysis of Decoder-Based Generative Models.

    Example:
        >>> import torch
        >>> import ppl_vae as pv
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> x = ppca.sample(3)
        >>> found = annealed_importance_sampling(ppca, x, Annealing(num_chains=4, num_temperatures=5), progress=False)
        >>> bool(abs(found.value - ppca.log_prob(x).numpy()).max() < 1e-6)  # the guide is the posterior
        True
    """
    whole_number("seed", seed)
    start = time.monotonic()
    with evaluating(pair, data, device) as subject:
        pair, rows, layout, target, group = subject
        found = Collection(len(rows))
        blocks, own = subject.blocks(_num_rows(layout))
        with Progress("annealing", own.stop, progress and group.leads, "data") as bar:
            for first in blocks:
                batch = rows.take(slice(first, first + blocks.step), target)
                run = _Run(pair, batch, layout, target, first)
                with located(f"rows {first} to {first + len(batch[0]) - 1}"):
                    log_weight, accepted = run.chains(annealing, key(seed, first, _TUNING), key(seed, first, _FORWARD))
                    keys = key(seed, first, _OTHER_TUNING), key(seed, first, _OTHER_FORWARD)
                    other = run.other_chains(annealing, *keys) if compare_starts else None
                summary = run.summary(log_weight, annealing)
                found.put(
                    first,
                    {"value": summary.value, "stderr": summary.stderr, "ess": summary.ess}
                    | {"acceptance": accepted.double().cpu().numpy()}
                    | _of_other(other, len(batch[0])),
                )
                bar.update(first + len(batch[0]), "")
    values = found.gather(group, own, target)
    return AnnealedLogLikelihood(**values, annealing=annealing, seconds=time.monotonic() - start)


def bidirectional_monte_carlo(
    pair: Any,
    data: Any,
    annealing: Annealing = Annealing(),
    seed: int = 0,
    *,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> Sandwich:
    """Simulates data from the model and bounds their log p(x) from both sides.

    The latents that made a datum are an exact draw of its posterior; annealing backwards from them gives an upper bound
    in mean. The gap says how far the annealed estimate of such data can be trusted.

    Args:
        pair: As for `annealed_importance_sampling`.
        data: As many rows as are to be simulated, in the form that the programs take; arguments that the model does
            not observe, such as labels, are used as they are.
        annealing: Chains, temperatures and their schedule.
        seed: Of data and chains.
        device: Where to evaluate.
        progress: Show a progress bar where there is a terminal.

    Raises:
        PairError: Also if the model cannot be simulated: it observes something else than its arguments.

    Reference:
        Grosse, Ghahramani and Adams (2015), Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo.
    """
    whole_number("seed", seed)
    start = time.monotonic()
    with evaluating(pair, data, device) as (pair, rows, layout, target, _):
        lower, upper, made = [], [], []
        step = _num_rows(layout)
        with Progress("annealing both ways", len(rows), progress, "data") as bar:
            for first in range(0, len(rows), step):
                given = rows.take(slice(first, first + step), target)
                with seeded(key(seed, first, _DATA), target):
                    batch, latents = simulate(pair, given, layout)
                run = _Run(pair, batch, layout, target, first)
                path, frozen = run.tuned(annealing, key(seed, first, _TUNING))
                with seeded(key(seed, first, _FORWARD), target):
                    log_weight, _ = forward(path, frozen, annealing.num_leapfrog)
                with seeded(key(seed, first, _REVERSE), target):
                    back = reverse(path, frozen, annealing.num_leapfrog, path.at(latents))
                lower.append(run.summary(log_weight, annealing).value)
                upper.append(-run.summary(-back, annealing).value)
                made.append(batch)
                bar.update(first + len(batch[0]), "")
    x = tuple(np.concatenate([array.cpu().numpy() for array in arrays]) for arrays in zip(*made, strict=True))
    return Sandwich(np.concatenate(lower), np.concatenate(upper), x, annealing, time.monotonic() - start)


class _Run(NamedTuple):
    """What the chains of a block of data run on."""

    pair: Pair
    batch: Batch
    layout: Layout
    device: torch.device
    first: int

    def tuned(self, annealing: Annealing, seed: int) -> tuple[Path, Frozen]:
        """The path, and what tuning found on it."""
        with seeded(seed, self.device):
            path = Path(self.pair, self.batch, self.layout, annealing.num_chains, annealing.start, self.first)
            return path, tune(path, annealing, len(self.batch[0]))

    def chains(self, annealing: Annealing, tuning_seed: int, seed: int) -> tuple[Tensor, Tensor]:
        """Log-weights (K, N), and how often each datum's moves were taken."""
        path, frozen = self.tuned(annealing, tuning_seed)
        with seeded(seed, self.device):
            return forward(path, frozen, annealing.num_leapfrog)

    def summary(self, log_weight: Tensor, annealing: Annealing) -> Summary:
        """What the weights of chains from the start say of each datum.

        Raises:
            EstimateError: All of a datum are zero.
        """
        if bool((none := (log_weight == -torch.inf).all(0)).any()):
            n = int(none.nonzero()[0])
            raise EstimateError(self._all_are_zero(n, annealing))
        stream = Stream(log_weight.shape[1], len(log_weight), self.first)
        stream.add(log_weight)
        return stream.summary()

    def _all_are_zero(self, n: int, annealing: Annealing) -> str:
        with seeded(0, self.device):
            path = Path(self.pair, self.batch, self.layout, annealing.num_chains, annealing.start)
            site = path.excluding(n)
        at = f"site {site!r} of the model" if site else "the model"
        return (
            f"row {self.first + n}: all {annealing.num_chains} chains have weight zero: each started from the "
            f"{annealing.start} where {at} excludes the datum; take more chains, or start={_other(annealing)!r}"
        )

    def other_chains(self, annealing: Annealing, tuning_seed: int, seed: int) -> Tensor | None:
        """Log-weights of chains from the other start; None where the pair allows none."""
        try:
            return self.chains(replace(annealing, start=_other(annealing)), tuning_seed, seed)[0]
        except (PplVaeError, ArithmeticError, RuntimeError, ValueError) as error:
            if is_lack_of_memory(error):
                raise
            return None  # programs need no answer where this start goes


def _other(annealing: Annealing) -> Literal["prior", "guide"]:
    """The other start."""
    return "prior" if annealing.start == "guide" else "guide"


def _num_rows(layout: Layout) -> int:
    """Data of a block: fewer where discrete latents are summed out at each point."""
    return layout.largest_batch(max(1, _ROWS // num_values(layout)))


def _of_other(log_weight: Tensor | None, num_data: int) -> dict[str, np.ndarray]:
    """What chains from the other start say; NaN where they say nothing."""
    if log_weight is None or not bool((log_weight < torch.inf).all()):
        return {name: np.full(num_data, np.nan) for name in ("other", "other_stderr", "other_ess")}
    none = (log_weight == -torch.inf).all(0)
    stream = Stream(num_data, len(log_weight))
    stream.add(torch.where(none, 0.0, log_weight))
    summary = stream.summary()
    found = {"other": summary.value, "other_stderr": summary.stderr, "other_ess": summary.ess}
    return {name: np.where(none.cpu().numpy(), np.nan, value) for name, value in found.items()}
