"""Decoders of counts 0, 1, 2, ..."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import distributions
from ppl_vae.decoders.features import flat, last_bias, rows_to_start_at
from ppl_vae.errors import PairError
from ppl_vae.networks import MLP, Activation, event_sizes, positive, raw_of_positive

__all__ = ["NegativeBinomial", "Poisson"]

Link = Literal["softplus", "exp"]

_LEAST = 1e-6  # a mean of 0 would make any other count impossible, a dispersion of 0 divides by it

_FIRST_RAW = -2.0  # a dispersion of 0.13, near Poisson's: the latents are to explain what they can


class Poisson(nn.Module):
    """The decoder `p(x given z) = prod_d Poisson(x_d; g(f_d(z)))` of counts, whose variance is their mean.

    Args:
        network: Maps z to f(z), as many numbers as event_shape has entries.
        event_shape: Shape of one datum, an integer for flat data.
        link: g, "softplus" or "exp".

    Raises:
        PairError: The network gives another number of features, or the link is not known.

    Reference:
        Miao, Yu and Blunsom (2016), Neural Variational Inference for Text Processing; Lopez et al. (2018), Deep
        Generative Modeling for Single-Cell Transcriptomics, on counts.

    Example:
        >>> p = Poisson.mlp(10, [50], 64)(torch.zeros(32, 10))
        >>> p.log_prob(torch.ones(32, 64)).shape
        torch.Size([32])
    """

    def __init__(self, network: nn.Module, event_shape: int | Sequence[int], link: Link = "softplus") -> None:
        super().__init__()
        self.network, self.event_shape, self.link = network, event_sizes(event_shape), _known(link)

    @classmethod
    def mlp(
        cls,
        latent_dim: int,
        hidden: Sequence[int],
        event_shape: int | Sequence[int],
        link: Link = "softplus",
        activation: Activation = nn.Tanh,
    ) -> Poisson:
        """Build the decoder on an `MLP` with the right number of outputs."""
        return cls(MLP(latent_dim, hidden, prod(event_sizes(event_shape)), activation), event_shape, link)

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x given z): batch shape z.shape[:-1], event shape `event_shape`."""
        features = flat(self.network(z), z, [prod(self.event_shape)])
        mean = _mean(features.unflatten(-1, self.event_shape), self.link)
        return distributions.Poisson(mean).to_event(len(self.event_shape))

    def start_at(self, x: Tensor) -> None:
        """Set the network's last bias so that training starts at the means of the entries of x (N, *event).

        The means are smoothed, `(sum_n x_n + 1/2) / (N + 1)`: an entry that is never counted gets a finite bias.

        Raises:
            PairError: The network does not end in an affine layer with one bias per entry.
            DataError: There is no row, rows have another shape, or an entry is no count; its row is named.
        """
        _start_at(self.network, x, self.event_shape, self.link)


class NegativeBinomial(nn.Module):
    """The decoder of counts with mean `m = g(f(z))` and variance `m + d m^2`; the dispersion d is learned.

    Args:
        network: Maps z to f(z), as many numbers as event_shape has entries.
        event_shape: Shape of one datum, an integer for flat data. Each entry has one d, a parameter
            that starts at 0.13.
        link: g, "softplus" or "exp".

    Raises:
        PairError: The network gives another number of features, or the link is not known.

    Reference:
        Lopez, Regier, Cole, Jordan and Yosef (2018), Deep Generative Modeling for Single-Cell Transcriptomics.

    Example:
        >>> p = NegativeBinomial.mlp(10, [50], 64)(torch.zeros(32, 10))
        >>> p.log_prob(torch.ones(32, 64)).shape
        torch.Size([32])
    """

    def __init__(self, network: nn.Module, event_shape: int | Sequence[int], link: Link = "softplus") -> None:
        super().__init__()
        self.network, self.event_shape, self.link = network, event_sizes(event_shape), _known(link)
        self.raw_dispersion = nn.Parameter(torch.full(self.event_shape, _FIRST_RAW))

    @classmethod
    def mlp(
        cls,
        latent_dim: int,
        hidden: Sequence[int],
        event_shape: int | Sequence[int],
        link: Link = "softplus",
        activation: Activation = nn.Tanh,
    ) -> NegativeBinomial:
        """Build the decoder on an `MLP` with the right number of outputs."""
        return cls(MLP(latent_dim, hidden, prod(event_sizes(event_shape)), activation), event_shape, link)

    @property
    def dispersion(self) -> Tensor:
        """d, of shape `event_shape`."""
        return positive(self.raw_dispersion, _LEAST)

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x given z): batch shape z.shape[:-1], event shape `event_shape`."""
        features = flat(self.network(z), z, [prod(self.event_shape)])
        mean = _mean(features.unflatten(-1, self.event_shape), self.link)
        return distributions.NegativeBinomial(mean, self.dispersion).to_event(len(self.event_shape))

    def start_at(self, x: Tensor) -> None:
        """Set the network's last bias so that training starts at the means of the entries of x (N, *event).

        The means are smoothed, `(sum_n x_n + 1/2) / (N + 1)`: an entry that is never counted gets a finite bias.

        Raises:
            PairError: The network does not end in an affine layer with one bias per entry.
            DataError: There is no row, rows have another shape, or an entry is no count; its row is named.
        """
        _start_at(self.network, x, self.event_shape, self.link)


def _known(link: str) -> Link:
    if link == "softplus" or link == "exp":
        return link  # type: ignore[return-value]
    raise PairError(f'link expected "softplus" or "exp", found {link!r}')


def _mean(features: Tensor, link: Link) -> Tensor:
    return positive(features, _LEAST) if link == "softplus" else features.exp() + _LEAST


@torch.no_grad()
def _start_at(network: nn.Module, x: Tensor, event_shape: tuple[int, ...], link: Link) -> None:
    bias = last_bias(network, [prod(event_shape)])
    x = rows_to_start_at(x, event_shape, constraints.nonnegative_integer, bias)
    means = ((x.sum(0) + 0.5) / (len(x) + 1)).flatten()
    bias.copy_(means.log() if link == "exp" else raw_of_positive(means))
