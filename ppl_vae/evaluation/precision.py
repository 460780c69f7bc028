"""How many samples a datum needs for a standard error that is given."""

from __future__ import annotations

import math

import numpy as np

from ppl_vae.weights import Summary

__all__ = ["LEAST_UNIT", "NUM_UNITS", "samples_needed"]

NUM_UNITS = 20  # samples come in twentieths of the cap, the first of which is the pilot
LEAST_UNIT = 50  # samples below which a pilot says nothing


def samples_needed(pilot: Summary, num_pilot: int, target_stderr: float, most: int) -> np.ndarray:
    r"""Samples that each datum needs, in whole units of the pilot, at most a cap; (N,).

    .. math:: K = \max\left(\frac{\chi^2 (1 + 2 a)}{\mathrm{target}^2}, \; 10^{1 / (1 - \hat k)}\right)

    with chi2 = K' / ESS - 1, the variance of a weight, and a the skewness of the mean, of K' pilot draws: a pilot that
    has missed large weights by one and a half standard errors has a chi2 too small by 3 a of itself. The second term is
    how many draws a tail of that shape needs, whatever the target.

    Args:
        pilot: What the pilot says.
        num_pilot: K', draws of the pilot, the unit.
        target_stderr: Standard error that is enough, in nats.
        most: The cap.

    Reference:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling: the sample size of a k-hat.
    """
    variance = (num_pilot / pilot.ess - 1) * (1 + 2 * np.maximum(pilot.skewness, 0.0))
    for_error = variance / target_stderr**2
    shape = np.clip(pilot.khat, 0.0, 1 - 1 / math.log10(max(most, 100)))  # no tail asks for more than the cap
    for_tail = np.where(pilot.khat == -np.inf, 1.0, 10 ** (1 / (1 - shape)))
    units = np.ceil(np.maximum(for_error, for_tail) / num_pilot).clip(1)
    return np.minimum(units * num_pilot, most).astype(np.int64)
