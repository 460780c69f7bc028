"""Annealed importance sampling of any pair with continuous latents, and bounds from both sides on simulated data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppl_vae.arrays import as_numpy
from ppl_vae.errors import EstimateError, PplVaeError, is_lack_of_memory
from ppl_vae.evaluation.annealed_result import AnnealedLogLikelihood, Sandwich
from ppl_vae.evaluation.annealing import Annealing, Frozen, forward, reverse, tune
from ppl_vae.evaluation.coarseness import rounding_of_terms, warn_of_rounding
from ppl_vae.evaluation.path import Path, num_values
from ppl_vae.evaluation.simulation import simulate
from ppl_vae.evaluation.subject import Subject, evaluating
from ppl_vae.options import of_kind, seed_number
from ppl_vae.rng import key, seeded
from ppl_vae.tape import Batch, Layout
from ppl_vae.weights import Stream, Summary

__all__ = ["ESTIMATES", "Chains", "annealed_importance_sampling", "bidirectional_monte_carlo", "num_rows"]

ESTIMATES = ("value", "stderr", "ess", "skewness", "acceptance", "other", "other_stderr", "other_ess", "rounding")

_ROWS = 64
# What noise is for: chains begin from other draws than those that importance sampling weighs under the same seed.
_TUNING, _FORWARD, _REVERSE, _OTHER_TUNING, _OTHER_FORWARD = range(0xA150, 0xA155)
_ROUNDING = 0xA155
_DATA = 1 << 21  # no noise of an evaluation of simulated data is that which made them


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
        PairError: A latent is discrete with infinitely many values, or masked for some data, or has a support that
            depends on others; the guide is the start and may leave the support of the model; or the pair is not valid.
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
    seed_number("seed", seed)
    of_kind("annealing", annealing, Annealing)
    start = time.monotonic()
    with evaluating(pair, data, device) as subject:

        def work(batch: Batch, first: int) -> dict[str, np.ndarray]:
            return Chains(subject, batch, first).estimate(annealing, seed, compare_starts)

        swept = subject.sweep(num_rows(subject.layout), "annealing", progress, work)
    return AnnealedLogLikelihood(
        **swept.gathered(),
        annealing=annealing,
        num_dimensions=subject.layout.num_dimensions,
        seconds=time.monotonic() - start,
    )


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
        PairError: Also if the model cannot be simulated: it observes something else than its arguments, reads numbers
            that it scores, or has a `pyro.factor`.

    Reference:
        Grosse, Ghahramani and Adams (2015), Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo.
    """
    seed_number("seed", seed)
    of_kind("annealing", annealing, Annealing)
    start = time.monotonic()
    with evaluating(pair, data, device) as subject:

        def work(given: Batch, first: int) -> dict[str, np.ndarray]:
            with seeded(key(seed, first, _DATA), subject.device):
                batch, latents = simulate(subject.pair, given, subject.layout)
            if not first:
                warn_of_rounding(subject.pair, batch, subject.layout, "bounds from both sides")
            lower, upper = Chains(subject, batch, first).both_ways(annealing, seed, latents)
            arrays = {f"x{i}": as_numpy(array) for i, array in enumerate(batch)}
            return {"lower": lower, "upper": upper} | arrays

        swept = subject.sweep(num_rows(subject.layout), "annealing both ways", progress, work)
    found = swept.gathered()
    lower, upper = found.pop("lower"), found.pop("upper")
    return Sandwich(lower, upper, tuple(found.values()), annealing, time.monotonic() - start)


