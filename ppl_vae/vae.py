"""The variational autoencoder: a pair built of three modules whose forward returns a distribution."""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from ppl_vae.drawing import as_event, evaluating, mean_or_draw, returned
from ppl_vae.errors import DataError, PairError
from ppl_vae.options import whole_number

__all__ = ["VAE"]


class VAE(nn.Module):
    """The pair `p(x, z) = p(z) p(x given z)` and `q(z given x)`.

    Args:
        prior: `prior()` returns p(z), event shape (latent_dim,).
        decoder: `decoder(z)` maps z (..., latent_dim) to p(x given z), batch shape (...).
        encoder: `encoder(x)` maps x (N, *event) to q(z given x), batch shape (N,).

    Data may be flat or images, (N, 784) or (N, 1, 28, 28): the decoder's event shape decides how they are scored.

    Raises:
        PairError: A part is no module, or encoder and prior have latents of different dimensions; from the programs, if
            a part returns no distribution of Pyro, or the decoder does not take the latents of the prior.

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
        for role, part in (("prior", prior), ("decoder", decoder), ("encoder", encoder)):
            if not isinstance(part, nn.Module):
                raise PairError(f"{role}: expected a module, found {type(part).__name__}: see ppl_vae.{role}s")
        _check_dimensions(prior, encoder)
        self.prior, self.decoder, self.encoder = prior, decoder, encoder

    def model(self, x: Tensor) -> None:
        """Pyro program of p(x, z): latent "z", observed "x", one plate "data" over the rows of x."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", returned("prior", self.prior()))
            likelihood = self._decode(z)
            pyro.sample("x", likelihood, obs=as_event(x, likelihood))

    def guide(self, x: Tensor) -> None:
        """Pyro program of q(z given x): latent "z", one plate "data" over the rows of x."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", returned("encoder", self.encoder(x)))

    def sample(self, n: int, seed: int = 0, mean: bool = False) -> Tensor:
        """Draw z from p(z), then x from p(x given z), or its mean.

        Args:
            n: Number of draws.
            seed: Seed of this call; the global generators stay as they are.
            mean: Return E[x given z] instead of a draw of x.

        Returns:
            Draws (n, *event_shape) on the device of the module.

        Raises:
            ValueError: n is no whole number, or negative.
        """
        whole_number("n", n, least=0)
        with evaluating(self, seed):
            return mean_or_draw(self._decode(self.prior().sample((n,))), mean)

    def reconstruct(self, x: Tensor, num_samples: int = 1, seed: int = 0, mean: bool = True) -> Tensor:
        """Draw z from q(z given x), then x' from p(x' given z), or its mean.

        Args:
            x: Data (N, *event).
            num_samples: Draws of z per datum.
            seed: Seed of this call; the global generators stay as they are.
            mean: Return E[x' given z] instead of a draw of x'.

        Returns:
            Reconstructions (num_samples, N, *event_shape): a dimension of draws comes first, even for one.

        Raises:
            ValueError: `num_samples` is no whole number, or negative.
        """
        whole_number("num_samples", num_samples, least=0)
        with evaluating(self, seed):
            return mean_or_draw(self._decode(self.encoder(x).sample((num_samples,))), mean)

    def _decode(self, z: Tensor) -> Distribution:
        try:
            return returned("decoder", self.decoder(z))
        except (RuntimeError, DataError) as error:
            # With particles in front a decoder may fail by right: its pair then runs particle by particle.
            if z.dim() > 2 or isinstance(error, torch.OutOfMemoryError):
                raise
            raise PairError(
                f"the decoder failed on z of shape {tuple(z.shape)}, whose rows are as the prior has them: {error}; "
                f"build it for latents of shape {tuple(z.shape[1:])}"
            ) from error


def _check_dimensions(prior: nn.Module, encoder: nn.Module) -> None:
    """Compare the dimensions of z as far as the modules tell theirs."""
    expected, found = (getattr(module, "latent_dim", None) for module in (prior, encoder))
    if isinstance(expected, int) and isinstance(found, int) and expected != found:
        raise PairError(f"latent_dim: expected {expected} in the encoder, as in the prior, found {found}")
