"""What is measured: one network and its images, as a pair, as programs for Pyro's SVI, and by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import ppl_vae as pv

__all__ = ["CPU", "HIDDEN", "IMAGE", "LATENT", "by_hand_loss", "images", "make_vae", "moments", "svi_programs"]

CPU = torch.device("cpu")
IMAGE, HIDDEN, LATENT = 784, (200, 200), 50


def make_vae(device: torch.device = CPU, hidden: Sequence[int] = HIDDEN) -> pv.VAE:
    """Make the network of most cases, always with the same parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = pv.decoders.Bernoulli.mlp(LATENT, hidden, IMAGE)
        encoder = pv.encoders.DiagonalNormal.mlp(IMAGE, hidden, LATENT)
        return pv.VAE(pv.priors.StandardNormal(LATENT), decoder, encoder).to(device)


def images(num_data: int, device: torch.device = CPU) -> Tensor:
    """Return binary images (N, 784): the embedded digits, enlarged to 28 x 28 and repeated as often as need be."""
    digits = pv.data.load("digits").train
    grey = nn.functional.interpolate(digits.unflatten(1, (1, 8, 8)), size=28, mode="bilinear").flatten(1)
    return pv.data.binarize(grey[torch.arange(num_data) % len(grey)]).to(device)


def moments(vae: pv.VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of q(z given x), (N, 50) each."""
    loc, raw_scale = vae.encoder.get_submodule("network")(x).chunk(2, -1)
    return loc, nn.functional.softplus(raw_scale)


def svi_programs(vae: pv.VAE) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """Return the model and the guide as Pyro's own examples write them: `pyro.module` makes SVI train the networks."""
    zeros = torch.zeros(LATENT, device=next(vae.parameters()).device)
    ones = torch.ones_like(zeros)

    def model(x: Tensor) -> None:
        pyro.module("decoder", vae.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(zeros, ones).to_event(1))
            pyro.sample("x", vae.decoder(z), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", vae.encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", vae.encoder(x))

    return model, guide


def by_hand_loss(vae: pv.VAE, x: Tensor) -> Tensor:
    """Return minus the ELBO of a batch (N, 784), in nats per datum, with nothing but PyTorch."""
    loc, scale = moments(vae, x)
    logits = vae.decoder.get_submodule("network")(loc + scale * torch.randn_like(loc))
    distortion = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    rate = (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum()
    return (distortion + rate) / len(x)
