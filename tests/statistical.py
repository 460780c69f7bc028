"""The one place where a statistical tolerance is defined.

Family-wise false-failure probability 1e-6 over at most 300 assertions: |z| <= 5.91 each.
The smallest effect a test detects with false-pass probability 1e-6 is 10.67 sigma / sqrt(n).
"""

from __future__ import annotations

import numpy as np

Z_MAX = 5.91
POWER = 10.67


def z_score(samples, truth, sigma=None) -> float:
    """z of the mean of independent `samples` against `truth`; `sigma` is the known standard deviation, if any."""
    samples = np.asarray(samples, dtype=np.float64)
    sd = samples.std(ddof=1) if sigma is None else sigma
    return float((samples.mean() - truth) / (sd / np.sqrt(samples.size)))


def detectable(n: int, sigma: float) -> float:
    """The smallest shift of a mean of n draws that a |z| <= 5.91 test cannot miss (false-pass 1e-6)."""
    return POWER * sigma / np.sqrt(n)


def assert_mean(samples, truth, sigma=None, effect=None) -> None:
    """Assert that `samples` have mean `truth`; if `effect` is given, also that a shift of that size would be seen."""
    samples = np.asarray(samples, dtype=np.float64)
    sd = samples.std(ddof=1) if sigma is None else sigma
    z = z_score(samples, truth, sigma)
    assert abs(z) <= Z_MAX, f"mean {samples.mean():.6g} against {truth:.6g}: z = {z:.2f}"
    if effect is not None:
        smallest = detectable(samples.size, sd)
        assert smallest <= effect, f"the test detects {smallest:.3g} at best, not {effect:.3g}"
