"""Ranks that should be uniform: tests of them, and what their shape says of the draws that they were taken among."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["central_coverage", "holm", "relative_width", "score", "smooth_test"]

Array = NDArray[np.float64]

_DEGREES = 4


def score(ranks: NDArray[np.int64], num_draws: int) -> Array:
    r"""Standardised mean of the first four orthonormal polynomials of a rank in 0..L, for each quantity, (Q, 4).

    Where ranks are uniform each has mean 0 and variance 1 exactly. The first is positive where the truth lies high
    among the draws, the second where it lies outside them too often, at either end.

    Args:
        ranks: Ranks of R simulations (R, Q).
        num_draws: L.

    Example:
        >>> score(np.array([[0], [1], [2], [3], [4]]), num_draws=4).round(12) + 0.0
        array([[0., 0., 0., 0.]])
    """
    values = np.arange(num_draws + 1, dtype=np.float64)
    powers = np.vander((values - values.mean()) / max(values.std(), 1.0), min(_DEGREES, num_draws) + 1, increasing=True)
    basis, signs = np.linalg.qr(powers)
    basis = basis * np.sign(signs.diagonal()) * np.sqrt(len(values))
    return basis[ranks, 1:].sum(0) / np.sqrt(len(ranks))


def smooth_test(scores: Array) -> Array:
    r"""Probability, for each quantity, that uniform ranks give a larger sum of squared scores, (Q,).

    Reference:
        Neyman (1937), "Smooth" Test for Goodness of Fit.

    Example:
        >>> float(smooth_test(np.array([[0.0, 3.6, 0.0, 0.0]]))[0].round(3))
        0.011
    """
    import torch

    half = torch.as_tensor(np.square(scores).sum(1) / 2)
    freedom = torch.full_like(half, scores.shape[1] / 2)
    return torch.special.gammaincc(freedom, half).numpy()


def holm(p_values: Array) -> Array:
    """p-values adjusted for their number, so that those below a level reject wrongly with that probability in all.

    Reference:
        Holm (1979), A Simple Sequentially Rejective Multiple Test Procedure.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03]))
        array([0.03, 0.06, 0.06])
    """
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def central_coverage(ranks: NDArray[np.int64], num_draws: int, levels: Array) -> tuple[Array, Array]:
    """Share of ranks within the central interval of L draws, (Q, levels), and the share that is due, (levels,).

    An interval leaves out the same whole number of ranks at both ends, so that its due share is that number's.

    Example:
        >>> found, due = central_coverage(np.arange(10)[:, None], 9, np.array([0.8, 0.5]))
        >>> due, found
        (array([0.8, 0.6]), array([[0.8, 0.6]]))
    """
    outside = np.floor((1 - levels) / 2 * (num_draws + 1) + 1e-9)
    inside = (ranks[..., None] >= outside) & (ranks[..., None] <= num_draws - outside)
    return inside.mean(0), 1 - 2 * outside / (num_draws + 1)


def relative_width(ranks: NDArray[np.int64], num_draws: int) -> Array:
    r"""Standard deviation of the draws over that of the truth, (Q,), as normal distributions would have it.

    With U = Phi(t / s) for a standard normal t, the share of draws below it, Var U = arcsin(1 / (1 + s^2)) / 2 pi. The
    variance of ranks is that of L U and of the binomial draws around it.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> ranks = (0.8 * rng.normal(size=(200, 100_000)) < rng.normal(size=100_000)).sum(0)
        >>> float(relative_width(ranks[:, None], 200)[0].round(2))
        0.8
    """
    mean = ranks.mean(0) / num_draws
    of_share = (ranks.var(0) - num_draws * mean * (1 - mean)) / (num_draws * (num_draws - 1))
    sine = np.sin(np.clip(2 * np.pi * of_share, 1e-12, np.pi / 2))
    return np.sqrt(1 / sine - 1)
