"""The variational autoencoder: a pair built of three modules whose forward returns a distribution."""

from __future__ import annotations

import pyro
from torch import Tensor, nn

from ppl_vae.drawing import Drawing, as_event, check_latent_dim, check_parts, distribution, given

__all__ = ["VAE"]


class VAE(Drawing):
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
        check_parts(prior=prior, decoder=decoder, encoder=encoder)
        check_latent_dim(prior, encoder)
        self.prior, self.decoder, self.encoder = prior, decoder, encoder

    def model(self, x: Tensor) -> None:
        """Pyro program of p(x, z): latent "z", observed "x", one plate "data" over the rows of x."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", distribution("prior", self.prior()))
            likelihood = given("decoder", self.decoder, z)
            pyro.sample("x", likelihood, obs=as_event(x, likelihood))

    def guide(self, x: Tensor) -> None:
        """Pyro program of q(z given x): latent "z", one plate "data" over the rows of x."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", distribution("encoder", self.encoder(x)))

    def _from_prior(self, n: int) -> Tensor:
        return self.prior().sample((n,))

    def _from_guide(self, x: Tensor, num_samples: int) -> Tensor:
        return self.encoder(x).sample((num_samples,))
