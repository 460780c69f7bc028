"""Generators of binary images to compare: VAEs of several priors and decoders, and models of exact likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

import ppl_vae as pv

__all__ = ["Binary", "Kind", "Networks", "kinds"]


@dataclass(frozen=True)
class Networks:
    """Sizes of all of them."""

    latent_dim: int = 32
    hidden: tuple[int, ...] = (200, 200)
    num_components: int = 100
    made_hidden: tuple[int, ...] = (500, 500)
    channels: int = 16
    num_layers: int = 5


class Binary(NamedTuple):
    """The images that all models share."""

    shape: tuple[int, int, int]
    """(1, height, width), D pixels."""
    train: Tensor
    """Grey, drawn binary anew in every step, (N, D)."""
    test: Tensor
    """Binary, (M, D)."""
    grey: Tensor
    """The same images in grey, which means of p(x given z) are held against, (M, D)."""
    train_labels: Tensor
    """Classes of the training images (N,)."""


class Kind(NamedTuple):
    """A model of the comparison."""

    make: Callable[[], Any]
    """Makes it anew."""
    pixels: bool = False
    """Whether it trains and draws at the cost of a PixelCNN."""
    is_exact: bool = False
    """Whether its likelihood is: it has no latents."""
    has_means: bool = False
    """Whether its pixels are independent given z, so that there are means to look at."""


def kinds(networks: Networks, found: Binary) -> Mapping[str, Kind]:
    """All of them, under the names of the figure."""
    latent = networks.latent_dim

    def vae(make: Callable[..., Any], *arguments: Any) -> Kind:
        return Kind(partial(make, networks, found, *arguments), has_means=True)

    return {
        "VAE": vae(with_prior, partial(pv.priors.StandardNormal, latent)),
        "VAE, mixture prior": vae(with_prior, partial(pv.priors.MixtureOfNormals, latent, networks.num_components)),
        "VAE, VampPrior": vae(vamp),
        "VAE, flow prior": vae(with_prior, partial(pv.priors.FlowPrior, latent, "affine")),
        "VAE, two layers": vae(two_layers),
        "VAE, PixelCNN decoder": Kind(partial(pixel_decoder, networks, found), pixels=True),
        "MADE": Kind(partial(pv.autoregressive.MADE, found.train.shape[1], networks.made_hidden), is_exact=True),
        "PixelCNN": Kind(
            partial(pv.autoregressive.PixelCNN, found.shape, networks.channels, networks.num_layers),
            pixels=True,
            is_exact=True,
        ),
    }


def encoder(networks: Networks, found: Binary) -> nn.Module:
    """The network that all VAEs with one layer of latents share."""
    return pv.encoders.DiagonalNormal.mlp(found.train.shape[1], networks.hidden, networks.latent_dim)


def with_prior(networks: Networks, found: Binary, prior: Callable[[], nn.Module]) -> pv.VAE:
    """A VAE of independent pixels."""
    return pv.VAE(prior(), decoder(networks, found), encoder(networks, found))


def decoder(networks: Networks, found: Binary) -> pv.decoders.Bernoulli:
    """Its decoder, which starts at the frequencies of the pixels."""
    made = pv.decoders.Bernoulli.mlp(networks.latent_dim, networks.hidden[::-1], found.train.shape[1])
    made.start_at(found.train)
    return made


def vamp(networks: Networks, found: Binary) -> pv.VAE:
    """The same, its prior the mean of q over images that it learns."""
    shared = encoder(networks, found)
    prior = pv.priors.VampPrior(shared, found.train[: networks.num_components])
    return pv.VAE(prior, decoder(networks, found), shared)


def two_layers(networks: Networks, found: Binary) -> pv.HierarchicalVAE:
    """Two stochastic layers, the second half as wide."""
    widths = (networks.hidden, [width // 2 for width in networks.hidden])
    made = pv.HierarchicalVAE.burda(found.train.shape[1], widths, (2 * networks.latent_dim, networks.latent_dim))
    assert isinstance(made.decoder, pv.decoders.Bernoulli)
    made.decoder.start_at(found.train)
    return made


def pixel_decoder(networks: Networks, found: Binary) -> pv.VAE:
    """A VAE whose decoder is a small PixelCNN that sees z."""
    maps = (networks.channels // 2, *found.shape[1:])
    network = pv.networks.ConvDecoder(networks.latent_dim, [2 * networks.channels], maps)
    pixels = pv.autoregressive.PixelCNN(found.shape, networks.channels, 2, context_shape=maps, first_size=5)
    prior = pv.priors.StandardNormal(networks.latent_dim)
    return pv.VAE(prior, nn.Sequential(network, pixels), encoder(networks, found))
