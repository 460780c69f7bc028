"""Gaussian mixtures trained by gradients: the latent is enumerated, sampled, or inferred by an amortised guide."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from ppl_vae.errors import DataError
from ppl_vae.exact.gmm import GMM
from ppl_vae.exact.mixture import Mixture, MixturePair
from ppl_vae.networks import MLP

__all__ = ["AmortisedCategorical", "TrainableGMM"]


class TrainableGMM(MixturePair):
    r"""A mixture of full covariances with unconstrained parameters, as a pair for stochastic gradients.

    pi = softmax(logits), Sigma_c = L_c L_c^T. Under `TraceEnum_ELBO`, `model` with an empty guide maximises
    log p(x) = log sum_z p(x, z) itself, so that gradients reach the optimum that EM reaches.

    Args:
        start: The mixture to start from; every weight positive. Diagonal, tied and spherical covariances become full.

    Attributes:
        logits: Unnormalised log pi, shape (C,).
        means: mu, shape (C, D).
        unconstrained_tril: The diagonal of L_c by its logarithm, shape (C, D, D); above it nothing is read.

    Raises:
        DataError: A weight is zero: no gradient brings that component back.

    Example:
        >>> start = GMM([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
        >>> gmm = TrainableGMM(start)
        >>> x = torch.tensor([[0.5], [2.0]])
        >>> bool(torch.allclose(gmm.to_gmm().log_prob(x), start.log_prob(x)))
        True
    """

    def __init__(self, start: GMM) -> None:
        super().__init__()
        log_weights, means, root = start.mixture()
        if log_weights.isinf().any():
            raise DataError(
                f"start has weights {start.weights.tolist()}, expected positive ones: drop empty components"
            )
        scale_tril = root if root.ndim == 3 else root.expand_as(means).diag_embed()
        self.logits = nn.Parameter(log_weights.clone())
        self.means = nn.Parameter(means.clone())
        tril = transform_to(constraints.lower_cholesky).inv(scale_tril.expand(len(means), -1, -1))
        self.unconstrained_tril = nn.Parameter(tril.clone())

    @property
    def scale_tril(self) -> Tensor:
        """L, the Cholesky factors of the covariances, shape (C, D, D)."""
        return transform_to(constraints.lower_cholesky)(self.unconstrained_tril)

    def mixture(self) -> Mixture:
        """Return the mixture of the current parameters, with their gradients."""
        return Mixture(self.logits.log_softmax(-1), self.means, self.scale_tril)

    @torch.no_grad()
    def to_gmm(self) -> GMM:
        """Return the mixture of the current parameters as a fixed `GMM` with full covariances."""
        log_weights, means, root = self.mixture()
        return GMM(log_weights.exp(), means, root @ root.mT, "full")


class AmortisedCategorical(nn.Module):
    """The amortised guide q(z = c given x) = softmax(network(x))_c of a mixture.

    Args:
        in_features: D.
        num_components: C.
        hidden: Widths of the hidden layers.

    Example:
        >>> q = AmortisedCategorical(2, 3, hidden=[16])
        >>> q(torch.zeros(5, 2)).probs.shape
        torch.Size([5, 3])
    """

    def __init__(self, in_features: int, num_components: int, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        self.network = MLP(in_features, hidden, num_components)

    def forward(self, x: Tensor) -> Categorical:
        """Return q(z given x) for data (N, D): batch shape (N,)."""
        return Categorical(logits=self.network(x.to(next(self.network.parameters()))))

    def guide(self, x: Tensor) -> None:
        """Pyro program of q(z given x): latent "z", plate "data" over the rows of x."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self(x))
