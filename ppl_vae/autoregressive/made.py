"""A masked multilayer perceptron for vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

from ppl_vae.autoregressive.model import AutoregressiveModel
from ppl_vae.errors import PairError

__all__ = ["MADE"]


class MADE(AutoregressiveModel):
    """Masked autoencoder for distribution estimation: `p(x) = prod_i p(x_i given x_1 ... x_{i-1})` of a vector.

    Args:
        num_features: Entries of one datum, D >= 2.
        hidden: Width of each hidden layer, at least D, so that units of every degree exist.
        levels: L >= 2; entries are 0 .. L - 1.
        context_dim: Entries of what it is conditioned on, such as the dimension of z in a decoder; 0 for none.

    Raises:
        PairError: A width or a number of entries is too small.

    Reference:
        Germain, Gregor, Murray and Larochelle (2015), MADE: Masked Autoencoder for Distribution Estimation.

    Example:
        >>> made = MADE(4, [16])
        >>> made.sample(3).shape, made().log_prob(torch.zeros(3, 4)).shape
        (torch.Size([3, 4]), torch.Size([3]))
    """

    def __init__(self, num_features: int, hidden: Sequence[int], levels: int = 2, context_dim: int = 0) -> None:
        super().__init__((num_features,), levels, (context_dim,) if context_dim else ())
        if num_features < 2 or min(hidden, default=0) < num_features:
            raise PairError(
                f"MADE expected at least 2 features and hidden layers no narrower than them, found {num_features} "
                f"features and hidden layers {list(hidden)}: widen them"
            )
        self.network = ConditionalAutoRegressiveNN(
            num_features,
            context_dim,
            list(hidden),
            [1 if levels == 2 else levels],
            permutation=torch.arange(num_features),
            skip_connections=True,
            nonlinearity=nn.ReLU(),
        )

    def logits(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Logits of the entries of x (..., D), broadcast against context (..., context_dim)."""
        scaled = self.scaled(x)
        given = scaled.new_zeros(0) if context is None else context
        lead = torch.broadcast_shapes(x.shape[:-1], given.shape[:-1])
        features = self.network(scaled.expand(*lead, -1), given)
        return features if self.levels == 2 else features.movedim(-2, -1)
