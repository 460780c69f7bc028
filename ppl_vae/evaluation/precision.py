"""How many samples a datum needs for a standard error that is given."""

from __future__ import annotations

import numpy as np

from ppl_vae.weights import Summary

__all__ = ["LEAST_UNIT", "NUM_UNITS", "pilot_needed", "samples_needed"]

NUM_UNITS = 20  # samples come in twentieths of the cap, one of which is the first pilot
LEAST_UNIT = 50  # samples below which a pilot says nothing
_HEAVIEST = 0.99
_MARGIN, _CHANCE = 4.0, 2.0
_PILOT_SHARE = 4


def samples_needed(pilot: Summary, num_pilot: np.ndarray, unit: int, target_stderr: float, most: int) -> np.ndarray:
    r"""Samples that each datum needs, in whole units, at most a cap; (N,).

    .. math:: K = \max\left(\frac{\chi^2 (1 + \max(4 a, 2 / \sqrt{K'}))}{\mathrm{target}^2}, \;
              10^{1 / (1 - \hat k)}\right)

    with chi2 = K' / ESS - 1, the variance of a weight, and a the skewness of the mean, of K' pilot draws: a pilot that
    has missed large weights by two standard errors has a chi2 too small by 4 a of itself; and where there are no large
    ones, that of the pilot and that of the estimate differ by chance, in one of ten data by 2 / sqrt(K') of themselves
    or more (as variances of normal numbers do). The second term is how many
    draws a tail of that shape needs, whatever the target. It is left out where it is more than the cap: no number of
    samples that is allowed would make that datum reliable, so that they are better spent on others.

    Args:
        pilot: What the pilot says.
        num_pilot: K', draws of the pilot of each datum (N,).
        unit: Samples come in multiples of it.
        target_stderr: Standard error that is enough, in nats.
        most: The cap.

    Reference:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling: the sample size of a k-hat.
    """
    margin = np.maximum(_MARGIN * pilot.skewness, _CHANCE / np.sqrt(num_pilot))
    variance = (num_pilot / pilot.ess - 1) * (1 + margin)
    for_error = variance / target_stderr**2
    with np.errstate(over="ignore"):
        for_tail = 10 ** (1 / (1 - np.clip(pilot.khat, 0.0, _HEAVIEST)))
    for_tail = np.where(for_tail <= most, for_tail, 1.0)
    return np.minimum(_in_units(np.maximum(for_error, for_tail), unit), most).astype(np.int64)


def pilot_needed(num_samples: np.ndarray, unit: int) -> np.ndarray:
    """Draws of a pilot that may decide on so many samples (N,): a quarter of them.

    A twentieth of the cap may not have seen the large weights that make the error of thousands of samples.

    Example:
        >>> pilot_needed(np.array([250, 1000, 1250, 5000]), 250).tolist()
        [250, 250, 500, 1250]
    """
    return _in_units(num_samples / _PILOT_SHARE, unit).astype(np.int64)


def _in_units(num_samples: np.ndarray, unit: int) -> np.ndarray:
    return np.ceil(num_samples / unit).clip(1) * unit
