"""What to do about data whose estimate cannot be trusted: more samples, a better proposal, annealing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from ppl_vae.arrays import as_rows
from ppl_vae.errors import DataError, located
from ppl_vae.evaluation.annealed import annealed_importance_sampling
from ppl_vae.evaluation.annealing import Annealing
from ppl_vae.evaluation.collect import Collection
from ppl_vae.evaluation.intervals import Interval, interval_of_each, interval_of_mean
from ppl_vae.evaluation.likelihood import log_likelihood
from ppl_vae.evaluation.means import MeanOverData
from ppl_vae.evaluation.refining import refine
from ppl_vae.evaluation.result import LogLikelihood
from ppl_vae.evaluation.subject import evaluating
from ppl_vae.evaluation.verdict import NOISY, RELIABLE, UNRELIABLE, misses_much, misses_some, verdict
from ppl_vae.options import whole_number
from ppl_vae.progress import Progress
from ppl_vae.rng import key
from ppl_vae.wording import in_words, is_lower_bound

__all__ = ["EscalatedLogLikelihood", "escalate"]

METHODS = ("guide", "more samples", "refined proposal", "annealing")
_ROWS = 16
_FEWEST = 1024  # samples of a fitted proposal
_STANDARD_ERRORS = 3.0  # by which lower bounds of the same number differ by chance, at most


@dataclass(frozen=True)
class EscalatedLogLikelihood(MeanOverData):
    """Estimate of log p(x) for each datum, the most trustworthy that was found; every array has shape (N,), in nats."""

    value: np.ndarray
    """Estimate of log p(x)."""
    stderr: np.ndarray
    """Its Monte Carlo standard error."""
    skewness: np.ndarray
    """Skewness of the mean weight; `interval` leans by it. 0 where chains were annealed."""
    unseen: np.ndarray
    """Share of p(x) where no sample can have been; NaN where not probed, as where chains were annealed."""
    verdict: np.ndarray
    """`reliable`, `noisy` or `unreliable`; noisy at best where chains were annealed, or an earlier method of the datum
    had left more unseen than an interval bears."""
    method: np.ndarray
    """What gave the estimate: guide, more samples, refined proposal or annealing."""
    seconds: float
    """Wall time of the escalation."""

    @property
    def trusted(self) -> np.ndarray:
        """Whether the verdict on a datum is not `unreliable`."""
        return self.verdict != UNRELIABLE

    def interval(self, level: float = 0.95) -> Interval:
        """Interval of the mean of log p(x) over these data, in nats per datum.

        It covers where all data are reliable; its upper end is infinite where one is still unreliable.
        """
        found = interval_of_mean(self.value, self.stderr, self.skewness, self.unseen, level)
        return found._replace(high=math.inf) if is_lower_bound(float((~self.trusted).mean())) else found

    def intervals(self, level: float = 0.95) -> Interval:
        """Interval of log p(x) of each datum, (N,) and (N,), in nats: it covers where the verdict is `reliable`."""
        return interval_of_each(self.value, self.stderr, self.skewness, self.unseen, level)

    def counts(self) -> dict[str, dict[str, int]]:
        """How many data each method served, by verdict."""
        return {
            method: {
                word: int(((self.method == method) & (self.verdict == word)).sum())
                for word in (RELIABLE, NOISY, UNRELIABLE)
            }
            for method in METHODS
        }

    def __str__(self) -> str:
        counts = self.counts()
        moved = int((self.method != METHODS[0]).sum())
        left = int((self.verdict == UNRELIABLE).sum())
        size = len(self.value)
        lines = [
            f"log p(x) {'' if left else '= '}{in_words(self.mean, self.mean_stderr, left / size)} nats per datum "
            f"({size} data, {moved} of them escalated, {left} still unreliable)",
            f"{'method':<18}{RELIABLE:>10}{NOISY:>10}{UNRELIABLE:>12}",
            *(f"{m:<18}{n[RELIABLE]:>10}{n[NOISY]:>10}{n[UNRELIABLE]:>12}" for m, n in counts.items()),
        ]
        return "\n".join(lines)


class _Found(NamedTuple):
    """What a method says of some data; arrays (n,)."""

    value: np.ndarray
    stderr: np.ndarray
    skewness: np.ndarray
    unseen: np.ndarray
    verdict: np.ndarray


def escalate(
    ll: LogLikelihood,
    pair: Any,
    data: Any,
    *,
    until: Literal["noisy", "reliable"] = "noisy",
    factor: int = 4,
    annealing: Annealing = Annealing(),
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> EscalatedLogLikelihood:
    """Estimates log p(x) anew where an estimate cannot be trusted, by ever dearer methods; each only where needed.

    First more samples of the guide; then samples of a mixture of the guide and a multivariate t fitted to the posterior
    of the datum in unconstrained coordinates; then annealed importance sampling, whose estimates are noisy at best.

    Of several estimates of a datum the one with the best verdict stays, the later one of equals. Of unreliable ones,
    which are lower bounds in mean, a later one stays if it is higher and has no larger standard error: what is higher
    by chance has a large one. Evidence is not forgotten:

    * What probes found that samples of the guide cannot have seen is not for more samples of it to mend: they are
      skipped. Where those of a fitted proposal still cannot have seen much, an annealed estimate is unreliable.
    * Where any method left more unseen than an interval bears, later ones are noisy at best.
    * What is lower than an earlier estimate by more than three standard errors has missed what that one saw, and is
      unreliable.

    Args:
        ll: What `log_likelihood` said of these data.
        pair: The pair that was evaluated.
        data: The data that were evaluated.
        until: The verdict that is enough.
        factor: How many times as many samples are drawn first; of the fitted proposal as many as before, or 1024.
        annealing: Chains and temperatures of the last method.
        seed: Of the further samples.
        device: Where to evaluate; "auto" is where the parameters are.
        progress: Show progress bars where there is a terminal.

    Raises:
        DataError: The data are not as many as were evaluated.
        PairError: More samples do not suffice, and a latent is discrete or has a support that depends on others.
        EstimateError: A weight is NaN or infinite.

    Reference:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling; Owen and Zhou (2000), Safe
        and Effective Importance Sampling; Neal (2001), Annealed Importance Sampling.

    Example:
        >>> import torch
        >>> import ppl_vae as pv
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> x = ppca.sample(3)
        >>> found = escalate(pv.log_likelihood(ppca, x, 20, progress=False), ppca, x)
        >>> found.method.tolist()  # the guide is the posterior
        ['guide', 'guide', 'guide']
    """
    whole_number("seed", seed)
    whole_number("factor", factor, least=1)
    if until not in (NOISY, RELIABLE):
        raise ValueError(f"until: expected {NOISY!r} or {RELIABLE!r}, found {until!r}")
    start, rows = time.monotonic(), as_rows(data)
    if len(rows) != len(ll.value):
        raise DataError(f"expected the {len(ll.value)} data that were evaluated, found {len(rows)}")
    enough = (RELIABLE,) if until == RELIABLE else (RELIABLE, NOISY)
    best = _Found(*(getattr(ll, name).copy() for name in _Found._fields))
    # What probes have found stays in mind: that something was missed, and that much of it is still missing.
    missed, missing = misses_some(best.unseen, best.stderr), misses_much(best.unseen, best.stderr)
    method = np.full(len(rows), METHODS[0], dtype=object)

    def more(some: Any, seed: int) -> _Found:
        again = log_likelihood(pair, some, factor * ll.num_samples, seed, num_draws=0, device=device, progress=progress)
        return _Found(*(getattr(again, name) for name in _Found._fields))

    def refined(some: Any, seed: int) -> _Found:
        return _refined(pair, some, max(ll.num_samples, _FEWEST), seed, device, progress)

    def annealed(some: Any, seed: int) -> _Found:
        return _annealed(pair, some, annealing, seed, device, progress)

    steps: tuple[Callable[[Any, int], _Found], ...] = (more, refined, annealed)
    for i, (name, step) in enumerate(zip(METHODS[1:], steps, strict=True)):
        wanting = ~np.isin(best.verdict, enough)
        if step is more:
            wanting &= ~missing
        if step is annealed:
            wanting &= best.verdict == UNRELIABLE
        if not len(left := np.flatnonzero(wanting)):
            continue
        before = _Found(*(array[left] for array in best))
        after = step(rows.take(torch.from_numpy(left)), key(seed, i))
        missing[left] = misses_much(after.unseen, after.stderr) | (np.isnan(after.unseen) & missing[left])
        after = _in_view_of(before, missed[left], missing[left], after)
        missed[left] |= misses_some(after.unseen, after.stderr)
        stays = _is_better(after, before)
        for known, found in zip(best, after, strict=True):
            known[left[stays]] = found[stays]
        method[left[stays]] = name
    return EscalatedLogLikelihood(*best, method=method.astype(str), seconds=time.monotonic() - start)


def _in_view_of(before: _Found, missed: np.ndarray, missing: np.ndarray, after: _Found) -> _Found:
    """An estimate with the verdict that earlier ones of the same data, and what probes have found, allow."""
    error = np.hypot(np.nan_to_num(before.stderr), np.nan_to_num(after.stderr))
    lower = after.value < before.value - _STANDARD_ERRORS * error
    words = np.where(missed & (after.verdict == RELIABLE), NOISY, after.verdict)
    return after._replace(verdict=np.where(lower | missing, UNRELIABLE, words))


def _is_better(after: _Found, before: _Found) -> np.ndarray:
    """Which of the later estimates to keep (n,)."""
    rise = _rank(after.verdict) - _rank(before.verdict)
    no_luck = (after.value > before.value) & (after.stderr <= np.nan_to_num(before.stderr, nan=np.inf))
    return (rise > 0) | ((rise == 0) & ((after.verdict != UNRELIABLE) | no_luck))


def _rank(words: np.ndarray) -> np.ndarray:
    return np.where(words == RELIABLE, 2, np.where(words == NOISY, 1, 0))


def _refined(pair: Any, data: Any, num_samples: int, seed: int, device: str | torch.device, progress: bool) -> _Found:
    with evaluating(pair, data, device) as subject:
        pair, rows, layout, target, group = subject
        found = Collection(len(rows))
        blocks, own = subject.blocks(layout.largest_batch(_ROWS))
        with Progress("refined proposals", own.stop, progress and group.leads, "data") as bar:
            for first in blocks:
                batch = rows.take(slice(first, first + blocks.step), target)
                with located(f"rows {first} to {first + len(batch[0]) - 1}"):
                    summary, unseen = refine(pair, batch, layout, first, num_samples, seed, target)
                found.put(first, summary._asdict() | {"unseen": unseen})
                bar.update(first + len(batch[0]), "")
    s = found.gather(group, own, target)
    words = verdict(s["khat"], s["stderr"], s["ess"], s["unseen"], np.full(len(rows), num_samples))
    return _Found(s["value"], s["stderr"], s["skewness"], s["unseen"], words)


def _annealed(
    pair: Any, data: Any, annealing: Annealing, seed: int, device: str | torch.device, progress: bool
) -> _Found:
    """Chains whose weights are alike, half of them effective, are noisy: so few do not tell their own error well."""
    ais = annealed_importance_sampling(pair, data, annealing, seed, device=device, progress=progress)
    words = np.where(ais.trusted & (ais.ess >= annealing.num_chains / 2), NOISY, UNRELIABLE)
    return _Found(ais.value, ais.stderr, np.zeros(len(words)), np.full(len(words), np.nan), words)
