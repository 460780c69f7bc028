"""Decoders of levels 0, 1, ..., L - 1: probabilities, of grey levels for example."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import distributions
from ppl_vae.decoders.features import for_each_entry, last_bias, rows_to_start_at
from ppl_vae.networks import MLP, Activation, event_sizes, lower_bound, positive
from ppl_vae.options import whole_number

__all__ = ["Categorical", "DiscretizedLogistic", "DiscretizedLogisticMixture"]

# The smallest scale of PixelCNN++, e^-7 of half the range: a narrower logistic puts all its mass in one bin anyway.
_MIN_SCALE = 1e-3


class Categorical(nn.Module):
    """The decoder `p(x given z) = prod_d softmax(f_d(z))_{x_d}`: any distribution over the levels of an entry.

    Args:
        network: Maps z to L D logits for data of D entries: those of level 0 for all entries, then those of level 1.
        event_shape: Shape of one datum, an integer for flat data.
        num_levels: L; data are 0..L-1.

    Raises:
        PairError: The network gives another number of logits.
        ValueError: num_levels is no whole number of at least 2.

    Reference:
        van den Oord, Kalchbrenner and Kavukcuoglu (2016), Pixel Recurrent Neural Networks, section 3.4.

    Example:
        >>> p = Categorical.mlp(50, [200], 784, num_levels=16)(torch.zeros(32, 50))
        >>> p.log_prob(torch.randint(16, (32, 784))).shape
        torch.Size([32])
    """

    def __init__(self, network: nn.Module, event_shape: int | Sequence[int], num_levels: int) -> None:
        super().__init__()
        whole_number("num_levels", num_levels, least=2)
        self.network, self.event_shape, self.num_levels = network, event_sizes(event_shape), num_levels

    @classmethod
    def mlp(
        cls,
        latent_dim: int,
        hidden: Sequence[int],
        event_shape: int | Sequence[int],
        num_levels: int,
        activation: Activation = nn.Tanh,
    ) -> Categorical:
        """Build the decoder on an `MLP` with the right number of outputs."""
        outputs = num_levels * prod(event_sizes(event_shape))
        return cls(MLP(latent_dim, hidden, outputs, activation), event_shape, num_levels)

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x given z): batch shape z.shape[:-1], event shape `event_shape`."""
        logits = for_each_entry(self.network(z), z, self.num_levels, self.event_shape)
        return distributions.CategoricalLevels(logits=logits).to_event(len(self.event_shape))

    @torch.no_grad()
    def start_at(self, x: Tensor) -> None:
        """Set the network's last bias to the logarithm of the frequencies of levels in x (N, *event), entry by entry.

        The frequencies are smoothed: half a count is added to each level.

        Raises:
            PairError: The network does not end in an affine layer with one bias per level and entry.
            DataError: There is no row, rows have another shape, or an entry is no level; its row is named.
        """
        bias = last_bias(self.network, [self.num_levels * prod(self.event_shape)])
        x = rows_to_start_at(x, self.event_shape, constraints.integer_interval(0, self.num_levels - 1), bias)
        counts = torch.stack([(x == level).sum(0) for level in range(self.num_levels)])
        frequencies = (counts + 0.5) / (len(x) + 0.5 * self.num_levels)
        bias.copy_(frequencies.log().flatten())


