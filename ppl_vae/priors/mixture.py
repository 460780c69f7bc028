"""Priors that are mixtures: of normals, and of what the encoder says of pseudo-inputs."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.arrays import real_array
from ppl_vae.errors import DataError
from ppl_vae.networks import positive
from ppl_vae.options import whole_number

__all__ = ["MixtureOfNormals", "VampPrior"]


class MixtureOfNormals(nn.Module):
    """The prior `p(z) = sum_k pi_k N(z; m_k, diag(s_k^2))` with trainable weights, means and scales.

    It starts with equal weights, means drawn from N(0, I), and every s = 1.

    Args:
        latent_dim: Dimension of z.
        num_components: Number of components.

    Raises:
        ValueError: latent_dim or num_components is no whole number of at least 1.

    Reference:
        Dilokthanakul et al. (2016), Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders.

    Example:
        >>> p = MixtureOfNormals(2, num_components=10)()
        >>> p.sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(self, latent_dim: int, num_components: int) -> None:
        super().__init__()
        whole_number("num_components", num_components, least=1)
        self.latent_dim = whole_number("latent_dim", latent_dim, least=1)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.means = nn.Parameter(torch.randn(num_components, latent_dim))
        self.raw_scales = nn.Parameter(torch.ones(num_components, latent_dim).expm1().log())

    def forward(self) -> dist.MixtureSameFamily:
        """Return p(z): batch shape (), event shape (latent_dim,)."""
        components = dist.Normal(self.means, positive(self.raw_scales)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)


class VampPrior(nn.Module):
    """The prior `p(z) = 1/K sum_k q(z given u_k)`: the encoder's own answers to K trainable pseudo-inputs.

    The encoder is that of the VAE, and trains with both. Pseudo-inputs may leave the range of the data.

    Args:
        encoder: Maps x (N, *event) to q(z given x), a distribution with batch shape (N,).
        pseudo_inputs: Where the u_k start, (K, *event), a tensor or an array: data, such as some hundred of the
            training images.

    Raises:
        DataError: There is no pseudo-input, they are not finite, or not rows.

    Reference:
        Tomczak and Welling (2018), VAE with a VampPrior.

    Example:
        >>> from ppl_vae import decoders, encoders
        >>> from ppl_vae.vae import VAE
        >>> x = torch.rand(100, 64)
        >>> encoder = encoders.DiagonalNormal.mlp(64, [32], 2)
        >>> vae = VAE(VampPrior(encoder, x[:20]), decoders.Bernoulli.mlp(2, [32], 64), encoder)
        >>> vae.sample(3).shape
        torch.Size([3, 64])
    """

    def __init__(self, encoder: nn.Module, pseudo_inputs: Tensor | np.ndarray) -> None:
        super().__init__()
        if not isinstance(pseudo_inputs, Tensor):
            pseudo_inputs = torch.from_numpy(real_array("pseudo_inputs", pseudo_inputs))
        if pseudo_inputs.dim() < 2:
            raise DataError(
                f"pseudo_inputs: expected one or more finite rows (K, *event), found shape "
                f"{tuple(pseudo_inputs.shape)}: take x[None] for one"
            )
        if not len(pseudo_inputs) or not pseudo_inputs.isfinite().all():
            found = "values that are not" if len(pseudo_inputs) else "none"
            raise DataError(f"pseudo_inputs: expected one or more finite rows, found {found}: take them from the data")
        self.encoder = encoder
        self.latent_dim = getattr(encoder, "latent_dim", None)
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone().to(torch.get_default_dtype()))

    def forward(self) -> dist.MixtureSameFamily:
        """Return p(z): batch shape (), event shape (latent_dim,)."""
        equal = self.pseudo_inputs.new_zeros(len(self.pseudo_inputs))
        return dist.MixtureSameFamily(dist.Categorical(logits=equal), self.encoder(self.pseudo_inputs))
