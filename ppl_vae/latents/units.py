"""Which latents are used."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_vae.arrays import finite_array
from ppl_vae.errors import DataError

__all__ = ["active_units", "variance_of_means"]


def active_units(means: ArrayLike, threshold: float = 0.01, noise: ArrayLike | None = None) -> NDArray[np.bool_]:
    r"""Latents whose posterior mean varies with the data, $\operatorname{Var}_x E_{q(z|x)}[z_u] > 0.01$.

    Args:
        means: E[z given x] of each datum, (N, d).
        threshold: In squared units of z.
        noise: Variance of each mean where it is one of draws, (N, d): see `variance_of_means`.

    Returns:
        Whether each latent is active, (d,); their sum is the number of active units.

    Raises:
        DataError: `means` or `noise` has another shape or is not finite.

    Reference:
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, section 5.2.

    Example:
        >>> active_units([[1.0, 0.05], [-1.0, 0.0], [0.0, 0.0]])
        array([ True, False])
    """
    return variance_of_means(means, noise) > threshold


def variance_of_means(means: ArrayLike, noise: ArrayLike | None = None) -> NDArray[np.float64]:
    r"""Variance over data of the posterior means, $\operatorname{Var}_x E_{q(z|x)}[z_u]$, (d,), in squared units of z.

    A mean of K draws varies by its own noise too: what `noise` says of it, in mean over data, is taken off.

    Example:
        >>> variance_of_means([[1.0], [-1.0]], noise=[[0.25], [0.75]])
        array([0.5])
    """
    means = finite_array("means", means, 2)
    if noise is None:
        return means.var(0)
    noise = finite_array("noise", noise, 2)
    if noise.shape != means.shape:
        raise DataError(f"noise: expected a variance for each of the means {means.shape}, found shape {noise.shape}")
    return means.var(0) - noise.mean(0)
