"""What models of modules share: what their forward returns, data in its event shape, and seeded draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from ppl_vae.errors import DataError, PairError
from ppl_vae.rng import seeded

__all__ = ["as_event", "evaluating", "mean_or_draw", "returned"]


@contextmanager
def evaluating(module: nn.Module, seed: int = 0) -> Iterator[None]:
    """Context of seeded draws without gradients in evaluation mode; generators and each module's mode are restored."""
    tensor = next(chain(module.parameters(), module.buffers()), None)
    modes = {part: part.training for part in module.modules()}
    with torch.no_grad(), seeded(seed, None if tensor is None else tensor.device):
        try:
            module.eval()
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode


def returned(role: str, found: Any) -> Distribution:
    """What the forward of a module returned.

    Raises:
        PairError: It is no distribution of Pyro.
    """
    if not isinstance(found, Distribution):
        kind = f"{type(found).__module__}.{type(found).__qualname__}"
        mend = "return one of pyro.distributions, such as Normal(loc, scale).to_event(1)"
        raise PairError(f"the {role}: expected its forward to return a distribution, found {kind}: {mend}")
    return found


def mean_or_draw(distribution: Distribution, mean: bool) -> Tensor:
    """Its mean, or one draw."""
    return distribution.mean if mean else distribution.sample()


def as_event(x: Tensor, likelihood: Distribution) -> Tensor:
    """View the rows of x in the event shape of p(x given z).

    Raises:
        DataError: The rows have another number of entries.
    """
    shape = likelihood.event_shape
    if x.shape[1:].numel() != shape.numel():
        raise DataError(
            f"the decoder expected data of event shape {tuple(shape)}, found rows of shape {tuple(x.shape[1:])}: "
            "build the decoder for these data"
        )
    return x.reshape(x.shape[0], *shape)
