"""The one place where a tolerance is defined: rounding for identities, standard errors for random numbers.

Identities hold to 1e-10 relative in float64 and to 1e-5 in float32 (`assert_close`). Where more than rounding comes in
(an iteration that stops, a difference quotient, a trained network), `assert_within` takes the tolerance and its reason.

Random numbers: family-wise false-failure probability 1e-6 over at most 300 assertions, so |z| <= 5.91 for each. An
assertion about a vector shares that of one number among its coordinates; a standard deviation that is estimated from n
draws is paid for by the tails of Student's t. The smallest effect a test detects with false-pass probability 1e-6 is
10.67 sigma / sqrt(n): every assertion names an effect, and fails if it could not have seen it.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}

Z_MAX = 5.91
POWER = 10.67
_FALSE_FAILURE = 2 * stats.norm.sf(Z_MAX)
_Z_PASS = POWER - Z_MAX


# Identities


def assert_close(actual, expected, dtype: torch.dtype | None = None, scale: float = 0.0) -> None:
    """Assert |actual - expected| <= rounding * max(|expected|, scale) in every entry; shapes must agree.

    The rounding is that of the less precise argument. `dtype` says it for numbers that have left their tensor;
    `scale` is the size of the terms of a sum that may cancel, such as 1 for a probability.
    """
    relative = ROUNDING[dtype or _less_precise(actual, expected)]
    _assert_within(actual, expected, relative, relative * scale, "rounding")


def assert_within(actual, expected, *, reason: str, relative: float = 0.0, absolute: float = 0.0) -> None:
    """Assert |actual - expected| <= max(relative * |expected|, absolute); `reason` says where the tolerance is from."""
    if not reason or not (relative or absolute):
        raise TypeError("a tolerance of its own needs a size and a reason")
    _assert_within(actual, expected, relative, absolute, reason)


def _assert_within(actual, expected, relative: float, absolute: float, reason: str) -> None:
    left, right = _double(actual), _double(expected)
    assert left.shape == right.shape, f"shape {left.shape} against {right.shape}"
    with np.errstate(invalid="ignore"):
        error = np.where(left == right, 0.0, np.abs(left - right))
        allowed = np.where(np.isfinite(right), np.maximum(relative * np.abs(right), absolute), 0.0)
    if (wrong := ~(error <= allowed)).any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} entries differ by more than {reason}; the first at {at}: "
            f"{left[at]!r} against {right[at]!r}, {allowed[at]:.3g} allowed"
        )


def _double(value) -> np.ndarray:
    return np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value, dtype=np.float64)


def _less_precise(*values) -> torch.dtype:
    single = ("torch.float32", "float32")
    return torch.float32 if any(str(getattr(v, "dtype", "")) in single for v in values) else torch.float64


# Random numbers


def z_limit(coordinates: int = 1, degrees: float = np.inf) -> float:
    """The bound on the largest of so many |z| that one chance failure is as rare as one |z| > 5.91.

    With `degrees` of freedom left to the estimate of each standard deviation, z has the tails of Student's t.
    """
    return float(stats.t.isf(_FALSE_FAILURE / 2 / coordinates, degrees))


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
    limit = z_limit(degrees=samples.size - 1 if sigma is None else np.inf)
    assert abs(z) <= limit, f"mean {samples.mean():.6g} against {truth:.6g}: z = {z:.2f}, limit {limit:.2f}"
    if effect is not None:
        smallest = detectable(samples.size, sd)
        assert smallest <= effect, f"the test detects {smallest:.3g} at best, not {effect:.3g}"


def assert_estimates(values, errors, truth, effect: float, degrees: float = np.inf) -> None:
    """Assert that estimates with standard errors agree with `truth`; a common shift of `effect` must be detectable."""
    values, errors, truth = np.broadcast_arrays(*(_double(v) for v in (values, errors, truth)))
    assert np.isfinite(values).all()
    assert (errors > 0).all(), "an estimate without error is no estimate: use assert_close"
    z, limit = (values - truth) / errors, z_limit(values.size, degrees)
    worst = int(np.abs(z).argmax())
    assert abs(z.flat[worst]) <= limit, (
        f"estimate {worst}: {values.flat[worst]:.6g} against {truth.flat[worst]:.6g}: "
        f"z = {z.flat[worst]:.2f}, limit {limit:.2f}"
    )
    smallest = (limit + _Z_PASS) * errors.min()
    assert smallest <= effect, f"the test detects {smallest:.3g} at best, not {effect:.3g}"


def assert_same_means(left, right, factor: float) -> None:
    """Assert that independent samples (n, P) of two vectors have the same mean.

    Args:
        left: Samples of the vector on trial.
        right: Samples of the reference, or its exact value, (P,).
        factor: The test must be able to see that `left` is the reference times 1 + factor.
    """
    left, right = _double(left), np.atleast_2d(_double(right))
    truth = right.mean(0)
    variance = left.var(0, ddof=1) / len(left) + (right.var(0, ddof=1) / len(right) if len(right) > 1 else 0.0)
    degrees = (min(len(left), len(right)) if len(right) > 1 else len(left)) - 1
    # Coordinates that do not vary are compared to rounding.
    floor = ROUNDING[torch.float64] * np.abs(truth).max()
    error = np.maximum(np.sqrt(variance), floor)
    z, limit = (left.mean(0) - truth) / error, z_limit(truth.size, degrees)
    assert np.abs(z).max() <= limit, f"coordinate {np.abs(z).argmax()}: z = {np.abs(z).max():.2f}, limit {limit:.2f}"
    smallest = (limit + _Z_PASS) / np.abs(truth / error).max(where=error > floor, initial=0.0)
    assert smallest <= factor, f"the test detects a factor of 1 + {smallest:.3g} at best, not 1 + {factor:.3g}"
