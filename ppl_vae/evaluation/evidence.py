"""The exact evidence of pairs whose latents can be summed or integrated out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.evaluation.quadrature import integrate
from ppl_vae.evaluation.subject import evaluating
from ppl_vae.pair import Pair
from ppl_vae.rng import seeded
from ppl_vae.tape import Batch, Layout
from ppl_vae.terms import run

__all__ = ["enumerate_latents", "log_evidence"]

_ROWS = 16


def log_evidence(pair: Any, data: Any, *, device: str | torch.device = "auto", progress: bool = True) -> np.ndarray:
    r"""Exact log p(x) of every datum, (N,), in nats, where it can be had.

    Latents of finitely many values are summed over; one or two continuous numbers, beside discrete ones or alone, are
    integrated by adaptive quadrature, to 1e-4 nats and the rounding of p(x, z); without latents it is what the model
    says. What is not found is a peak without a slope that leads to it, such as a spike on a plateau, between the nodes
    of the first grid: about 1,000 of one number, 14,400 of two.

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`; the guide is asked for nothing but its sites.
        data: Data (N, *event) or a tuple of arrays.
        device: Where to evaluate; "auto" is where the parameters are.
        progress: Show a progress bar where there is a terminal.

    Raises:
        PairError: More than two continuous numbers a datum, or discrete ones of infinitely many values, or the pair is
            not valid.
        DataError: A datum lies outside the support of its site.
        EstimateError: Quadrature does not settle; the row is named.

    Example:
        >>> import torch
        >>> import ppl_vae as pv
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> x = ppca.sample(3)
        >>> bool(abs(log_evidence(ppca, x, progress=False) - ppca.log_prob(x).numpy()).max() < 1e-6)
        True
    """
    with evaluating(pair, data, device) as subject:

        def work(batch: Batch, first: int) -> dict[str, np.ndarray]:
            with seeded(0, subject.device):
                value = _of_block(subject.pair, batch, subject.layout, first)
            return {"value": value.double().cpu().numpy()}

        swept = subject.sweep(subject.layout.largest_batch(_ROWS), "log p(x)", progress, work)
    return swept.gathered()["value"]


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


def _of_block(pair: Pair, batch: Batch, layout: Layout, first: int) -> Tensor:
    if set(layout.local_latents) == set(layout.cardinalities):
        return enumerate_latents(pair, batch, layout)
    return integrate(pair, batch, layout, first)
