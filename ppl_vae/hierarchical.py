"""The variational autoencoder with several stochastic layers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import pyro
from torch import Tensor, nn

from ppl_vae.decoders import Bernoulli
from ppl_vae.drawing import Drawing, as_event, check_latent_dim, check_parts, distribution, given
from ppl_vae.encoders import DiagonalNormal
from ppl_vae.errors import PairError
from ppl_vae.networks import event_sizes
from ppl_vae.priors import StandardNormal

__all__ = ["HierarchicalVAE"]


class HierarchicalVAE(Drawing):
    """The pair `p(z_L) p(z_L-1 given z_L) ... p(z_1 given z_2) p(x given z_1)` with a guide from the data upwards.

    The guide is `q(z_1 given x) q(z_2 given z_1) ... q(z_L given z_L-1)`. The KL of the top layer has a closed form
    given the layer below it; that of the others is sampled.

    Args:
        prior: `prior()` returns p(z_L).
        conditionals: p(z_1 given z_2), p(z_2 given z_3), ...: each maps z (..., dimension above) to a distribution of
            batch shape (...), one fewer than layers.
        decoder: `decoder(z_1)` returns p(x given z_1).
        encoders: q(z_1 given x), q(z_2 given z_1), ..., at least two.

    Raises:
        PairError: Numbers of parts or dimensions of latents disagree; from the programs, if a part does not take the
            latents of its neighbour or returns no distribution of Pyro.

    Reference:
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.

    Example:
        >>> from ppl_vae import decoders, encoders, priors
        >>> vae = HierarchicalVAE(
        ...     priors.StandardNormal(2),
        ...     [encoders.DiagonalNormal.mlp(2, [8], 4)],
        ...     decoders.Bernoulli.mlp(4, [8], 64),
        ...     [encoders.DiagonalNormal.mlp(64, [8], 4), encoders.DiagonalNormal.mlp(4, [8], 2)],
        ... )
        >>> vae.sample(3).shape
        torch.Size([3, 64])
    """

    def __init__(
        self, prior: nn.Module, conditionals: Sequence[nn.Module], decoder: nn.Module, encoders: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        if len(encoders) < 2 or len(conditionals) != len(encoders) - 1:
            raise PairError(
                f"expected at least two encoders and one conditional fewer, found {len(encoders)} encoders and "
                f"{len(conditionals)} conditionals; for one stochastic layer take VAE"
            )
        for part in (*conditionals, *encoders):
            check_parts(encoder=part)
        check_parts(prior=prior, decoder=decoder)
        for layer, (above, encoder) in enumerate(zip((*conditionals, prior), encoders, strict=True), start=1):
            check_latent_dim(above, encoder, f"encoder of z{layer}, as in the model")
        self.prior, self.decoder = prior, decoder
        self.conditionals, self.encoders = nn.ModuleList(conditionals), nn.ModuleList(encoders)

    @classmethod
    def burda(
        cls,
        event_shape: int | Sequence[int] = 784,
        hidden: Sequence[Sequence[int]] = ((200, 200), (100, 100)),
        latent_dims: Sequence[int] = (100, 50),
    ) -> HierarchicalVAE:
        """Build the network of the paper for binary data: tanh layers, the same widths in guide and model.

        The default is the paper's with two stochastic layers, 784-200-200-100 and 100-100-100-50.

        Args:
            event_shape: Shape of one datum, an integer for flat data.
            hidden: Widths of the hidden layers below each stochastic layer, seen from the data.
            latent_dims: Dimension of each stochastic layer, from the data upwards.

        Raises:
            PairError: There are not as many latent dimensions as widths, or fewer than two.
        """
        if len(hidden) != len(latent_dims):
            raise PairError(f"expected widths for each of the {len(latent_dims)} latent layers, found {len(hidden)}")
        below = [prod(event_sizes(event_shape)), *latent_dims[:-1]]
        upwards = [DiagonalNormal.mlp(a, h, b) for a, h, b in zip(below, hidden, latent_dims, strict=True)]
        downwards = [
            DiagonalNormal.mlp(above, h[::-1], own)
            for own, above, h in zip(latent_dims, latent_dims[1:], hidden[1:], strict=False)
        ]
        decoder = Bernoulli.mlp(latent_dims[0], hidden[0][::-1], event_shape)
        return cls(StandardNormal(latent_dims[-1]), downwards, decoder, upwards)

    def model(self, x: Tensor) -> None:
        """Pyro program of p(x, z): latents "zL" to "z1", observed "x", one plate "data" over the rows of x."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample(f"z{len(self.encoders)}", distribution("prior", self.prior()))
            for layer in range(len(self.conditionals), 0, -1):
                z = pyro.sample(f"z{layer}", given(f"conditional of z{layer}", self.conditionals[layer - 1], z))
            likelihood = given("decoder", self.decoder, z)
            pyro.sample("x", likelihood, obs=as_event(x, likelihood))

    def guide(self, x: Tensor) -> None:
        """Pyro program of q(z given x): latents "z1" to "zL", one plate "data" over the rows of x."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z1", distribution("encoder of z1", self.encoders[0](x)))
            for layer, encoder in enumerate(self.encoders[1:], start=2):
                z = pyro.sample(f"z{layer}", given(f"encoder of z{layer}", encoder, z))

    def _from_prior(self, n: int) -> Tensor:
        z = self.prior().sample((n,))
        for conditional in reversed(self.conditionals):
            z = conditional(z).sample()
        return z

    def _from_guide(self, x: Tensor, num_samples: int) -> Tensor:
        return self.encoders[0](x).sample((num_samples,))
