"""The importance-sampled log-likelihood of any pair: per datum, with an error that can be trusted or says so."""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import numpy as np
import torch

from ppl_vae.evaluation.draws import LOG_LIK, put_in, taken_out
from ppl_vae.evaluation.enumerated import Enumerated, is_exact, made_exact
from ppl_vae.evaluation.identity import signatures
from ppl_vae.evaluation.precision import LEAST_UNIT, NUM_UNITS
from ppl_vae.evaluation.probing import Prober, Unseen, probes_enough
from ppl_vae.evaluation.proposal import first_draw
from ppl_vae.evaluation.proposing import Proposer
from ppl_vae.evaluation.result import LogLikelihood
from ppl_vae.evaluation.scoring import Scorer, chunk_rows
from ppl_vae.evaluation.subject import Subject, evaluating
from ppl_vae.evaluation.tally import Frailty
from ppl_vae.evaluation.weighing import Plan, Weigher, weigh
from ppl_vae.options import compile_choice, positive_number, seed_number, whole_number
from ppl_vae.pareto import FEW
from ppl_vae.rng import key
from ppl_vae.shrinking import Shrinking
from ppl_vae.tape import Batch, Layout
from ppl_vae.weights import check_possible

__all__ = ["log_likelihood", "planned"]

# Noise belongs to blocks whose size depends on K and the size of a latent value alone, never on memory.
_MAX_ROWS = 256
_BLOCK_SCALARS = 1 << 21
_PROBES = 0x9B0B  # what noise is for


