"""The exact answer where latents have finitely many values, or there are none: k-hat has nothing to say of them."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from ppl_vae.evaluation.evidence import enumerate_latents
from ppl_vae.pair import Pair
from ppl_vae.shrinking import Places, Shrinking, rows_of
from ppl_vae.tape import Batch, Layout
from ppl_vae.weights import Summary

__all__ = ["judged"]

_STANDARD_ERRORS, _MOST, _ROUNDING = 4.0, 0.2, 1e-3


def judged(
    summary: Summary, pair: Pair, batch: Batch, layout: Layout, num_samples: int, within_memory: Shrinking
) -> Summary:
    """The summary with a k-hat that says whether the estimate of a datum agrees with the sum over all values of z.

    Weights of finitely many values have no tail to fit, and values that were never drawn leave no trace in them. Where
    going through all values costs no more than the samples did, k-hat is -inf for an estimate within four of its
    standard errors, and 0.2 nats, of log sum_z p(x, z), +inf for any other. Without latents every weight is p(x).
    """
    if not layout.local_latents:
        zero, every = np.zeros_like(summary.value), np.full_like(summary.value, num_samples)
        return summary._replace(stderr=zero, ess=every, khat=np.full_like(zero, -np.inf))
    if not _is_enumerable(layout, num_samples):
        return summary

    def enumerated(some: Places, _: range) -> tuple[Tensor]:
        return (enumerate_latents(pair, rows_of(batch, some), layout).unsqueeze(0),)

    exact = within_memory(enumerated, range(len(batch[0])), range(1))[0][0].cpu().numpy()
    error = np.abs(summary.value - exact)
    agrees = error <= np.minimum(_STANDARD_ERRORS * np.nan_to_num(summary.stderr), _MOST) + _ROUNDING
    return summary._replace(khat=np.where(agrees, -np.inf, np.inf))


def _is_enumerable(layout: Layout, num_samples: int) -> bool:
    every = bool(layout.local_latents) and set(layout.local_latents) == set(layout.cardinalities)
    few = math.prod(layout.cardinalities.values()) <= num_samples
    return every and few and layout.vectorized and not layout.may_leave_support
