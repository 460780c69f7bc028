"""What autoregressive models share: a distribution as decoder, a pair without latents, draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pyro
import torch
from torch import Tensor, nn

from ppl_vae.autoregressive.distribution import Autoregressive
from ppl_vae.drawing import as_event, evaluating, reading
from ppl_vae.errors import PairError
from ppl_vae.networks import event_sizes
from ppl_vae.options import whole_number

__all__ = ["AutoregressiveModel"]


class AutoregressiveModel(nn.Module, ABC):
    """A network whose outputs depend on earlier entries alone, as a pair without latents and as a decoder.

    Without a context it is the pair `p(x)`, whose log-likelihood is exact. With one it is a decoder: `forward(z)` is
    p(x given z).

    Args:
        event_shape: Shape of one datum, an integer for flat data.
        levels: L >= 2; entries are 0 .. L - 1.
        context_shape: Shape of one context, an integer for a vector; () for none.

    Raises:
        ValueError: The number of levels is not whole.
        PairError: A shape or the number of levels has no meaning, or it is run with a context that it lacks, or without
            one that it wants.
    """

    def __init__(self, event_shape: int | Sequence[int], levels: int, context_shape: int | Sequence[int] = ()) -> None:
        super().__init__()
        whole_number("levels", levels)
        if levels < 2:
            raise PairError(f"{type(self).__name__} expected at least 2 levels, found {levels}")
        self.event_shape, self.levels = event_sizes(event_shape), levels
        none = isinstance(context_shape, Sequence) and not context_shape
        self.context_shape = () if none else event_sizes(context_shape, "context_shape")

    @property
    def order(self) -> Sequence[int] | None:
        """Places of the entries in a flat datum, first to last; None for their order there."""
        return None

    @abstractmethod
    def logits(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Logits of the entries of x (..., *event_shape), broadcast against context (..., *context_shape).

        Returns:
            (..., *event_shape) for two levels, (..., *event_shape, L) for more.
        """

    def scaled(self, x: Tensor) -> Tensor:
        """Map levels 0 ... L - 1, of any dtype, to [-1, 1] in that of the parameters: bytes would wrap."""
        return 2 * x.to(next(self.parameters()).dtype) / (self.levels - 1) - 1

    def forward(self, context: Tensor | None = None) -> Autoregressive:
        """Return p(x given context): batch shape (...) of context (..., *context_shape), event shape `event_shape`."""
        dims = len(self.context_shape)
        found = () if context is None else tuple(context.shape[context.dim() - dims :] if dims else context.shape)
        if found != self.context_shape or (context is None) != (not dims):
            raise PairError(
                f"{type(self).__name__} expected a context of shape (..., {self.context_shape}) or none where that is "
                f"(), found {'none' if context is None else tuple(context.shape)}: build it with that context_shape"
            )
        batch_shape = () if context is None else context.shape[: context.dim() - dims]
        like = next(self.parameters())
        return Autoregressive(
            lambda x: self.logits(x, context), self.levels, self.event_shape, like, batch_shape, self.order
        )

    def model(self, x: Tensor) -> None:
        """Pyro program of p(x): observed "x", one plate "data" over the rows of x."""
        with pyro.plate("data", x.shape[0], dim=-1):
            likelihood = self()
            pyro.sample("x", likelihood, obs=as_event(x, likelihood))

    def guide(self, x: Tensor) -> None:
        """Pyro program of no latents."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pass

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log p(x) of x (N, *event) in nats, (N,).

        Raises:
            DataError: x is no tensor or array of levels, has no row, or rows of another shape.
        """
        p = self()
        with reading(self, x) as x:
            return p.log_prob(as_event(x, p))

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw n data (n, *event_shape), entry by entry; a function of the seed.

        Raises:
            ValueError: n is no whole number, or negative.
        """
        whole_number("n", n, least=0)
        with evaluating(self, seed):
            return self().sample((n,))
