"""The deterministic autoencoder: the networks of a VAE, without noise, prior or likelihood."""

from __future__ import annotations

import pyro
from torch import Tensor, nn

from ppl_vae.drawing import as_event, distribution, evaluating, mean_or_draw, reading
from ppl_vae.errors import PairError

__all__ = ["Autoencoder"]


class Autoencoder(nn.Module):
    """The autoencoder `x -> z = f(x) -> p(x' given z)`, trained to give x itself a high log p(x' = x given f(x)).

    `fit` trains it like any pair; its objective and its distortion are the log-likelihood of reconstructions, in nats
    per datum. What it gives a datum has read that datum, so that there is no log p(x), no ELBO and no distribution to
    draw from: `log_likelihood` and bounds of several particles refuse it.

    Args:
        encoder: Maps x (N, *event) to codes (N, latent_dim).
        decoder: Maps codes (..., latent_dim) to a distribution over data, as those of `ppl_vae.decoders`.

    Raises:
        PairError: A part is no module.

    Reference:
        Hinton and Salakhutdinov (2006), Reducing the Dimensionality of Data with Neural Networks.

    Example:
        >>> import torch
        >>> from ppl_vae import decoders, networks
        >>> autoencoder = Autoencoder(encoder=networks.MLP(64, [20], 2), decoder=decoders.Bernoulli.mlp(2, [20], 64))
        >>> x = torch.zeros(5, 64)
        >>> autoencoder.encode(x).shape, autoencoder.reconstruct(x).shape
        (torch.Size([5, 2]), torch.Size([5, 64]))
    """

    def __init__(self, *, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        for role, part in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(part, nn.Module):
                raise PairError(f"{role}: expected a module, found {type(part).__name__}")
        self.encoder, self.decoder = encoder, decoder

    def model(self, x: Tensor) -> None:
        """Pyro program of the reconstruction: "x" is observed under a distribution that has read it."""
        with pyro.plate("data", x.shape[0], dim=-1):
            likelihood = distribution("decoder", self.decoder(self._codes(x)))
            pyro.sample("x", likelihood, obs=as_event(x, likelihood), infer={"is_reconstruction": True})

    def guide(self, x: Tensor) -> None:
        """Pyro program of no latents."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pass

    def encode(self, x: Tensor) -> Tensor:
        """Codes z = f(x) of x (N, *event), (N, latent_dim).

        Raises:
            DataError: x is no tensor or array of finite numbers, or has no row.
            PairError: The encoder fails on x.
        """
        with evaluating(self), reading(self, x) as x:
            return self._codes(x)

    def decode(self, z: Tensor, seed: int = 0, mean: bool = True) -> Tensor:
        """Mean of the data of codes z (..., latent_dim), or a draw: (..., *event_shape)."""
        with evaluating(self, seed):
            return mean_or_draw(distribution("decoder", self.decoder(z)), mean)

    def reconstruct(self, x: Tensor, seed: int = 0, mean: bool = True) -> Tensor:
        """Decode the codes of x (N, *event): (N, *event_shape)."""
        return self.decode(self.encode(x), seed, mean)

    def _codes(self, x: Tensor) -> Tensor:
        codes = self.encoder(x)
        if not isinstance(codes, Tensor):
            raise PairError(
                f"the encoder of an Autoencoder: expected a tensor of codes, found {type(codes).__name__}: take a "
                "network, such as networks.MLP, without a distribution on top"
            )
        return codes
