"""What the decoders share: the shape of a datum, and the features that a network makes for it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.arrays import as_rows
from ppl_vae.errors import DataError, PairError
from ppl_vae.supports import first_outside, support_name

__all__ = ["flat", "for_each_entry", "last_bias", "rows_to_start_at"]


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


def rows_to_start_at(x: Any, event_shape: tuple[int, ...], support: constraints.Constraint, like: Tensor) -> Tensor:
    """Data as (N, *event_shape), N >= 1, on the device of `like` and in a dtype no narrower than its own.

    Raises:
        DataError: There is no row, rows have another number of entries, or an entry is not finite or outside the
            support: its row is named.
    """
    (rows, *_) = as_rows([x]).take(slice(None))
    rows = rows.to(like.device, torch.promote_types(rows.dtype, like.dtype))
    if prod(rows.shape[1:]) != prod(event_shape):
        raise DataError(
            f"start_at expected data of event shape {event_shape}, found rows of shape {tuple(rows.shape[1:])}: build "
            "the decoder for these data"
        )
    if (outside := first_outside(support, rows)) is not None:
        raise DataError(
            f"start_at, row {outside[0]}: expected values in {support_name(support)}, found {outside[1]:g}: give it "
            "the data of the training"
        )
    return rows.reshape(-1, *event_shape)
