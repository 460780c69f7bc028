"""Named pairs of the command line: variational autoencoders sized by two numbers, started at the mean of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import decoders, encoders, priors
from ppl_vae.errors import DataError
from ppl_vae.networks import MLP, Standardize
from ppl_vae.supports import first_outside
from ppl_vae.vae import VAE

__all__ = ["RECIPES", "Recipe", "bernoulli_vae", "counts_vae", "gaussian_vae", "levels_vae", "scaled_vae"]

_MIN_SCALE = 1e-3
_SMALLEST_SHARE = 0.01


class Recipe(NamedTuple):
    """A built-in pair of the command line."""

    build: Callable[[Tensor, int, Sequence[int]], VAE]
    """Makes the pair from training data (N, *event), the dimension of z and the widths of the hidden layers."""
    binary: bool
    """Whether it scores binary data, so that grey images have to be binarised."""


def bernoulli_vae(x: Tensor, latent_dim: int = 50, hidden: Sequence[int] = (200, 200)) -> VAE:
    """Make the VAE of binary data: tanh layers D-200-200-50-200-200-D, each pixel started at its mean.

    Args:
        x: Training data (N, *event), binary or probabilities in [0, 1].
        latent_dim: Dimension of z.
        hidden: Widths of the encoder's hidden layers; the decoder mirrors them.

    Raises:
        DataError: An entry is outside [0, 1]; the row is named.

    Example:
        >>> bernoulli_vae(torch.zeros(5, 64), latent_dim=2, hidden=[8]).sample(3).shape
        torch.Size([3, 64])
    """
    if (outside := first_outside(constraints.unit_interval, x)) is not None:
        raise DataError(
            f"row {outside[0]}: the recipe vae expects binary data or grey levels in [0, 1], found {outside[1]:g}: "
            "divide by the largest grey level (255 for bytes), or take the recipe gaussian-vae for continuous data"
        )
    shape = x.shape[1:]
    decoder = decoders.Bernoulli.mlp(latent_dim, hidden[::-1], shape)
    decoder.start_at(x)
    return _mean_field(decoder, x, latent_dim, hidden)


def gaussian_vae(x: Tensor, latent_dim: int = 50, hidden: Sequence[int] = (200, 200)) -> VAE:
    """Make the VAE of continuous data, p(x given z) = N(x; f(z), s^2 I) with s learned.

    Training starts at the model without latents: f at the mean of x, s at its standard deviation around it.

    Args:
        x: Training data (N, *event). Integer levels have no density: dequantise them first.
        latent_dim: Dimension of z.
        hidden: Widths of the encoder's hidden layers; the decoder mirrors them.

    Example:
        >>> gaussian_vae(torch.zeros(5, 3), latent_dim=1, hidden=[8]).sample(2).shape
        torch.Size([2, 3])
    """
    shape = x.shape[1:]
    decoder = decoders.Gaussian.mlp(latent_dim, hidden[::-1], shape, scale="learned", min_scale=_MIN_SCALE)
    decoder.start_at(x)
    return _mean_field(decoder, x, latent_dim, hidden)


def scaled_vae(x: Tensor, latent_dim: int = 50, hidden: Sequence[int] = (200, 200)) -> VAE:
    """Make the VAE of continuous data with a scale for each entry, p(x given z) = N(x; f(z), diag s(z)^2).

    No scale falls below a hundredth of the standard deviation of all of x: an entry that never changes would have an
    unbounded density.

    Args:
        x: Training data (N, *event). Integer levels have no density: dequantise them first.
        latent_dim: Dimension of z.
        hidden: Widths of the encoder's hidden layers; the decoder mirrors them.

    Example:
        >>> scaled_vae(torch.randn(5, 3), latent_dim=1, hidden=[8]).sample(2).shape
        torch.Size([2, 3])
    """
    shape = x.shape[1:]
    floor = _SMALLEST_SHARE * float(x.std().clamp_min(_MIN_SCALE))
    decoder = decoders.Gaussian.mlp(latent_dim, hidden[::-1], shape, scale="per_latent", min_scale=floor)
    return _mean_field(decoder, x, latent_dim, hidden)


def levels_vae(x: Tensor, latent_dim: int = 50, hidden: Sequence[int] = (200, 200)) -> VAE:
    """Make the VAE of levels 0..L-1, with a discretised mixture of five logistics for each entry.

    L is one more than the highest level of x: data of a higher one are refused.

    Args:
        x: Training data (N, *event), whole numbers.
        latent_dim: Dimension of z.
        hidden: Widths of the encoder's hidden layers; the decoder mirrors them.

    Raises:
        DataError: An entry is no level; the row is named.

    Example:
        >>> levels_vae(torch.arange(8.0).reshape(4, 2), latent_dim=1, hidden=[8]).decoder.num_levels
        8
    """
    _check_whole(x, "levels-vae")
    num_levels = max(2, int(x.max()) + 1)
    decoder = decoders.DiscretizedLogisticMixture.mlp(latent_dim, hidden[::-1], x.shape[1:], num_levels)
    return _standardized(decoder, x, latent_dim, hidden)


def counts_vae(x: Tensor, latent_dim: int = 50, hidden: Sequence[int] = (200, 200)) -> VAE:
    """Make the VAE of counts 0, 1, 2, ..., negative binomial with a dispersion for each entry, started at their means.

    Args:
        x: Training data (N, *event), whole numbers.
        latent_dim: Dimension of z.
        hidden: Widths of the encoder's hidden layers; the decoder mirrors them.

    Raises:
        DataError: An entry is no count; the row is named.

    Example:
        >>> counts_vae(torch.arange(8.0).reshape(4, 2), latent_dim=1, hidden=[8]).sample(3).shape
        torch.Size([3, 2])
    """
    _check_whole(x, "counts-vae")
    decoder = decoders.NegativeBinomial.mlp(latent_dim, hidden[::-1], x.shape[1:])
    decoder.start_at(x)
    return _standardized(decoder, x, latent_dim, hidden)


def _check_whole(x: Tensor, recipe: str) -> None:
    if (outside := first_outside(constraints.nonnegative_integer, x)) is not None:
        raise DataError(
            f"row {outside[0]}: the recipe {recipe} expects whole numbers 0, 1, 2, ..., found {outside[1]:g}: make "
            "levels of grey images, ppl_vae.data.quantize(x, levels), or take another recipe"
        )


def _standardized(decoder: nn.Module, x: Tensor, latent_dim: int, hidden: Sequence[int]) -> VAE:
    """A VAE whose encoder sees numbers of mean 0 and standard deviation 1, which tanh layers are made for."""
    spread = x.std(correction=0)
    standardize = Standardize(x.mean(), torch.where(spread > 0, spread, 1.0))
    network = nn.Sequential(standardize, MLP(x[0].numel(), hidden, 2 * latent_dim))
    return VAE(priors.StandardNormal(latent_dim), decoder, encoders.DiagonalNormal(network, latent_dim))


def _mean_field(decoder: nn.Module, x: Tensor, latent_dim: int, hidden: Sequence[int]) -> VAE:
    encoder = encoders.DiagonalNormal.mlp(x[0].numel(), hidden, latent_dim)
    return VAE(priors.StandardNormal(latent_dim), decoder, encoder)


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "vae": Recipe(bernoulli_vae, binary=True),
        "gaussian-vae": Recipe(gaussian_vae, binary=False),
        "scaled-vae": Recipe(scaled_vae, binary=False),
        "levels-vae": Recipe(levels_vae, binary=False),
        "counts-vae": Recipe(counts_vae, binary=False),
    }
)
