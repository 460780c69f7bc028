"""What the decoders share: the shape of a datum, and the features that a network makes for it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from ppl_vae.errors import PairError

__all__ = ["event_sizes", "flat", "for_each_entry", "last_bias"]


def event_sizes(shape: int | Sequence[int]) -> tuple[int, ...]:
    """The shape of one datum, an integer for flat data.

    Raises:
        PairError: It is empty, or a size is not positive.
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if not sizes or min(sizes) < 1:
        raise PairError(f"event_shape expected positive integers, one per dimension of a datum, found {shape}")
    return sizes


def flat(features: Tensor, z: Tensor, sizes: list[int]) -> Tensor:
    """Flatten what the network made of z (..., latent_dim) to (..., size)."""
    features = features.flatten(z.dim() - 1)
    if features.shape[-1] not in sizes:
        raise PairError(
            f"the decoder expected {' or '.join(map(str, sizes))} features per datum from its network, "
            f"found {features.shape[-1]}: change the network's outputs or event_shape"
        )
    return features


def for_each_entry(features: Tensor, z: Tensor, count: int, event_shape: tuple[int, ...]) -> Tensor:
    """View features as (..., *event_shape, count): `count` of them for each entry of a datum.

    The network gives the first one of all entries, then the second: a convolutional one has them as channels.
    """
    features = flat(features, z, [count * prod(event_shape)]).unflatten(-1, (count, *event_shape))
    return features.movedim(-1 - len(event_shape), -1)


def last_bias(network: nn.Module, sizes: list[int]) -> Tensor:
    """The bias of the affine layer that a network ends in, one number for each of its outputs.

    Raises:
        PairError: The network ends in something else.
    """
    last = [module for module in network.modules() if isinstance(getattr(module, "bias", None), Tensor)][-1:]
    if not last or not isinstance(last[0], nn.Linear) or last[0].bias.numel() not in sizes:
        raise PairError(
            f"start_at expected a network that ends in nn.Linear with {' or '.join(map(str, sizes))} biases, "
            f"found {last[0] if last else 'no bias'}: initialise this network by hand"
        )
    return last[0].bias
