"""Features of an encoder's network, cut into the parameters of q(z given x)."""

from __future__ import annotations

from torch import Tensor

from ppl_vae.errors import PairError

__all__ = ["split"]


def split(features: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """Cut the last dimension into parts of the given sizes, the first of them latent_dim.

    Raises:
        PairError: The network gives another number of features.
    """
    if features.shape[-1] != sum(sizes):
        raise PairError(
            f"the encoder with latent_dim = {sizes[0]} expected {sum(sizes)} features per datum from its network, "
            f"found {features.shape[-1]}: give the network {sum(sizes)} outputs"
        )
    return features.split(sizes, -1)