class DiscretizedLogistic(nn.Module):
    """The decoder of levels by the bins of a logistic variable, `P(x_d = k) = s((k + 1/2 - m_d) / b_d) - s(...)`.

    Args:
        network: Maps z to 2 D features for data of D entries: the locations of all entries, then the scales before the
            softplus; both in units of half the range, as for data in [-1, 1].
        event_shape: Shape of one datum, an integer for flat data.
        num_levels: L; data are 0..L-1.
        min_scale: Lower bound of the scale, in units of half the range.

    Raises:
        PairError: The network gives another number of features, or min_scale is negative.
        ValueError: num_levels is no whole number of at least 2.

    Reference:
        Kingma et al. (2016), Improving Variational Inference with Inverse Autoregressive Flow, appendix; Salimans,
        Karpathy, Chen and Kingma (2017), PixelCNN++.

    Example:
        >>> p = DiscretizedLogistic.mlp(50, [200], 784, num_levels=256)(torch.zeros(32, 50))
        >>> p.log_prob(torch.randint(256, (32, 784))).shape
        torch.Size([32])
    """

    def __init__(
        self,
        network: nn.Module,
        event_shape: int | Sequence[int],
        num_levels: int,
        min_scale: float = _MIN_SCALE,
    ) -> None:
        super().__init__()
        whole_number("num_levels", num_levels, least=2)
        self.network, self.event_shape, self.num_levels = network, event_sizes(event_shape), num_levels
        self.min_scale = lower_bound(min_scale)

    @classmethod
    def mlp(
        cls,
        latent_dim: int,
        hidden: Sequence[int],
        event_shape: int | Sequence[int],
        num_levels: int,
        min_scale: float = _MIN_SCALE,
        activation: Activation = nn.Tanh,
    ) -> DiscretizedLogistic:
        """Build the decoder on an `MLP` with the right number of outputs."""
        outputs = 2 * prod(event_sizes(event_shape))
        return cls(MLP(latent_dim, hidden, outputs, activation), event_shape, num_levels, min_scale)

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x given z): batch shape z.shape[:-1], event shape `event_shape`."""
        loc, raw_scale = for_each_entry(self.network(z), z, 2, self.event_shape).unbind(-1)
        return _logistic(loc, raw_scale, self.num_levels, self.min_scale).to_event(len(self.event_shape))


class DiscretizedLogisticMixture(nn.Module):
    """The decoder of levels by the bins of a mixture of M logistic variables for each entry.

    The locations start evenly spread over the range.

    Args:
        network: Maps z to 3 M D features for data of D entries: the logits of the weights of component 1 for all
            entries, then of component 2, up to M; the locations likewise; the scales before the softplus likewise.
        event_shape: Shape of one datum, an integer for flat data.
        num_levels: L; data are 0..L-1.
        num_components: M.
        min_scale: Lower bound of the scales, in units of half the range.

    Raises:
        PairError: The network gives another number of features, or min_scale is negative.
        ValueError: num_levels or num_components is no whole number, or too small.

    Reference:
        Salimans, Karpathy, Chen and Kingma (2017), PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture
        Likelihood and Other Modifications.

    Example:
        >>> decoder = DiscretizedLogisticMixture.mlp(50, [200], 784, num_levels=256, num_components=5)
        >>> decoder(torch.zeros(32, 50)).log_prob(torch.randint(256, (32, 784))).shape
        torch.Size([32])
    """

    centres: Tensor

    def __init__(
        self,
        network: nn.Module,
        event_shape: int | Sequence[int],
        num_levels: int,
        num_components: int = 5,
        min_scale: float = _MIN_SCALE,
    ) -> None:
        super().__init__()
        whole_number("num_levels", num_levels, least=2)
        whole_number("num_components", num_components, least=1)
        self.network, self.event_shape, self.num_levels = network, event_sizes(event_shape), num_levels
        self.min_scale = lower_bound(min_scale)
        centres = (2 * torch.arange(num_components) + 1) / num_components - 1
        self.register_buffer("centres", centres, persistent=False)

    @classmethod
    def mlp(
        cls,
        latent_dim: int,
        hidden: Sequence[int],
        event_shape: int | Sequence[int],
        num_levels: int,
        num_components: int = 5,
        min_scale: float = _MIN_SCALE,
        activation: Activation = nn.Tanh,
    ) -> DiscretizedLogisticMixture:
        """Build the decoder on an `MLP` with the right number of outputs."""
        outputs = 3 * num_components * prod(event_sizes(event_shape))
        network = MLP(latent_dim, hidden, outputs, activation)
        return cls(network, event_shape, num_levels, num_components, min_scale)

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x given z): batch shape z.shape[:-1], event shape `event_shape`."""
        features = for_each_entry(self.network(z), z, 3 * len(self.centres), self.event_shape)
        logits, loc, raw_scale = features.chunk(3, -1)
        components = _logistic(self.centres + loc, raw_scale, self.num_levels, self.min_scale)
        mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits), components)
        return mixture.to_event(len(self.event_shape))


def _logistic(loc: Tensor, raw_scale: Tensor, num_levels: int, min_scale: float) -> distributions.DiscretizedLogistic:
    """The discretised logistic of a location, and a scale before the softplus, in units of half the range."""
    half = (num_levels - 1) / 2
    return distributions.DiscretizedLogistic(half * (1 + loc), half * positive(raw_scale, min_scale), num_levels)
