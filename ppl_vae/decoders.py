"""Decoders: modules whose forward maps z (..., latent_dim) to the distribution p(x given z), batch shape (...)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, prod
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.errors import PairError
from ppl_vae.networks import MLP, Activation, lower_bound, positive

__all__ = ["Bernoulli", "Gaussian"]


class Bernoulli(nn.Module):
    """The decoder `p(x given z) = prod_d Bernoulli(x_d; sigmoid(f_d(z)))`, for binary data only.

    Args:
        network: Maps z to the logits f(z), as many as event_shape has entries.
        event_shape: Shape of one datum, an integer for flat data.

    Raises:
        PairError: The network gives another number of logits.

    Reference:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, appendix C.1.

    Example:
        >>> decoder = Bernoulli(MLP(50, [200, 200], 784), (1, 28, 28))
        >>> p = decoder(torch.zeros(5, 32, 50))
        >>> p.batch_shape, p.event_shape
        (torch.Size([5, 32]), torch.Size([1, 28, 28]))
    """

    def __init__(self, network: nn.Module, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.network, self.event_shape = network, _event_shape(event_shape)

    @classmethod
    def mlp(
        cls,
        latent_dim: int,
        hidden: Sequence[int],
        event_shape: int | Sequence[int],
        activation: Activation = nn.Tanh,
    ) -> Bernoulli:
        """Build the decoder on an `MLP` with the right number of outputs."""
        return cls(MLP(latent_dim, hidden, prod(_event_shape(event_shape)), activation), event_shape)

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x given z): batch shape z.shape[:-1], event shape `event_shape`."""
        logits = _flat(self.network(z), z, [prod(self.event_shape)])
        return dist.Bernoulli(logits=logits.unflatten(-1, self.event_shape)).to_event(len(self.event_shape))

    @torch.no_grad()
    def start_at(self, x: Tensor) -> None:
        """Set the network's last bias to the logit of the pixel means of x (N, *event), so training starts there.

        The means are smoothed, `(sum_n x_n + 1/2) / (N + 1)`: a pixel that is never on gets a finite logit.

        Raises:
            PairError: The network does not end in an affine layer with one bias per pixel.
        """
        means = ((x.sum(0) + 0.5) / (len(x) + 1)).flatten()
        last = [module for module in self.network.modules() if isinstance(getattr(module, "bias", None), Tensor)][-1:]
        if not last or not isinstance(last[0], nn.Linear) or last[0].bias.shape != means.shape:
            raise PairError(
                f"start_at expected a network that ends in nn.Linear with {means.numel()} biases, "
                f"found {last[0] if last else 'no bias'}: initialise this network by hand"
            )
        last[0].bias.copy_(means.logit())


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
        self.network, self.event_shape = network, _event_shape(event_shape)
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
        features = prod(_event_shape(event_shape)) * (2 if scale == "per_latent" else 1)
        return cls(MLP(latent_dim, hidden, features, activation), event_shape, scale, min_scale)

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x given z): batch shape z.shape[:-1], event shape `event_shape`."""
        size = prod(self.event_shape)
        features = _flat(self.network(z), z, [size + 1, 2 * size] if self.scale == "per_latent" else [size])
        loc = features[..., :size].unflatten(-1, self.event_shape)
        return dist.Normal(loc, self._scale(features[..., size:])).to_event(len(self.event_shape))

    def _scale(self, raw: Tensor) -> Tensor | float:
        """Return sigma so that it broadcasts with the means (..., *event_shape)."""
        if isinstance(self.scale, float):
            return self.scale
        if self.raw_scale is not None:
            return positive(self.raw_scale, self.min_scale)
        one_each = raw.shape[-1] == prod(self.event_shape)
        raw = raw.unflatten(-1, self.event_shape if one_each else (1,) * len(self.event_shape))
        return positive(raw, self.min_scale)


def _event_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if not sizes or min(sizes) < 1:
        raise PairError(f"event_shape expected positive integers, one per dimension of a datum, found {shape}")
    return sizes


def _checked(scale: float | str, min_scale: float) -> float | str:
    if scale in ("learned", "per_latent"):
        return scale
    if isinstance(scale, str) or not (isfinite(scale) and scale > 0 and scale >= min_scale):
        raise PairError(
            f'scale expected "learned", "per_latent" or a finite number > 0 and >= min_scale = {min_scale}, '
            f"found {scale!r}"
        )
    return float(scale)


def _flat(features: Tensor, z: Tensor, sizes: list[int]) -> Tensor:
    """Flatten what the network made of z (..., latent_dim) to (..., size)."""
    features = features.flatten(z.dim() - 1)
    if features.shape[-1] not in sizes:
        raise PairError(
            f"the decoder expected {' or '.join(map(str, sizes))} features per datum from its network, "
            f"found {features.shape[-1]}: change the network's outputs or event_shape"
        )
    return features
