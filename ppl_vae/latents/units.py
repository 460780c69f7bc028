"""Which latents are used."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_vae.arrays import finite_array

__all__ = ["active_units"]


def active_units(means: ArrayLike, threshold: float = 0.01) -> NDArray[np.bool_]:
    r"""Latents whose posterior mean varies with the data, $\operatorname{Var}_x E_{q(z|x)}[z_u] > 0.01$.

    Args:
        means: E[z given x] of each datum, (N, d).
        threshold: In squared units of z.

    Returns:
        Whether each latent is active, (d,); their sum is the number of active units.

    Raises:
        DataError: `means` has another shape or is not finite.

    Reference:
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, section 5.2.

    Example:
        >>> active_units([[1.0, 0.05], [-1.0, 0.0], [0.0, 0.0]])
        array([ True, False])
    """
    return finite_array("means", means, 2).var(0) > threshold