class Chains:
    """Chains of a block of data.

    Args:
        subject: What is evaluated.
        batch: The block.
        first: Row of its first datum.
    """

    def __init__(self, subject: Subject, batch: Batch, first: int) -> None:
        self._pair, self._layout, self._device = subject.pair, subject.layout, subject.device
        self._batch, self._first = batch, first

    def estimate(self, annealing: Annealing, seed: int, compare_starts: bool = True) -> dict[str, np.ndarray]:
        """What chains from the start, and from the other one, say of each datum: arrays (n,), named `ESTIMATES`."""
        log_weight, accepted = self._chains(annealing, self._key(seed, _TUNING), self._key(seed, _FORWARD))
        keys = self._key(seed, _OTHER_TUNING), self._key(seed, _OTHER_FORWARD)
        other = self._other_chains(annealing, *keys) if compare_starts else None
        own = self._summary(log_weight, annealing)
        rounding = rounding_of_terms(self._pair, self._batch, self._layout, self._key(seed, _ROUNDING), self._device)
        stderr, rate = np.hypot(own.stderr, rounding), accepted.double().cpu().numpy()
        numbers = (own.value, stderr, own.ess, own.skewness, rate, *self._of_other(other), rounding)
        return dict(zip(ESTIMATES, numbers, strict=True))

    def both_ways(
        self, annealing: Annealing, seed: int, latents: Mapping[str, Tensor]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds (n,), the latter from the latents that made the data."""
        path, frozen = self._tuned(annealing, self._key(seed, _TUNING))
        with seeded(self._key(seed, _FORWARD), self._device):
            log_weight, _ = forward(path, frozen, annealing.num_leapfrog)
        with seeded(self._key(seed, _REVERSE), self._device):
            back = reverse(path, frozen, annealing.num_leapfrog, path.at(latents))
        return self._summary(log_weight, annealing).value, -self._summary(-back, annealing).value

    def _key(self, seed: int, use: int) -> int:
        return key(seed, self._first, use)

    def _path(self, annealing: Annealing) -> Path:
        return Path(self._pair, self._batch, self._layout, annealing.num_chains, annealing.start, self._first)

    def _tuned(self, annealing: Annealing, seed: int) -> tuple[Path, Frozen]:
        """The path, and what tuning found on it."""
        with seeded(seed, self._device):
            path = self._path(annealing)
            return path, tune(path, annealing, len(self._batch[0]))

    def _chains(self, annealing: Annealing, tuning_seed: int, seed: int) -> tuple[Tensor, Tensor]:
        """Log-weights (K, N), and how often each datum's moves were taken."""
        path, frozen = self._tuned(annealing, tuning_seed)
        with seeded(seed, self._device):
            return forward(path, frozen, annealing.num_leapfrog)

    def _other_chains(self, annealing: Annealing, tuning_seed: int, seed: int) -> Tensor | None:
        """Log-weights of chains from the other start; None where the pair allows none."""
        try:
            return self._chains(replace(annealing, start=_other(annealing)), tuning_seed, seed)[0]
        except (PplVaeError, ArithmeticError, RuntimeError, ValueError) as error:
            if is_lack_of_memory(error):
                raise
            return None  # programs need no answer where this start goes

    def _summary(self, log_weight: Tensor, annealing: Annealing) -> Summary:
        """What the weights of chains from the start say of each datum.

        Raises:
            EstimateError: All of a datum are zero.
        """
        if bool((none := (log_weight == -torch.inf).all(0)).any()):
            raise EstimateError(self._all_are_zero(int(none.nonzero()[0]), annealing))
        stream = Stream(log_weight.shape[1], len(log_weight), self._first)
        stream.add(log_weight)
        return stream.summary()

    def _all_are_zero(self, n: int, annealing: Annealing) -> str:
        with seeded(0, self._device):
            site = self._path(annealing).excluding(n)
        at = f"site {site!r} of the model" if site else "the model"
        return (
            f"row {self._first + n}: all {annealing.num_chains} chains have weight zero: each started from the "
            f"{annealing.start} where {at} excludes the datum; take more chains, or start={_other(annealing)!r}"
        )

    def _of_other(self, log_weight: Tensor | None) -> tuple[np.ndarray, ...]:
        """Value, error and ESS of chains from the other start; NaN where they say nothing."""
        num_data = len(self._batch[0])
        if log_weight is None or not bool((log_weight < torch.inf).all()):
            return (np.full(num_data, np.nan),) * 3
        none = (log_weight == -torch.inf).all(0)
        stream = Stream(num_data, len(log_weight))
        stream.add(torch.where(none, 0.0, log_weight))
        summary, blank = stream.summary(), none.cpu().numpy()
        return tuple(np.where(blank, np.nan, array) for array in (summary.value, summary.stderr, summary.ess))


def num_rows(layout: Layout) -> int:
    """Data of a block: fewer where discrete latents are summed out at each point."""
    return layout.largest_batch(max(1, _ROWS // num_values(layout)))


def _other(annealing: Annealing) -> Literal["prior", "guide"]:
    """The other start."""
    return "prior" if annealing.start == "guide" else "guide"
