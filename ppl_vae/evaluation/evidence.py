"""The exact evidence of pairs whose latents can be summed or integrated out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.errors import EstimateError, PairError
from ppl_vae.evaluation.coarseness import warn_of_rounding
from ppl_vae.evaluation.exact_result import ExactLogLikelihood
from ppl_vae.evaluation.proposal import site_at_fault
from ppl_vae.evaluation.quadrature import integrate
from ppl_vae.evaluation.subject import evaluating
from ppl_vae.pair import Pair
from ppl_vae.rng import seeded
from ppl_vae.shrinking import Places, Shrinking, rows_of
from ppl_vae.tape import Batch, Layout, run_program
from ppl_vae.terms import outer_plates, run
from ppl_vae.weights import not_a_weight

__all__ = ["enumerate_latents", "exact_log_likelihood", "log_evidence", "site_of_values"]

_ROWS = 16
_MOST_VALUES, _AT_ONCE = 1 << 20, 1 << 18  # joint values of discrete latents; the same times data, in one run


def log_evidence(pair: Any, data: Any, *, device: str | torch.device = "auto", progress: bool = True) -> np.ndarray:
    r"""Exact log p(x) of every datum, (N,), in nats, where it can be had.

    Latents of finitely many values are summed over; one or two continuous numbers, beside discrete ones or alone, are
    integrated by adaptive quadrature, to 1e-4 nats and the rounding of p(x, z), of which a warning tells where it is
    more than 1e-3 nats; without latents it is what the model says. What `probs` of 0 exclude has a log p of -16
    (float32) or -36, since torch moves them off 0; `logits` of -inf, of a `Categorical`, exclude.

    Quadrature knows no more of p(x, z) than where it has looked: around draws of the prior, given each value of
    discrete latents and each component of a `MixtureSameFamily`, and of the guide, and up the slopes from a grid that
    ends 11,000 widths of the prior away. Lost, without a sign, is the mass of a mode that none of these leads to: one
    farther out, or where a program fails; one away from them that is narrower than 1/100 of the prior for one number,
    1/3 for two; and a peak without a slope that leads to it, such as a spike on a plateau, between the nodes of the
    first cells: about 1,000 of one number, 14,400 of two. A guide that covers the posterior is the best help, and
    `log_likelihood` with it the check. Two numbers with modes some hundreds of widths apart may be too many cells, and
    an `EstimateError`.

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`; its guide only says where to look as well.
        data: Data (N, *event) or a tuple of arrays.
        device: Where to evaluate; "auto" is where the parameters are.
        progress: Show a progress bar where there is a terminal.

    Raises:
        PairError: More than two continuous numbers a datum, or discrete ones of infinitely many values, or of more than
            a million joint ones; or the pair is not valid.
        DataError: A datum lies outside the support of its site.
        EstimateError: A density is NaN or infinite, quadrature does not settle, latents round to the edge of their
            support where p(x, z) still counts, or p(x, z) is narrower than numbers of their type are apart; the row is
            named.

    Example:
        >>> import torch
        >>> import ppl_vae as pv
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> x = ppca.sample(3)
        >>> bool(abs(log_evidence(ppca, x, progress=False) - ppca.log_prob(x).numpy()).max() < 1e-6)
        True
    """
    return exact_log_likelihood(pair, data, device=device, progress=progress).value


def exact_log_likelihood(
    pair: Any, data: Any, *, device: str | torch.device = "auto", progress: bool = True
) -> ExactLogLikelihood:
    """`log_evidence` as a result like that of `log_likelihood`."""
    start = time.monotonic()
    with evaluating(pair, data, device) as subject:
        within_memory = Shrinking("the sum over all values of the latents")

        def work(batch: Batch, first: int) -> dict[str, np.ndarray]:
            if not first:
                warn_of_rounding(subject.pair, batch, subject.layout, "exact log p(x)")
            with seeded(0, subject.device):
                value = _of_block(subject.pair, batch, subject.layout, first, within_memory)
            return {"value": value.double().cpu().numpy()}

        swept = subject.sweep(_num_rows(subject.layout), "log p(x)", progress, work)
    return ExactLogLikelihood.of(swept.gathered()["value"], subject.layout.num_dimensions, time.monotonic() - start)


def enumerate_latents(pair: Pair, batch: Batch, layout: Layout) -> Tensor:
    """log sum_z p(x, z) over all values of latents that are all discrete, (N,), float64.

    A masked latent has no density of its own: it is averaged over the guide's draws, as importance sampling does.
    """
    terms = run(pair, batch, 1, layout, enumerate_discrete=True).unscaled()
    log_joint = terms.log_lik + terms.log_prior
    if terms.particle_weights is not None:
        masked = terms.particle_weights.log() - terms.log_guide
        log_joint = log_joint + torch.where(terms.log_guide.isneginf(), 0.0, masked)
    return log_joint.double().logsumexp(0)


def _num_rows(layout: Layout) -> int:
    """Data of a block: fewer where their latents have many values, all of which are gone through at once.

    Raises:
        PairError: They are too many.
    """
    found = math.prod(layout.cardinalities.values())
    if _is_sum(layout) and found > _MOST_VALUES:
        most = max(layout.cardinalities, key=lambda name: layout.cardinalities[name])
        raise PairError(
            f"site {most!r}: expected at most {_MOST_VALUES:,} joint values of discrete latents to sum over, found "
            f"{found:,}: use log_likelihood"
        )
    return layout.largest_batch(max(1, min(_ROWS, _AT_ONCE // found)))


def _is_sum(layout: Layout) -> bool:
    return set(layout.local_latents) == set(layout.cardinalities)


def _of_block(pair: Pair, batch: Batch, layout: Layout, first: int, within_memory: Shrinking) -> Tensor:
    if not _is_sum(layout):
        return integrate(pair, batch, layout, first)

    def summed(some: Places, _: range) -> tuple[Tensor]:
        return (enumerate_latents(pair, rows_of(batch, some), layout).unsqueeze(0),)

    found = within_memory(summed, range(len(batch[0])), range(1))[0][0]
    if bool((wrong := not_a_weight(found)).any()):
        n = int(wrong.nonzero()[0])
        raise EstimateError(
            f"row {first + n}: expected a finite log p(x, z) at all values of the latents, found {float(found[n])}: "
            f"{site_of_values(pair, rows_of(batch, range(n, n + 1)), layout)}; mend the density there, or use "
            "log_likelihood, which asks for it at draws of the guide alone where they are fewer than all values"
        )
    return found


def site_of_values(pair: Pair, row: Batch, layout: Layout, is_bad: Callable[[Tensor], Tensor] = not_a_weight) -> str:
    """The site that has no density at some value of the latents of a datum, in words."""
    (size,) = outer_plates(math.prod(layout.cardinalities.values()), layout)
    guide = run_program(pair, pair.guide, row, size, layout, enumerated=layout.cardinalities)
    model = run_program(pair, pair.model, row, size, layout, guide.replay)
    return site_at_fault([("model", model), ("guide", guide)], layout, is_bad=is_bad)
