"""Decoders of binary data, and of numbers in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import distributions
from ppl_vae.decoders.features import flat, last_bias, rows_to_start_at
from ppl_vae.networks import MLP, Activation, event_sizes

__all__ = ["Bernoulli", "ContinuousBernoulli"]


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
        self.network, self.event_shape = network, event_sizes(event_shape)

    @classmethod
    def mlp(
        cls,
        latent_dim: int,
        hidden: Sequence[int],
        event_shape: int | Sequence[int],
        activation: Activation = nn.Tanh,
    ) -> Bernoulli:
        """Build the decoder on an `MLP` with the right number of outputs."""
        return cls(MLP(latent_dim, hidden, prod(event_sizes(event_shape)), activation), event_shape)

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x given z): batch shape z.shape[:-1], event shape `event_shape`."""
        logits = flat(self.network(z), z, [prod(self.event_shape)])
        return dist.Bernoulli(logits=logits.unflatten(-1, self.event_shape)).to_event(len(self.event_shape))

    @torch.no_grad()
    def start_at(self, x: Tensor) -> None:
        """Set the network's last bias to the logit of the pixel means of x (N, *event), so training starts there.

        The means are smoothed, `(sum_n x_n + 1/2) / (N + 1)`: a pixel that is never on gets a finite logit.

        Raises:
            PairError: The network does not end in an affine layer with one bias per pixel.
            DataError: There is no row, rows have another shape, or a pixel is outside [0, 1]; its row is named.
        """
        bias = last_bias(self.network, [prod(self.event_shape)])
        x = rows_to_start_at(x, self.event_shape, constraints.unit_interval, bias)
        means = (x.sum(0) + 0.5) / (len(x) + 1)
        bias.copy_(means.logit().flatten())


class ContinuousBernoulli(nn.Module):
    """The decoder `p(x given z) = prod_d C(f_d) exp(f_d x_d)`, a density of numbers in [0, 1] with logits f(z).

    Grey levels have no density: dequantise them first.

    Args:
        network: Maps z to the logits f(z), as many as event_shape has entries.
        event_shape: Shape of one datum, an integer for flat data.

    Raises:
        PairError: The network gives another number of logits.

    Reference:
        Loaiza-Ganem and Cunningham (2019), The Continuous Bernoulli: Fixing a Pervasive Error in Variational
        Autoencoders.

    Example:
        >>> p = ContinuousBernoulli.mlp(50, [200], 784)(torch.zeros(32, 50))
        >>> p.log_prob(torch.rand(32, 784)).shape
        torch.Size([32])
    """

    def __init__(self, network: nn.Module, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.network, self.event_shape = network, event_sizes(event_shape)

    @classmethod
    def mlp(
        cls,
        latent_dim: int,
        hidden: Sequence[int],
        event_shape: int | Sequence[int],
        activation: Activation = nn.Tanh,
    ) -> ContinuousBernoulli:
        """Build the decoder on an `MLP` with the right number of outputs."""
        return cls(MLP(latent_dim, hidden, prod(event_sizes(event_shape)), activation), event_shape)

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x given z): batch shape z.shape[:-1], event shape `event_shape`."""
        logits = flat(self.network(z), z, [prod(self.event_shape)]).unflatten(-1, self.event_shape)
        return distributions.ContinuousBernoulli(logits).to_event(len(self.event_shape))