def log_likelihood(
    pair: Any,
    data: Any,
    num_samples: int = 5000,
    seed: int = 0,
    *,
    target_stderr: float | None = None,
    num_draws: int = 16,
    num_probes: int | None = None,
    memory: int = 256 << 20,
    device: str | torch.device = "auto",
    compile: Literal["auto"] | bool = "auto",
    progress: bool = True,
) -> LogLikelihood:
    r"""Estimates log p(x) of every datum by importance sampling with the guide as proposal.

    .. math:: \log \hat p(x) = \log \frac{1}{K} \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    p-hat is unbiased, its log a lower bound in mean that rises to log p(x) with K. Of a pair without latents, or whose
    latents are all discrete with no more than K joint values, over which it sums, it is log p(x) itself, with error 0,
    and minus infinity of a datum that the model excludes. Exact is what the distributions say: torch moves `probs` of 0
    and 1 off by the rounding of their type, so that what they exclude has log p = -16 (float32) or -36; a
    `Categorical` of `logits` -inf excludes.

    Exactly K samples are drawn whatever the chunking. Noise belongs to the seed and to fixed blocks of data and
    samples, so that `memory` changes no number beyond rounding. The data of a block share it: the same datum in another
    place, or among fewer data, has other samples. The verdict on a datum, too, looks at the data of the whole call.

    With a `target_stderr`, a twentieth of `num_samples`, but at least 50, is drawn for each datum as a pilot that says
    how many samples it needs for that error, and for the tail of its weights; the pilot goes on until it is a quarter
    of that. As many are drawn afresh, at most `num_samples`: the pilot is laid aside, since samples that decide when to
    stop would bias what they estimate. For the same reason a datum whose error comes out above the target keeps it, and
    is counted in what is printed: one in ten, about, where the weights have a variance that samples can tell. Where
    `num_samples` is 100 or less there is no pilot, and each datum has them all.

    Neither parameters, buffers, modes, numbers that programs keep by name nor torch's random state are changed (but for
    what a first run makes and what programs add to containers, as in `check`). Where torch.distributed has been
    started, every process has to call this: each takes its share of the data, and all get the results of all.

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`.
        data: Data (N, *event) or a tuple of arrays, as for `fit`.
        num_samples: K; with a target, the most that a datum may have.
        seed: Of the samples.
        target_stderr: Standard error that is enough for a datum, in nats, about; None draws K samples for each. A mean
            over N data has 1 / sqrt(N) of it.
        num_draws: Posterior draws to keep for each datum (resampled by weight), for `to_arviz`.
        num_probes: Draws of a guide spread out, for each datum, that look for what its samples cannot have seen: see
            `LogLikelihood.unseen`; 0, or at least 2. None takes 64, and of few data more, up to K / 8 of each or 25,000
            in all. Discrete latents go through all their values so many times, as far as that takes no more draws than
            K. Discrete latents without end, or of more than K / 2 joint values, and guides that leave the support of
            the model are not spread: draws of the prior look instead, and of the guide with discrete numbers put
            anywhere, which no verdict better than `noisy` can rest on.
            0 does without; so do ten samples or less, pairs that cannot run many particles at once, and guides with
            draws beside the latents: none of their verdicts is better than `noisy`.
        memory: Bytes that the decoder may use at once, about. Where memory runs out all the same, it scores fewer draws
            at once for the rest of the call, down to one of one datum; the numbers are the same, and a warning says so.
        device: Where to evaluate; "auto" is where the parameters are. The pair is put back afterwards.
        compile: Whether to compile guide and model: True at once, "auto" if the draws that are left (with a target,
            those that pilots ask for) will earn back what compiling costs. Changes no number beyond rounding; what
            cannot be compiled runs as written, and a warning says why. Programs that change with their calls in a way
            that `fit` names as unseen need False.
        progress: Show a progress bar where there is a terminal.

    Returns:
        A `LogLikelihood`; `print` gives the verdict in a sentence.

    Raises:
        PairError: If the pair is not valid, reconstructs the datum that it scores, has latents outside the data plate,
            subsamples within a datum, or raises on some rows, which are named; the error itself is the cause.
        DataError: If a datum lies outside the support of its site, loses what varies in it in the type of the
            parameters (1e7 + noise in float32), or is a count that torch cannot score in it (a million).
        EstimateError: If a weight is NaN or infinite, or all weights of a datum are zero though its log p(x) is not
            known to be minus infinity, nor known at all and no posterior draws wanted; the row is named. Or if memory
            does not suffice for one draw of one datum, or for the guide's draws of a block of data.

    Reference:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016). Pareto Smoothed Importance Sampling
        (Vehtari, Simpson, Gelman, Yao and Gabry, 2024).

    Example:
        >>> import torch, ppl_vae as pv
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> x = ppca.sample(3)
        >>> ll = pv.log_likelihood(ppca, x, num_samples=20, progress=False)
        >>> bool(abs(ll.value - ppca.log_prob(x).numpy()).max() < 1e-10), float(ll.stderr.max())
        (True, 0.0)
    """
    _check_options(num_samples, seed, target_stderr, num_draws, num_probes)
    compile_choice(compile)
    start = time.monotonic()
    with evaluating(pair, data, device) as subject:
        plan, weigher = planned(subject, num_samples, seed, memory, compile, num_draws, target_stderr)
        evaluator = _Evaluator(subject, plan, weigher, num_samples, num_probes)
        swept = subject.sweep(plan.num_rows, "log-likelihood", progress, evaluator.block)
    values = swept.gathered()
    draws = taken_out(values)
    posterior_log_lik = draws.pop(LOG_LIK, np.empty((0, 0)))
    return LogLikelihood(
        **values,
        num_samples=num_samples,
        target_stderr=target_stderr,
        num_dimensions=subject.layout.num_dimensions,
        seconds=time.monotonic() - start,
        posterior=draws,
        posterior_log_lik=posterior_log_lik,
    )


def _check_options(
    num_samples: int, seed: int, target_stderr: float | None, num_draws: int, num_probes: int | None
) -> None:
    whole_number("num_samples", num_samples, least=1)
    whole_number("num_draws", num_draws, least=0)
    if num_probes is not None:
        whole_number("num_probes", num_probes, least=0)
        if num_probes == 1:
            raise ValueError("num_probes: expected 0, or at least 2, which have an error, found 1")
    seed_number("seed", seed)
    if target_stderr is not None:
        positive_number("target_stderr", target_stderr)


