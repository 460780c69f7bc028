"""Encoders whose density is a normal distribution."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.encoders.features import split
from ppl_vae.networks import MLP, Activation, lower_bound, positive
from ppl_vae.options import whole_number

__all__ = ["DiagonalNormal", "FullCovarianceNormal", "LowRankNormal"]


class DiagonalNormal(nn.Module):
    """The mean-field encoder `q(z given x) = N(z; mu(x), diag(sigma(x)^2))`.

    Args:
        network: Maps x to 2 latent_dim features: mu(x), then sigma(x) before the softplus.
        latent_dim: Dimension of z.
        min_scale: Lower bound of sigma(x), in units of z.

    Raises:
        PairError: The network gives another number of features, or min_scale is negative.
        ValueError: latent_dim is no whole number of at least 1.

    Reference:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, appendix C.

    Example:
        >>> q = DiagonalNormal(MLP(784, [200, 200], 100), 50)(torch.zeros(32, 784))
        >>> q.batch_shape, q.event_shape
        (torch.Size([32]), torch.Size([50]))
    """

    def __init__(self, network: nn.Module, latent_dim: int, min_scale: float = 0.0) -> None:
        super().__init__()
        self.network, self.latent_dim = network, whole_number("latent_dim", latent_dim, least=1)
        self.min_scale = lower_bound(min_scale)

    @classmethod
    def mlp(
        cls,
        in_features: int,
        hidden: Sequence[int],
        latent_dim: int,
        min_scale: float = 0.0,
        activation: Activation = nn.Tanh,
    ) -> DiagonalNormal:
        """Build the encoder on an `MLP` with the right number of output features."""
        whole_number("latent_dim", latent_dim, least=1)
        return cls(MLP(in_features, hidden, 2 * latent_dim, activation), latent_dim, min_scale)

    def forward(self, x: Tensor) -> dist.Independent:
        """Return q(z given x): batch shape (N,), event shape (latent_dim,)."""
        loc, raw_scale = split(self.network(x), [self.latent_dim, self.latent_dim])
        return dist.Normal(loc, positive(raw_scale, self.min_scale)).to_event(1)


class FullCovarianceNormal(nn.Module):
    """The encoder `q(z given x) = N(z; mu(x), L(x) L(x)^T)` with L lower triangular, its diagonal positive.

    Args:
        network: Maps x to latent_dim (latent_dim + 3) / 2 features: mu(x), the diagonal of L(x) before the softplus,
            and its entries below the diagonal row by row.
        latent_dim: Dimension of z.
        min_scale: Lower bound of the diagonal of L(x), in units of z.

    Raises:
        PairError: The network gives another number of features, or min_scale is negative.
        ValueError: latent_dim is no whole number of at least 1.

    Example:
        >>> q = FullCovarianceNormal.mlp(784, [200, 200], 3)(torch.zeros(32, 784))
        >>> q.covariance_matrix.shape
        torch.Size([32, 3, 3])
    """

    entry: Tensor

    def __init__(self, network: nn.Module, latent_dim: int, min_scale: float = 0.0) -> None:
        super().__init__()
        self.network, self.latent_dim = network, whole_number("latent_dim", latent_dim, least=1)
        self.min_scale = lower_bound(min_scale)
        rows, columns = torch.tril_indices(latent_dim, latent_dim, -1)
        # Entries on and above the diagonal point at the zero padded behind the features: one gather builds L.
        entry = torch.full((latent_dim, latent_dim), len(rows))
        entry[rows, columns] = torch.arange(len(rows))
        self.register_buffer("entry", entry, persistent=False)

    @classmethod
    def mlp(
        cls,
        in_features: int,
        hidden: Sequence[int],
        latent_dim: int,
        min_scale: float = 0.0,
        activation: Activation = nn.Tanh,
    ) -> FullCovarianceNormal:
        """Build the encoder on an `MLP` with the right number of output features."""
        whole_number("latent_dim", latent_dim, least=1)
        return cls(MLP(in_features, hidden, latent_dim * (latent_dim + 3) // 2, activation), latent_dim, min_scale)

    def forward(self, x: Tensor) -> dist.MultivariateNormal:
        """Return q(z given x): batch shape (N,), event shape (latent_dim,)."""
        below = self.latent_dim * (self.latent_dim - 1) // 2
        loc, diagonal, lower = split(self.network(x), [self.latent_dim, self.latent_dim, below])
        lower = nn.functional.pad(lower, (0, 1))[..., self.entry]
        scale_tril = lower + torch.diag_embed(positive(diagonal, self.min_scale))
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)


class LowRankNormal(nn.Module):
    """The encoder `q(z given x) = N(z; mu(x), W(x) W(x)^T + diag(sigma(x)^2))` with W of `rank` columns.

    Between `DiagonalNormal` (rank 0) and `FullCovarianceNormal`: features grow as the rank times latent_dim.

    Args:
        network: Maps x to (rank + 2) latent_dim features: mu(x), sigma(x) before the softplus, and W(x) row by row.
        latent_dim: Dimension of z.
        rank: Number of columns of W(x).
        min_scale: Lower bound of sigma(x), in units of z.

    Raises:
        PairError: The network gives another number of features, or min_scale is negative.
        ValueError: latent_dim or rank is no whole number of at least 1.

    Reference:
        Ong, Nott and Smith (2018), Gaussian Variational Approximation with a Factor Covariance Structure.

    Example:
        >>> q = LowRankNormal.mlp(784, [200, 200], 10, rank=2)(torch.zeros(32, 784))
        >>> q.cov_factor.shape
        torch.Size([32, 10, 2])
    """

    def __init__(self, network: nn.Module, latent_dim: int, rank: int, min_scale: float = 0.0) -> None:
        super().__init__()
        self.network, self.latent_dim = network, whole_number("latent_dim", latent_dim, least=1)
        self.rank, self.min_scale = whole_number("rank", rank, least=1), lower_bound(min_scale)

    @classmethod
    def mlp(
        cls,
        in_features: int,
        hidden: Sequence[int],
        latent_dim: int,
        rank: int,
        min_scale: float = 0.0,
        activation: Activation = nn.Tanh,
    ) -> LowRankNormal:
        """Build the encoder on an `MLP` with the right number of output features."""
        whole_number("latent_dim", latent_dim, least=1)
        whole_number("rank", rank, least=1)
        return cls(MLP(in_features, hidden, (rank + 2) * latent_dim, activation), latent_dim, rank, min_scale)

    def forward(self, x: Tensor) -> dist.LowRankMultivariateNormal:
        """Return q(z given x): batch shape (N,), event shape (latent_dim,)."""
        sizes = [self.latent_dim, self.latent_dim, self.rank * self.latent_dim]
        loc, raw_scale, factor = split(self.network(x), sizes)
        variance = positive(raw_scale, self.min_scale).square()
        return dist.LowRankMultivariateNormal(loc, factor.unflatten(-1, (self.latent_dim, self.rank)), variance)
