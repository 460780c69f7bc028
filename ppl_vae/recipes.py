"""Named pairs of the command line: variational autoencoders sized by two numbers, started at the mean of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae import decoders, encoders, priors
from ppl_vae.errors import DataError
from ppl_vae.networks import MLP, Standardize
from ppl_vae.supports import first_outside
from ppl_vae.vae import VAE

__all__ = ["RECIPES", "Recipe", "bernoulli_vae", "counts_vae", "gaussian_vae", "levels_vae", "scaled_vae"]

_SMALLEST_SHARED, _SMALLEST_OF_EACH = 1e-3, 0.01  # scales of p(x given z), in the units of standardised data
_FARTHEST = 10.0


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

    Both networks see x in units of its standard deviation around its means. Training starts at the model without
    latents: f at the means, s at that deviation, of which no s falls below a thousandth.

    Args:
        x: Training data (N, *event). Integer levels have no density: dequantise them first.
        latent_dim: Dimension of z.
        hidden: Widths of the encoder's hidden layers; the decoder mirrors them.

    Raises:
        DataError: x is of integers, or so small or large that its squares are none of its type.

    Example:
        >>> gaussian_vae(torch.zeros(5, 3), latent_dim=1, hidden=[8]).sample(2).shape
        torch.Size([2, 3])
    """
    _check_real(x, "gaussian-vae")
    spread = (x - x.mean(0)).square().mean().sqrt()
    unit = torch.where(_is_constant(x).all(), 1.0, spread).expand(x.shape[1:])
    decoder = decoders.Gaussian.mlp(latent_dim, hidden[::-1], x.shape[1:], "learned", _SMALLEST_SHARED)
    return _in_units(decoder, x, unit, latent_dim, hidden)


def scaled_vae(x: Tensor, latent_dim: int = 50, hidden: Sequence[int] = (200, 200)) -> VAE:
    """Make the VAE of continuous data with a scale for each entry, p(x given z) = N(x; f(z), diag s(z)^2).

    Both networks see each entry in units of its own standard deviation, or of a tenth of its largest deviation where
    that is more; of all of x where an entry never changes. Training starts at the model without latents, the means and
    deviations of the entries. No scale falls below a hundredth of its unit: the density would be unbounded.

    Args:
        x: Training data (N, *event). Integer levels have no density: dequantise them first.
        latent_dim: Dimension of z.
        hidden: Widths of the encoder's hidden layers; the decoder mirrors them.

    Raises:
        DataError: As for `gaussian_vae`, of any entry that changes.

    Example:
        >>> scaled_vae(torch.randn(5, 3), latent_dim=1, hidden=[8]).sample(2).shape
        torch.Size([2, 3])
    """
    _check_real(x, "scaled-vae")
    constant, deviation = _is_constant(x), x - x.mean(0)
    spread = torch.where(constant.all(), 1.0, deviation.square().mean().sqrt())
    of_each = torch.maximum(deviation.square().mean(0).sqrt(), deviation.abs().amax(0) / _FARTHEST)
    decoder = decoders.Gaussian.mlp(latent_dim, hidden[::-1], x.shape[1:], "per_latent", _SMALLEST_OF_EACH)
    return _in_units(decoder, x, torch.where(constant, spread, of_each), latent_dim, hidden)


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
    x = _whole(x, "levels-vae")
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
    x = _whole(x, "counts-vae")
    decoder = decoders.NegativeBinomial.mlp(latent_dim, hidden[::-1], x.shape[1:])
    decoder.start_at(x)
    return _standardized(decoder, x, latent_dim, hidden)


def _check_real(x: Tensor, recipe: str) -> None:
    """Integers have no density."""
    if not x.is_floating_point():
        raise DataError(
            f"the recipe {recipe} expects real numbers, found {str(x.dtype).removeprefix('torch.')}: dequantise levels "
            "(ppl_vae.data.dequantize), pass x.float() where they are measurements, or take another recipe"
        )


def _whole(x: Tensor, recipe: str) -> Tensor:
    """Levels or counts as real numbers, whose statistics torch takes."""
    if (outside := first_outside(constraints.nonnegative_integer, x)) is not None:
        raise DataError(
            f"row {outside[0]}: the recipe {recipe} expects whole numbers 0, 1, 2, ..., found {outside[1]:g}: make "
            "levels of grey images, ppl_vae.data.quantize(x, levels), or take another recipe"
        )
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


class _InUnits(nn.Module):
    """What a Gaussian decoder of (x - loc) / unit says of x: N(x; loc + unit f(z), (unit s(z))^2)."""

    loc: Tensor
    unit: Tensor

    def __init__(self, decoder: decoders.Gaussian, loc: Tensor, unit: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("loc", loc)
        self.register_buffer("unit", unit)

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x given z): batch shape z.shape[:-1], event shape that of `loc`."""
        of_standardized = self.decoder(z).base_dist
        loc, scale = self.loc + self.unit * of_standardized.loc, self.unit * of_standardized.scale
        return dist.Normal(loc, scale).to_event(self.loc.dim())


def _is_constant(x: Tensor) -> Tensor:
    """Which entries of x (N, *event) never change; rounding gives them a deviation from their mean all the same."""
    return (x == x[0]).all(0)


def _check_unit(unit: Tensor, x: Tensor) -> None:
    """A density squares what it divides by."""
    kind = torch.finfo(torch.get_default_dtype())
    square = unit.to(torch.get_default_dtype()).square()
    bad = ~((square >= kind.tiny) & (square <= kind.max))
    if bool(bad.any()):
        far = (x - x.mean(0)).abs().amax(0)[bad][0]
        raise DataError(
            f"expected numbers whose squares are of {torch.get_default_dtype()}, {kind.tiny:.2g} to {kind.max:.2g}, "
            f"found some that are at most {float(far):.3g} away from their mean: measure the data in another unit"
        )


def _in_units(decoder: decoders.Gaussian, x: Tensor, unit: Tensor, latent_dim: int, hidden: Sequence[int]) -> VAE:
    """A VAE of x around its means, in a unit for each entry, that starts at the model without latents."""
    _check_unit(unit, x)
    decoder.start_at((x - x.mean(0)) / unit)
    loc, unit = (number.to(torch.get_default_dtype(), copy=True) for number in (x.mean(0), unit))
    network = nn.Sequential(Standardize(loc, unit), MLP(x[0].numel(), hidden, 2 * latent_dim))
    return VAE(
        priors.StandardNormal(latent_dim),
        _InUnits(decoder, loc.clone(), unit.clone()),
        encoders.DiagonalNormal(network, latent_dim),
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