class _Evaluator:
    """Estimates log p(x) of blocks of data."""

    def __init__(
        self, subject: Subject, plan: Plan, weigher: Weigher, num_samples: int, num_probes: int | None
    ) -> None:
        self._subject, self._plan, self._weigher, self._num_samples = subject, plan, weigher, num_samples
        pair, _, layout, device, _ = subject
        self._enumeration = Shrinking("the sum over all values of the latents")
        self._is_exact = is_exact(layout, num_samples)
        count = probes_enough(len(subject.rows), num_samples, plan.num_particles) if num_probes is None else num_probes
        self._probe = Prober(pair, layout, weigher.score, count if num_samples > FEW else 0, num_samples, device)

    def block(self, batch: Batch, first: int) -> dict[str, np.ndarray]:
        """What is said of each datum of a block whose first is `first`, and posterior draws."""
        layout, found = self._subject.layout, weigh(batch, first, self._plan, self._weigher)
        said, summed, exact = Enumerated(found.summary, *np.zeros((2, len(batch[0])), dtype=bool))
        if self._is_exact:
            pair, within = self._subject.pair, self._enumeration
            said, summed, exact = made_exact(said, pair, batch, layout, self._num_samples, within)
        # Weights of zero say nothing of what is not summed, nor of a posterior that there is.
        told = summed & (np.isneginf(said.value) | (self._plan.num_draws == 0))
        known = np.where(told, 0.0, found.summary.value)
        check_possible(torch.from_numpy(known), torch.from_numpy(found.num_drawn), first)
        if self._is_exact:
            unseen = Unseen(*np.where(summed, np.zeros((2, 1)), np.nan))
        else:
            unseen = self._probe(batch, said, found.num_drawn, key(self._plan.seed, first, _PROBES))
        drawn = found.num_drawn if layout.local_latents else np.full(len(batch[0]), self._num_samples)
        values = said._asdict() | {
            "unseen": unseen.share,
            "unseen_stderr": unseen.stderr,
            "exact": exact,
            "num_drawn": drawn,
            "num_pilot": found.num_pilot,
            "at_edge": np.where(summed, 0.0, found.at_edge),
            "signature": signatures(batch),
            "num_at_edge": np.where(summed, 0, found.num_at_edge),
        }
        return values | put_in(found.draws)


def planned(
    subject: Subject,
    num_samples: int,
    seed: int,
    memory: int,
    compile: Literal["auto"] | bool,
    num_draws: int = 0,
    target_stderr: float | None = None,
) -> tuple[Plan, Weigher]:
    """How the samples of an evaluation are divided, and what draws and weighs them; arguments are its options."""
    pair, rows, layout, device, _ = subject
    one = rows.take(slice(0, 1), device)
    guide = first_draw(pair, one, layout)
    size = max(1, sum(guide.latents[name].numel() for name in layout.local_latents))
    most = num_samples if layout.local_latents else 1  # without latents each weight is p(x)
    unit = max(LEAST_UNIT, math.ceil(most / NUM_UNITS))
    adaptive = target_stderr is not None and most > 2 * unit
    shape = _block_shape(unit if adaptive else most, size, layout)
    plan = Plan(most, *shape, num_draws, seed, target_stderr if adaptive else None)
    blocks, own = subject.blocks(plan.num_rows)
    # Of samples that pilots decide on, no more than a pilot and as many afresh is sure; `weigh` hears of the others.
    sure = 2 * plan.num_particles if adaptive else most
    num_units = math.ceil(sure / plan.num_particles)
    draw = Proposer(pair, layout, compile, len(blocks) * num_units, plan.num_particles)
    # Data that need more samples than others are few: chunks of few data are full.
    narrow = max(1, chunk_rows(device) // plan.num_particles) if adaptive else None
    score = Scorer(pair, layout, memory, compile, (own.stop - own.start) * sure, narrow)
    return plan, Weigher(pair, layout, draw, score, device, Frailty.of(pair, one, layout, guide), own.stop)


def _block_shape(num_samples: int, latent_size: int, layout: Layout) -> tuple[int, int]:
    """Rows and particles of a block of noise: all K particles of a few rows, or an even part of those of one."""
    affordable = max(1, _BLOCK_SCALARS // latent_size)
    num_blocks = math.ceil(num_samples / affordable)
    if not layout.vectorized:
        rows = min(_MAX_ROWS, affordable)
        return layout.largest_batch(rows), max(1, min(num_samples, affordable // rows))
    return layout.largest_batch(min(_MAX_ROWS, max(1, affordable // num_samples))), math.ceil(num_samples / num_blocks)
