"""How many samples a datum needs for a standard error that is given."""

from __future__ import annotations

import numpy as np

from ppl_vae.weights import Summary

__all__ = ["LEAST_UNIT", "NUM_UNITS", "samples_needed"]

NUM_UNITS = 20  # samples come in twentieths of the cap, the first of which is the pilot
LEAST_UNIT = 50  # samples below which a pilot says nothing
_HEAVIEST = 0.99


def samples_needed(pilot: Summary, num_pilot: int, target_stderr: float, most: int) -> np.ndarray:
    r"""Samples that each datum needs, in whole units of the pilot, at most a cap; (N,).

    .. math:: K = \max\left(\frac{\chi^2 (1 + 2 a)}{\mathrm{target}^2}, \; 10^{1 / (1 - \hat k)}\right)

    with chi2 = K' / ESS - 1, the variance of a weight, and a the skewness of the mean, of K' pilot draws: a pilot that
    has missed large weights by one and a half standard errors has a chi2 too small by 3 a of itself. The second term is
    how many draws a tail of that shape needs, whatever the target. It is left out where it is more than the cap: no
    number of samples that is allowed would make that datum reliable, so that they are better spent on others.

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
    with np.errstate(over="ignore"):
        for_tail = 10 ** (1 / (1 - np.clip(pilot.khat, 0.0, _HEAVIEST)))
    for_tail = np.where(for_tail <= most, for_tail, 1.0)
    units = np.ceil(np.maximum(for_error, for_tail) / num_pilot).clip(1)
    return np.minimum(units * num_pilot, most).astype(np.int64)
