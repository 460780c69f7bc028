"""What to do about data whose estimate cannot be trusted: more samples, a better proposal, annealing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from ppl_vae.arrays import as_rows
from ppl_vae.checking import in_kind_of
from ppl_vae.errors import DataError, EstimateError, PairError
from ppl_vae.evaluation.annealed import ESTIMATES, Chains, num_rows
from ppl_vae.evaluation.annealed_result import AnnealedLogLikelihood
from ppl_vae.evaluation.annealing import Annealing
from ppl_vae.evaluation.attempts import Attempts, reason_of, row_of
from ppl_vae.evaluation.coarseness import ROUNDING
from ppl_vae.evaluation.edges import REASON
from ppl_vae.evaluation.escalated_result import METHODS, EscalatedLogLikelihood, Failure
from ppl_vae.evaluation.identity import check_same
from ppl_vae.evaluation.likelihood import log_likelihood
from ppl_vae.evaluation.proposal import first_draw
from ppl_vae.evaluation.refining import refine, rounded_up
from ppl_vae.evaluation.result import LogLikelihood
from ppl_vae.evaluation.subject import evaluating
from ppl_vae.evaluation.tally import Frailty
from ppl_vae.evaluation.trust import trust
from ppl_vae.evaluation.verdict import NOISY, RELIABLE, UNRELIABLE, Misses, misses
from ppl_vae.options import compile_choice, of_kind, seed_number, whole_number
from ppl_vae.pair import as_pair
from ppl_vae.rng import key
from ppl_vae.shrinking import rows_of
from ppl_vae.tape import Batch
from ppl_vae.weights import Summary

__all__ = ["escalate"]

Reasons = Mapping[int, str]
"""Why a method does not serve, by the place of the datum."""

_GUIDE, _MORE, _REFINED, _ANNEALED = METHODS
_ROWS = 16
_FEWEST = 1024  # samples of a fitted proposal
_TRIES = 8  # of a method, each without the datum that the one before has failed for
_NO_MORE_BY_CHANCE = math.log(1000)  # nats by which an estimate exceeds log p once in a thousand times at most
_STANDARD_ERRORS = 3.0  # by which lower bounds of the same number differ by chance, at most


class _Found(NamedTuple):
    """What a method says of some data; arrays (n,)."""

    value: np.ndarray
    stderr: np.ndarray
    skewness: np.ndarray
    unseen: np.ndarray
    rounding: np.ndarray
    exact: np.ndarray
    rounded: np.ndarray
    verdict: np.ndarray


class _Answer(NamedTuple):
    """What a method has to say of some data."""

    found: _Found
    """The estimates."""
    misses: Misses
    """What probes found beyond them."""
    reasons: Reasons
    """Why it does not serve others."""


def escalate(
    ll: LogLikelihood,
    pair: Any,
    data: Any,
    seed: int = 0,
    *,
    until: Literal["noisy", "reliable"] = "noisy",
    factor: int = 4,
    annealing: Annealing = Annealing(),
    memory: int = 256 << 20,
    device: str | torch.device = "auto",
    compile: Literal["auto"] | bool = "auto",
    progress: bool = True,
) -> EscalatedLogLikelihood:
    """Estimates log p(x) anew where an estimate cannot be trusted, by ever dearer methods; each only where needed.

    First more samples of the guide; then samples of a mixture of the guide and a multivariate t fitted to the posterior
    of the datum in unconstrained coordinates; then annealed importance sampling, whose estimates are noisy at best.

    Of several estimates of a datum the one with the best verdict stays, the later one of equals. Of unreliable ones,
    which are lower bounds in mean, a later one stays if it is higher and has no larger standard error: what is higher
    by chance has a large one. Or if it is higher by 13.8 nats, whatever its error: p(x) is exceeded a thousandfold once
    in a thousand times at most (Markov's inequality), so that it is nearer. Evidence is not forgotten:

    * What probes found that samples of the guide cannot have seen, in a datum or in the light of the others, is not
      for more samples of it to mend: they are skipped. Where those of a fitted proposal still cannot have seen much, an
      annealed estimate is unreliable.
    * Where any method left more unseen than an interval bears, later ones are noisy at best.
    * What is lower than an earlier estimate by more than three standard errors has missed what that one saw, and is
      unreliable.

    * Where samples round to the edge of a latent's support (`ll.rounded`, or those of a method), or data are noisy for
      rounding (`ll.too_coarse`), no further method is tried: all of them would round.

    Data stay as they are where their verdict is enough, and the luckier of equals have it: of those that only just pass
    the estimates are rather too high, the more so with `until="reliable"` (0.05 nats in mean under a guide 0.8 times as
    wide as the posterior and off by a third of that, at K = 100, more than the interval of the mean knows of).

    A method that does not serve a datum leaves its estimate as it is, and the report says why: `failures`. Fitted
    proposals need latents that Pyro maps to R^n, with discrete ones of at most 256 joint values and no mask beside them
    at most, and a guide that stays in the model's support and draws nothing else. Annealing starts from the prior where
    it cannot from the guide; without chains from both no datum is trusted.

    Args:
        ll: What `log_likelihood` said of these data.
        pair: The pair that was evaluated.
        data: The data that were evaluated.
        seed: Of the further samples.
        until: The verdict that is enough.
        factor: How many times as many samples are drawn first; of the fitted proposal as many as before, or 1024.
        annealing: Chains and temperatures of the last method.
        memory: Bytes that the decoder may use at once for more samples, about; see `log_likelihood`.
        compile: Whether to compile for them, as for `log_likelihood`.
        device: Where to evaluate; "auto" is where the parameters are.
        progress: Show progress bars where there is a terminal.

    Raises:
        ValueError: An option is out of its range, or `ll` is no result of `log_likelihood`.
        DataError: The data are not those that were evaluated, in the same order.

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
    seed_number("seed", seed)
    compile_choice(compile)
    whole_number("factor", factor, least=1)
    of_kind("annealing", annealing, Annealing)
    if until not in (NOISY, RELIABLE):
        raise ValueError(f"until: expected {NOISY!r} or {RELIABLE!r}, found {until!r}")
    if not isinstance(ll, LogLikelihood):
        raise ValueError(f"ll: expected what log_likelihood has returned, found {type(ll).__name__}")
    start, rows = time.monotonic(), in_kind_of(as_pair(pair), as_rows(data))
    if len(rows) != len(ll.value):
        raise DataError(f"expected the {len(ll.value)} data that were evaluated, found {len(rows)}")
    check_same(ll.signature, rows)
    enough = (RELIABLE,) if until == RELIABLE else (RELIABLE, NOISY)
    course, failures = _Course(ll), _of_rounded(_MORE, np.arange(len(rows)), ll.rounded)
    if until == RELIABLE:
        failures += _of_coarse(course.coarse)

    def more(some: Any, seed: int) -> _Answer:
        k = factor * ll.num_samples
        again = log_likelihood(
            pair, some, k, seed, num_draws=0, memory=memory, device=device, compile=compile, progress=progress
        )
        return _of_guide(again)

    def refined(some: Any, seed: int) -> _Answer:
        return _refined(pair, some, max(ll.num_samples, _FEWEST), seed, device, progress)

    def annealed(some: Any, seed: int) -> _Answer:
        return _annealed(pair, some, annealing, seed, device, progress)

    for i, (name, method) in enumerate(zip((_MORE, _REFINED, _ANNEALED), (more, refined, annealed), strict=True)):
        left = np.flatnonzero(~np.isin(course.best.verdict, enough) & course.served_by(name))
        if not len(left):
            continue
        answer = _tried(method, rows.take(torch.from_numpy(left)), key(seed, i))
        if answer.reasons:
            place, reason = next(iter(answer.reasons.items()))
            failures.append(Failure(name, len(answer.reasons), int(left[place]), reason))
        failures += _of_rounded(name, left, answer.found.rounded)
        course.take(name, left, answer)
    return EscalatedLogLikelihood(
        *course.best,
        method=course.method.astype(str),
        failures=tuple(failures),
        num_chains=annealing.num_chains,
        num_dimensions=ll.num_dimensions,
        seconds=time.monotonic() - start,
    )


def _of_guide(ll: LogLikelihood) -> _Answer:
    """What samples of the guide say."""
    found = _Found(*(getattr(ll, name).copy() for name in _Found._fields))
    return _Answer(found, misses(ll.khat, ll.stderr, ll.unseen, ll.unseen_stderr), {})


def _of_rounded(method: str, left: np.ndarray, rounded: np.ndarray) -> list[Failure]:
    """That a method, of the data that were left to it, does not serve those that are rounded (n,)."""
    return [Failure(method, int(rounded.sum()), int(left[rounded][0]), REASON)] if rounded.any() else []


def _of_coarse(coarse: np.ndarray) -> list[Failure]:
    reason = f"much of the error is {ROUNDING}"
    return [Failure(_MORE, int(coarse.sum()), int(coarse.argmax()), reason)] if coarse.any() else []


class _Course:
    """The best that is known of each datum so far, and by what method.

    What probes have found stays in mind: that something was missed, and that much of it is still missing.
    """

    def __init__(self, ll: LogLikelihood) -> None:
        self.best, misses, _ = _of_guide(ll)
        self._rounded = ll.rounded
        self.method = np.full(len(ll.value), _GUIDE, dtype=object)
        self._missed, self._missing = misses.some | ll.too_coarse, misses.much
        self.coarse = ll.too_coarse & (self.best.verdict == NOISY)
        """Data that no method makes reliable, since their numbers are too coarse."""

    def served_by(self, name: str) -> np.ndarray:
        """Data that a method may serve (N,): samples of the same guide find nothing new, chains are the last resort.

        None serves where samples round to the edge of a support, nor where no more than rounding is to mend.
        """
        served = {_MORE: ~self._missing, _ANNEALED: self.best.verdict == UNRELIABLE}
        return served.get(name, np.ones(len(self.method), dtype=bool)) & ~self._rounded & ~self.coarse

    def take(self, name: str, left: np.ndarray, answer: _Answer) -> None:
        """Puts what a method has found of some data (n,) where it is better."""
        before, missed, missing = _Found(*(array[left] for array in self.best)), self._missed, self._missing
        missing[left] = answer.misses.much | (np.isnan(answer.found.unseen) & missing[left])
        after = _in_view_of(before, missed[left], missing[left], answer.found)
        missed[left] |= answer.misses.some
        self._rounded[left] |= answer.found.rounded
        stays = _is_better(after, before)
        for known, found in zip(self.best, after, strict=True):
            known[left[stays]] = found[stays]
        self.method[left[stays]] = name


def _tried(method: Callable[[Any, int], _Answer], some: Batch, seed: int) -> _Answer:
    """What a method finds of some data; NaN with the reason where it fails, as it does alike in every process.

    It is tried again without a datum that its error names, some times.
    """
    left, reasons = np.arange(len(some[0])), dict[int, str]()
    for _ in range(_TRIES):
        try:
            answer = method(rows_of(some, torch.from_numpy(left)), seed)
            return _spread(answer, left, len(some[0]), reasons)
        except (PairError, EstimateError) as error:
            row, reason = row_of(error), reason_of(error)
        if row is None:
            break
        reasons[int(left[row])] = reason
        if not len(left := np.delete(left, row)):
            break
    return _spread(None, left[:0], len(some[0]), reasons | dict.fromkeys(left.tolist(), reason))


def _spread(answer: _Answer | None, left: np.ndarray, size: int, reasons: dict[int, str]) -> _Answer:
    """An answer about some of the data as one about all of them, with NaN for the others."""
    none, no = np.full(size, np.nan), np.zeros(size, dtype=bool)
    found, missed = _Found(none, none, none, none, none, no, no, np.full(size, UNRELIABLE)), Misses(no, no)
    if answer is None:
        return _Answer(found, missed, reasons)

    def put(whole: np.ndarray, part: np.ndarray) -> np.ndarray:
        whole = whole.copy()
        whole[left] = part
        return whole

    return _Answer(
        _Found(*map(put, found, answer.found)),
        Misses(*map(put, missed, answer.misses)),
        reasons | {int(left[n]): reason for n, reason in answer.reasons.items()},
    )


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
    nearer = after.value > before.value + 2 * _NO_MORE_BY_CHANCE
    return (rise > 0) | ((rise == 0) & ((after.verdict != UNRELIABLE) | (~after.rounded & (no_luck | nearer))))


def _rank(words: np.ndarray) -> np.ndarray:
    return np.where(words == RELIABLE, 2, np.where(words == NOISY, 1, 0))


def _refined(pair: Any, data: Any, num_samples: int, seed: int, device: str | torch.device, progress: bool) -> _Answer:
    with evaluating(pair, data, device) as subject:
        known, rows, layout, where, _ = subject
        one = rows.take(slice(0, 1), where)
        frailty = Frailty.of(known, one, layout, first_draw(known, one, layout))

        def work(batch: Batch, first: int) -> dict[str, np.ndarray]:
            summary, unseen, edges = refine(known, batch, layout, frailty, first, num_samples, seed, where)
            return summary._asdict() | {"unseen": unseen.share, "unseen_stderr": unseen.stderr} | edges

        attempts = Attempts(work, (*Summary._fields, "unseen", "unseen_stderr", "at_edge", "num_at_edge"))
        swept = subject.sweep(subject.layout.largest_batch(_ROWS), "refined proposals", progress, attempts)
    s = swept.gathered()
    reasons = attempts.gathered_reasons(swept.group, swept.device)
    words, rounded = trust(s, np.full(len(s["value"]), rounded_up(num_samples)))
    no = np.zeros_like(rounded)
    found = _Found(s["value"], s["stderr"], s["skewness"], s["unseen"], s["rounding"], no, rounded, words)
    return _Answer(found, misses(s["khat"], s["stderr"], s["unseen"], s["unseen_stderr"]), reasons)


def _annealed(
    pair: Any, data: Any, annealing: Annealing, seed: int, device: str | torch.device, progress: bool
) -> _Answer:
    """Chains that are trusted are noisy: so few do not tell their own error well."""
    with evaluating(pair, data, device) as subject:

        def work(batch: Batch, first: int) -> dict[str, np.ndarray]:
            chains = Chains(subject, batch, first)
            try:
                return chains.estimate(annealing, seed)
            except PairError:  # the guide may be no start
                return chains.estimate(replace(annealing, start="prior"), seed)

        attempts = Attempts(work, ESTIMATES)
        swept = subject.sweep(num_rows(subject.layout), "annealing", progress, attempts)
    values = swept.gathered()
    reasons = attempts.gathered_reasons(swept.group, swept.device)
    ais = AnnealedLogLikelihood(
        **values, annealing=annealing, num_dimensions=subject.layout.num_dimensions, seconds=0.0
    )
    nothing = np.zeros(len(ais.value))
    words = np.where(ais.trusted, NOISY, UNRELIABLE)
    no = nothing > 0
    found = _Found(ais.value, ais.stderr, ais.skewness, nothing + np.nan, nothing + ais.rounding, no, no, words)
    return _Answer(found, Misses(no, no), reasons)
