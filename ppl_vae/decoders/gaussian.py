"""The decoder of real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, prod
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.decoders.features import flat, last_bias, rows_to_start_at
from ppl_vae.errors import PairError
from ppl_vae.networks import MLP, Activation, event_sizes, lower_bound, positive, raw_of_positive

__all__ = ["Gaussian"]

_LEAST_SPREAD = 1e-3


class Gaussian(nn.Module):
    """The decoder `p(x given z) = prod_d N(x_d; f_d(z), sigma^2)`.

    Args:
        network: Maps z to the means f(z), as many as event_shape has entries (D); with scale "per_latent" the raw
            scales follow, one shared by all dimensions (D + 1 features) or one each (2 D features).
        event_shape: Shape of one datum, an integer for flat data.
        scale: sigma in units of x: a positive number that stays fixed; "learned", one parameter for all data and
            dimensions; or "per_latent", sigma(z) from the network.
        min_scale: Lower bound of sigma. A sigma(z) without one can make the likelihood unbounded.

    Raises:
        PairError: The network gives another number of features, or a scale is not positive or not known.

    Reference:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, appendix C.2; Lucas et al. (2019), Don't Blame the
        ELBO!, on the learned sigma; Mattei and Frellsen (2018), Leveraging the Exact Likelihood of Deep Latent
        Variable Models, on the unbounded likelihood.

    Example:
        >>> p = Gaussian(MLP(2, [50], 64), 64, scale=0.1)(torch.zeros(32, 2))
        >>> p.base_dist.scale.unique()
        tensor([0.1000])
    """

    raw_scale: nn.Parameter | None

    def __init__(
        self,
        network: nn.Module,
        event_shape: int | Sequence[int],
        scale: float | Literal["learned", "per_latent"] = 1.0,
        min_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.network, self.event_shape = network, event_sizes(event_shape)
        self.min_scale = lower_bound(min_scale)
        self.scale = _checked(scale, min_scale)
        self.raw_scale = nn.Parameter(torch.zeros(())) if scale == "learned" else None

    @classmethod
    def mlp(
        cls,
        latent_dim: int,
        hidden: Sequence[int],
        event_shape: int | Sequence[int],
        scale: float | Literal["learned", "per_latent"] = 1.0,
        min_scale: float = 0.0,
        activation: Activation = nn.Tanh,
    ) -> Gaussian:
        """Build the decoder on an `MLP` with the right number of outputs; sigma(z) is one per dimension."""
        features = prod(event_sizes(event_shape)) * (2 if scale == "per_latent" else 1)
        return cls(MLP(latent_dim, hidden, features, activation), event_shape, scale, min_scale)

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x given z): batch shape z.shape[:-1], event shape `event_shape`."""
        size = prod(self.event_shape)
        features = flat(self.network(z), z, [size + 1, 2 * size] if self.scale == "per_latent" else [size])
        loc = features[..., :size].unflatten(-1, self.event_shape)
        return dist.Normal(loc, self._scale(features[..., size:])).to_event(len(self.event_shape))

    @torch.no_grad()
    def start_at(self, x: Tensor) -> None:
        """Start training at the model without latents: means and standard deviations of x (N, *event).

        The network's last bias is set to the means of the entries; sigma to the standard deviation around them, of all
        entries together or of each, unless it is fixed. A spread of 0 counts as a thousandth above `min_scale`.

        Raises:
            PairError: The network does not end in an affine layer with one bias per feature.
            DataError: There is no row, rows have another shape, or an entry is not finite; its row is named.
        """
        size = prod(self.event_shape)
        bias = last_bias(self.network, [size + 1, 2 * size] if self.scale == "per_latent" else [size])
        x = rows_to_start_at(x, self.event_shape, constraints.real, bias)
        bias[:size] = x.mean(0).flatten()
        if isinstance(self.scale, float):
            return
        variance = (x - x.mean(0)).square().flatten(1).mean(0)
        variance = variance if len(bias) == 2 * size else variance.mean(0, keepdim=True)
        raw = raw_of_positive(variance.sqrt().clamp_min(self.min_scale + _LEAST_SPREAD), self.min_scale)
        if self.raw_scale is None:
            bias[size:] = raw
        else:
            self.raw_scale.copy_(raw[0])

    def _scale(self, raw: Tensor) -> Tensor | float:
        """Return sigma so that it broadcasts with the means (..., *event_shape)."""
        if isinstance(self.scale, float):
            return self.scale
        if self.raw_scale is not None:
            return positive(self.raw_scale, self.min_scale)
        one_each = raw.shape[-1] == prod(self.event_shape)
        raw = raw.unflatten(-1, self.event_shape if one_each else (1,) * len(self.event_shape))
        return positive(raw, self.min_scale)


def _checked(scale: float | str, min_scale: float) -> float | str:
    if scale in ("learned", "per_latent"):
        return scale
    if isinstance(scale, str | bool) or not (isfinite(scale) and scale > 0 and scale >= min_scale):
        raise PairError(
            f'scale expected "learned", "per_latent" or a finite number > 0 and >= min_scale = {min_scale}, '
            f"found {scale!r}"
        )
    return float(scale)
