"""log p(x) itself where latents have finitely many values, or there are none: their weights tell nothing of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ppl_vae.evaluation.coarseness import COARSE
from ppl_vae.evaluation.evidence import enumerate_latents
from ppl_vae.pair import Pair
from ppl_vae.shrinking import Places, Shrinking, rows_of
from ppl_vae.tape import Batch, Layout
from ppl_vae.weights import Summary

__all__ = ["Enumerated", "is_exact", "made_exact"]


class Enumerated(NamedTuple):
    """What is said of some data once values of latents have been summed over."""

    summary: Summary
    """Of the weights, with log p(x) in the place of its estimate where that is known."""
    summed: np.ndarray
    """Where it is (N,)."""
    exact: np.ndarray
    """Where it is, and rounding is no error to speak of (N,)."""


def is_exact(layout: Layout, num_samples: int) -> bool:
    """Whether going through all values of the latents costs no more than the samples do; true without latents."""
    every = set(layout.local_latents) == set(layout.cardinalities)
    few = math.prod(layout.cardinalities.values()) <= num_samples
    summed = every and few and layout.vectorized and not layout.may_leave_support
    return summed or not layout.local_latents


def made_exact(
    summary: Summary, pair: Pair, batch: Batch, layout: Layout, num_samples: int, within_memory: Shrinking
) -> Enumerated:
    """The summary with log p(x) = log sum_z p(x, z) in the place of its estimate, k-hat -inf, and rounding its error.

    Weights of finitely many values have no tail to fit, and values that were never drawn leave no trace in them: an
    estimate that agrees with its own error may lack them all the same. Without latents every weight is p(x). A datum
    that no value allows has log p(x) = -inf. Where the sum is NaN or plus infinity, as a density is at values that the
    guide does not draw, the estimate stays, with k-hat +inf.
    """
    rounding = np.where(summary.rounding > COARSE, summary.rounding, 0.0)
    if not layout.local_latents:
        every, zero = np.full_like(rounding, num_samples), np.zeros_like(rounding)
        said = summary._replace(
            stderr=rounding,
            ess=every,
            khat=zero - np.inf,
            zero_weights=np.zeros_like(summary.zero_weights),
            skewness=zero,
            smoothed=summary.value,
            rounding=rounding,
        )
        return Enumerated(said, np.ones_like(zero, dtype=bool), rounding == 0)

    def enumerated(some: Places, _: range) -> tuple[Tensor]:
        return (enumerate_latents(pair, rows_of(batch, some), layout).unsqueeze(0),)

    log_sum = within_memory(enumerated, range(len(batch[0])), range(1))[0][0].cpu().numpy()
    summed = log_sum < np.inf
    said = summary._replace(
        value=np.where(summed, log_sum, summary.value),
        stderr=np.where(summed, rounding, summary.stderr),
        skewness=np.where(summed, 0.0, summary.skewness),
        smoothed=np.where(summed, log_sum, np.nan),
        khat=np.where(summed, -np.inf, np.inf),
        rounding=np.where(summed, rounding, summary.rounding),
    )
    return Enumerated(said, summed, summed & (rounding == 0))
