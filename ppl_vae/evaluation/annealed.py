"""Annealed importance sampling of any pair of continuous latents, and bounds from both sides on simulated data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.averages import population_stderr
from ppl_vae.errors import located
from ppl_vae.evaluation.annealing import Annealing, forward, reverse, tune
from ppl_vae.evaluation.collect import Collection
from ppl_vae.evaluation.means import MeanOverData
from ppl_vae.evaluation.path import Path
from ppl_vae.evaluation.simulation import simulate
from ppl_vae.evaluation.subject import evaluating
from ppl_vae.options import whole_number
from ppl_vae.progress import Progress
from ppl_vae.rng import key, seeded
from ppl_vae.weights import Stream, Summary
from ppl_vae.wording import in_words, is_lower_bound

__all__ = ["AnnealedLogLikelihood", "Sandwich", "annealed_importance_sampling", "bidirectional_monte_carlo"]

_ROWS = 64
_TUNING, _FORWARD, _REVERSE, _DATA = range(4)


@dataclass(frozen=True)
class AnnealedLogLikelihood(MeanOverData):
    """Annealed estimate of log p(x) for each datum; arrays (N,), in nats: in mean a lower bound."""

    value: np.ndarray
    """log 1/K sum_k w_k over K chains."""
    stderr: np.ndarray
    """Monte Carlo standard error of `value` (delta method)."""
    ess: np.ndarray
    """Effective number of the K chains."""
    acceptance: np.ndarray
    """Mean probability with which the moves of a datum's chains were accepted; in [0, 1]."""
    annealing: Annealing
    """How it was annealed."""
    seconds: float
    """Wall time."""

    @property
    def trusted(self) -> np.ndarray:
        """Whether at least two chains of a datum count, and a quarter: `value` is then too low by 3/(2K) at most.

        The bias of the log of a mean of K weights is -(K / ESS - 1) / (2K) to first order.
        """
        return self.ess >= max(2.0, self.annealing.num_chains / 4)

    def __str__(self) -> str:
        share = float((~self.trusted).mean())
        text = (
            f"log p(x) {'' if is_lower_bound(share) else '= '}{in_words(self.mean, self.mean_stderr, share)} nats per "
            f"datum ({len(self.value)} data, {self.annealing.in_words()}; "
            f"median ESS {np.median(self.ess):.1f}, acceptance {self.acceptance.mean():.2f})"
        )
        if doubtful := int((~self.trusted).sum()):
            text += (
                f"; of {doubtful} of {len(self.value)} data fewer than a quarter of the chains count: their estimate "
                "is too low; take more temperatures"
            )
        return text


@dataclass(frozen=True)
class Sandwich:
    """Bounds on log p(x) from both sides for data simulated from the model; arrays (N,), in nats."""

    lower: np.ndarray
    """Annealed estimate, in mean below log p(x)."""
    upper: np.ndarray
    """Reverse annealed estimate from the latents that made the data, in mean above log p(x)."""
    x: tuple[np.ndarray, ...]
    """The simulated data: arguments of the programs."""
    annealing: Annealing
    """How it was annealed."""
    seconds: float
    """Wall time."""

    @property
    def gap(self) -> float:
        """Mean of upper - lower: how much an annealed estimate of such data can be wrong, in nats per datum."""
        return float((self.upper - self.lower).mean())

    @property
    def gap_stderr(self) -> float:
        """Standard error of `gap` over data."""
        return population_stderr(self.upper - self.lower)

    def __str__(self) -> str:
        return (
            f"{self.lower.mean():.3f} <= log p(x) <= {self.upper.mean():.3f} nats per datum in mean over "
            f"{len(self.lower)} simulated data; gap {self.gap:.3f} ± {self.gap_stderr:.3f}"
        )


def annealed_importance_sampling(
    pair: Any,
    data: Any,
    annealing: Annealing = Annealing(),
    seed: int = 0,
    *,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> AnnealedLogLikelihood:
    r"""Estimates log p(x) of every datum by annealing from the guide, or the prior, to the posterior.

    Each datum has K chains of Hamiltonian Monte Carlo at T temperatures. Step sizes are tuned on chains of their own
    and then frozen, so that the mean weight is p(x) exactly. Constrained latents move in unconstrained coordinates.

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`; its latents are continuous and inside the data plate.
        data: Data (N, *event) or a tuple of arrays.
        annealing: Chains, temperatures and their schedule.
        seed: Of the chains.
        device: Where to evaluate; "auto" is where the parameters are.
        progress: Show a progress bar where there is a terminal.

    Raises:
        PairError: A latent is discrete or has a support that depends on others, or the pair is not valid.
        DataError: A datum lies outside the support of its site.
        EstimateError: A weight is NaN or infinite; the row is named.

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
        blocks, own = subject.blocks(layout.largest_batch(_ROWS))
        with Progress("annealing", own.stop, progress and group.leads, "data") as bar:
            for first in blocks:
                batch = rows.take(slice(first, first + blocks.step), target)
                with located(f"rows {first} to {first + len(batch[0]) - 1}"):
                    with seeded(key(seed, first, _TUNING), target):
                        path = Path(pair, batch, layout, annealing.num_chains, annealing.start)
                        frozen = tune(path, annealing, len(batch[0]))
                    with seeded(key(seed, first, _FORWARD), target):
                        log_weight, accepted = forward(path, frozen, annealing.num_leapfrog)
                summary = _summary(log_weight, first)
                found.put(
                    first,
                    {"value": summary.value, "stderr": summary.stderr, "ess": summary.ess}
                    | {"acceptance": accepted.double().cpu().numpy()},
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
        step = layout.largest_batch(_ROWS)
        with Progress("annealing both ways", len(rows), progress, "data") as bar:
            for first in range(0, len(rows), step):
                given = rows.take(slice(first, first + step), target)
                with seeded(key(seed, first, _DATA), target):
                    batch, latents = simulate(pair, given, layout)
                with seeded(key(seed, first, _TUNING), target):
                    path = Path(pair, batch, layout, annealing.num_chains, annealing.start)
                    frozen = tune(path, annealing, len(batch[0]))
                with seeded(key(seed, first, _FORWARD), target):
                    log_weight, _ = forward(path, frozen, annealing.num_leapfrog)
                with seeded(key(seed, first, _REVERSE), target):
                    back = reverse(path, frozen, annealing.num_leapfrog, path.at(latents))
                lower.append(_summary(log_weight, first).value)
                upper.append(-_summary(-back, first).value)
                made.append(batch)
                bar.update(first + len(batch[0]), "")
    x = tuple(np.concatenate([array.cpu().numpy() for array in arrays]) for arrays in zip(*made, strict=True))
    return Sandwich(np.concatenate(lower), np.concatenate(upper), x, annealing, time.monotonic() - start)


def _summary(log_weight: Tensor, first: int) -> Summary:
    stream = Stream(log_weight.shape[1], len(log_weight), first)
    stream.add(log_weight)
    return stream.summary()
