"""The variational autoencoder: a pair built of three modules whose forward returns a distribution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import pyro
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from ppl_vae.errors import DataError
from ppl_vae.rng import seeded

__all__ = ["VAE"]


class VAE(nn.Module):
    """The pair `p(x, z) = p(z) p(x given z)` and `q(z given x)`.

    Args:
        prior: `prior()` returns p(z), event shape (latent_dim,).
        decoder: `decoder(z)` maps z (..., latent_dim) to p(x given z), batch shape (...).
        encoder: `encoder(x)` maps x (N, *event) to q(z given x), batch shape (N,).

    Data may be flat or images, (N, 784) or (N, 1, 28, 28): the decoder's event shape decides how they are scored.

    Reference:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes; Rezende, Mohamed and Wierstra (2014), Stochastic
        Backpropagation and Approximate Inference in Deep Generative Models.

    Example:
        >>> from ppl_vae import decoders, encoders, priors
        >>> vae = VAE(
        ...     priors.StandardNormal(50),
        ...     decoders.Bernoulli.mlp(50, [200, 200], 784),
        ...     encoders.DiagonalNormal.mlp(784, [200, 200], 50),
        ... )
        >>> vae.sample(3).shape
        torch.Size([3, 784])
    """

    def __init__(self, prior: nn.Module, decoder: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.prior, self.decoder, self.encoder = prior, decoder, encoder

    def model(self, x: Tensor) -> None:
        """Pyro program of p(x, z): latent "z", observed "x", one plate "data" over the rows of x."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            likelihood = self.decoder(z)
            pyro.sample("x", likelihood, obs=_as_event(x, likelihood))

    def guide(self, x: Tensor) -> None:
        """Pyro program of q(z given x): latent "z", one plate "data" over the rows of x."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encoder(x))

    def sample(self, n: int, seed: int = 0, mean: bool = False) -> Tensor:
        """Draw z from p(z), then x from p(x given z), or its mean.

        Args:
            n: Number of draws.
            seed: Seed of this call; the global generators stay as they are.
            mean: Return E[x given z] instead of a draw of x.

        Returns:
            Draws (n, *event_shape) on the device of the module.
        """
        with self._evaluating(seed):
            return _mean_or_draw(self.decoder(self.prior().sample((n,))), mean)

    def reconstruct(self, x: Tensor, num_samples: int = 1, seed: int = 0, mean: bool = True) -> Tensor:
        """Draw z from q(z given x), then x' from p(x' given z), or its mean.

        Args:
            x: Data (N, *event).
            num_samples: Draws of z per datum.
            seed: Seed of this call; the global generators stay as they are.
            mean: Return E[x' given z] instead of a draw of x'.

        Returns:
            Reconstructions (num_samples, N, *event_shape).
        """
        with self._evaluating(seed):
            return _mean_or_draw(self.decoder(self.encoder(x).sample((num_samples,))), mean)

    @contextmanager
    def _evaluating(self, seed: int) -> Iterator[None]:
        """Seeded draws without gradients in evaluation mode; generators and each module's mode are restored."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        modes = {module: module.training for module in self.modules()}
        with torch.no_grad(), seeded(seed, None if tensor is None else tensor.device):
            try:
                self.eval()
                yield
            finally:
                for module, mode in modes.items():
                    module.training = mode


def _mean_or_draw(distribution: Distribution, mean: bool) -> Tensor:
    return distribution.mean if mean else distribution.sample()


def _as_event(x: Tensor, likelihood: Distribution) -> Tensor:
    """View the rows of x in the event shape of p(x given z)."""
    shape = likelihood.event_shape
    if x.shape[1:].numel() != shape.numel():
        raise DataError(
            f"the decoder expected data of event shape {tuple(shape)}, found rows of shape {tuple(x.shape[1:])}: "
            "build the decoder for these data"
        )
    return x.reshape(x.shape[0], *shape)
