"""The importance-sampled log-likelihood of any pair: per datum, with an error that can be trusted or says so."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import torch

from ppl_vae.evaluation.collect import Collection
from ppl_vae.evaluation.draws import LOG_LIK
from ppl_vae.evaluation.enumerated import judged
from ppl_vae.evaluation.proposal import propose
from ppl_vae.evaluation.proposing import Proposer
from ppl_vae.evaluation.result import LogLikelihood
from ppl_vae.evaluation.scoring import Scorer
from ppl_vae.evaluation.subject import evaluating
from ppl_vae.evaluation.weighing import Plan, weigh
from ppl_vae.options import whole_number
from ppl_vae.pair import Pair
from ppl_vae.progress import Progress
from ppl_vae.rng import seeded
from ppl_vae.tape import Batch, Layout

__all__ = ["log_likelihood"]

# Noise belongs to blocks whose size depends on K and the size of a latent value alone, never on memory.
_MAX_ROWS = 256
_BLOCK_SCALARS = 1 << 21


def log_likelihood(
    pair: Any,
    data: Any,
    num_samples: int = 5000,
    seed: int = 0,
    *,
    num_draws: int = 16,
    memory: int = 256 << 20,
    device: str | torch.device = "auto",
    compile: Literal["auto"] | bool = "auto",
    progress: bool = True,
) -> LogLikelihood:
    r"""Estimates log p(x) of every datum by importance sampling with the guide as proposal.

    .. math:: \log \hat p(x) = \log \frac{1}{K} \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    p-hat is unbiased, its log a lower bound in mean that rises to log p(x) with K. Of a pair without latents it is
    log p(x) itself, with error 0. Exactly K samples are drawn whatever
    the chunking; noise belongs to fixed blocks of data and samples, so that `memory` changes no number beyond rounding.
    Neither parameters, buffers, modes, numbers that programs keep by name nor torch's random state are changed (but for
    what a first run makes and what programs add to containers, as in `check`). Where torch.distributed has been
    started, every process has to call this: each takes its share of the data, and all get the results of all.

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`.
        data: Data (N, *event) or a tuple of arrays, as for `fit`.
        num_samples: K.
        seed: Of the samples.
        num_draws: Posterior draws to keep for each datum (resampled by weight), for `to_arviz`.
        memory: Bytes that the decoder may use at once, about.
        device: Where to evaluate; "auto" is where the parameters are. The pair is put back afterwards.
        compile: Whether to compile guide and model: True at once, "auto" if the draws that are left will earn back what
            compiling costs. Changes no number beyond rounding; what cannot be compiled runs as written, and a warning
            says why. Programs that change with their calls in a way that `fit` names as unseen need False.
        progress: Show a progress bar where there is a terminal.

    Returns:
        A `LogLikelihood`; `print` gives the verdict in a sentence.

    Raises:
        PairError: If the pair is not valid, reconstructs the datum that it scores, has latents outside the data plate,
            subsamples within a datum, or raises on some rows, which are named; the error itself is the cause.
        DataError: If a datum lies outside the support of its site.
        EstimateError: If a weight is NaN or infinite, or all weights of a datum are zero; the row is named.

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
    whole_number("num_samples", num_samples, least=1)
    whole_number("num_draws", num_draws, least=0)
    whole_number("seed", seed)
    start = time.monotonic()
    with evaluating(pair, data, device) as subject, ExitStack() as stack:
        pair, rows, layout, target, group = subject
        size = _latent_size(pair, rows.take(slice(0, 1), target), layout)
        num_drawn = num_samples if layout.local_latents else 1  # without latents each weight is p(x)
        plan = Plan(num_drawn, *_block_shape(num_drawn, size, layout), num_draws, seed)
        blocks, own = subject.blocks(plan.num_rows)
        draw = Proposer(
            pair, layout, compile, len(blocks) * math.ceil(num_drawn / plan.num_particles), plan.num_particles
        )
        score = Scorer(pair, layout, memory, compile, (own.stop - own.start) * num_drawn)
        summary, posterior = Collection(len(rows)), Collection(len(rows), axis=1)
        bar = stack.enter_context(Progress("log-likelihood", own.stop, progress and group.leads, "data"))
        for first in blocks:
            batch = rows.take(slice(first, first + plan.num_rows), target)
            found, draws = weigh(batch, first, plan, layout, draw, score, target)
            summary.put(first, judged(found, pair, batch, layout, num_samples)._asdict())
            posterior.put(first, draws)
            bar.update(first + len(batch[0]), "")
    values, draws_of_all = (collection.gather(group, own, target) for collection in (summary, posterior))
    posterior_log_lik = draws_of_all.pop(LOG_LIK, np.empty((0, 0)))
    return LogLikelihood(
        **values,
        num_samples=num_samples,
        num_dimensions=layout.observed_size,
        seconds=time.monotonic() - start,
        posterior=draws_of_all,
        posterior_log_lik=posterior_log_lik,
    )


def _latent_size(pair: Pair, batch: Batch, layout: Layout) -> int:
    """Number of scalars in the latent values of one datum."""
    with seeded(0, pair.device):
        latents = propose(pair, batch, 1, layout).latents[0]
    return max(1, sum(value.numel() for value in latents.values()))


def _block_shape(num_samples: int, latent_size: int, layout: Layout) -> tuple[int, int]:
    """Rows and particles of a block of noise: all K particles of a few rows, or an even part of those of one."""
    affordable = max(1, _BLOCK_SCALARS // latent_size)
    num_blocks = math.ceil(num_samples / affordable)
    if not layout.vectorized:
        return layout.largest_batch(_MAX_ROWS), max(1, min(num_samples, affordable // _MAX_ROWS))
    return layout.largest_batch(min(_MAX_ROWS, max(1, affordable // num_samples))), math.ceil(num_samples / num_blocks)
