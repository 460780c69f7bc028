"""What the scores of codes take: codes and a whole number, or a row of them, for each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_vae.arrays import as_numpy, squarable_array
from ppl_vae.errors import DataError
from ppl_vae.options import whole_number
from ppl_vae.rng import key

__all__ = ["coded", "comparable", "entropies", "on_own_scale", "random_state"]

_ROUNDING = 64 * np.finfo(float).eps


def coded(name: str, codes: ArrayLike, labels: ArrayLike, of: int = 1) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Codes (N, d), and labels (N,) or factors (N, F): whole numbers, an array `of` so many dimensions.

    Raises:
        DataError: Naming what is wrong.
    """
    z, y = squarable_array(name, codes, 2), as_numpy(labels)
    if y.ndim != of or len(y) != len(z) or y.dtype.kind not in "iub":
        raise DataError(
            f"expected {'labels (N,)' if of == 1 else 'factors (N, F)'} that are whole numbers, with a row for each of "
            f"the {len(z)} {name}, found {y.dtype} of shape {y.shape}"
        )
    return z, y


def comparable(codes: ArrayLike, factors: ArrayLike) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Two or more codes, `on_own_scale`, and factors, no factor constant.

    Raises:
        DataError: Naming what is wrong.
    """
    z, v = coded("codes", codes, factors, of=2)
    if min(z.shape[1], v.shape[1]) < 2:
        raise DataError(f"expected two codes and two factors, or more, found {z.shape[1]} and {v.shape[1]}")
    if not (varies := entropies(v) > 0).all():
        raise DataError(f"factor {int(varies.argmin())}: expected at least two values, found one: leave it out")
    return on_own_scale(z), v


def on_own_scale(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Codes times powers of 2, at most 1 in size, and 0 where all that varies is the rounding: trees know float32 only.

    Example:
        >>> on_own_scale(np.array([[96.0, 0.3], [-64.0, np.nextafter(0.3, 1.0)]]))
        array([[ 0.75,  0.  ],
               [-0.5 ,  0.  ]])
    """
    size = np.abs(codes).max(0)
    return np.where(np.ptp(codes, axis=0) > _ROUNDING * size, np.ldexp(codes, -np.frexp(size)[1]), 0.0)


def random_state(seed: int) -> int:
    """The seed as scikit-learn takes it: 32 bits, of larger ones a mixture.

    Raises:
        ValueError: The seed is no whole number, or negative.
    """
    seed = whole_number("seed", seed, least=0)
    return seed if seed < 1 << 32 else key(seed) & 0xFFFFFFFF


def entropies(factors: NDArray[Any]) -> NDArray[np.float64]:
    """Entropy of each factor (N, F) in nats, (F,)."""
    shares = [np.unique(factor, return_counts=True)[1] / len(factor) for factor in factors.T]
    return np.array([-(share * np.log(share)).sum() for share in shares])
