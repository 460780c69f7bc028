"""The distribution of a network whose every output depends on earlier entries alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NoReturn

import torch
from pyro.distributions import Bernoulli, Categorical, TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.errors import EstimateError
from ppl_vae.progress import Progress

__all__ = ["Autoregressive"]


class Autoregressive(TorchDistribution):
    r"""The distribution `p(x) = prod_i p(x_i given x_1 ... x_{i-1})` of binary entries, or of entries with L levels.

    Densities take one pass of the network, draws one pass for each of the D entries.

    Args:
        logits: Maps x (..., *event_shape) to the logits of its entries, of shape (..., *event_shape) for two levels and
            (..., *event_shape, L) for more; those of an entry may depend on earlier entries and on nothing else of x.
            It broadcasts x against what else it knows.
        levels: L; entries are 0 .. L - 1.
        event_shape: Shape of one datum.
        like: A tensor of the dtype and device that draws get.
        batch_shape: Shape of what the logits know beside x.
        order: Places of the entries in `x.flatten()`, first to last; None for their order there.

    Example:
        >>> def markov(x):  # x_i equals x_{i-1} with probability 3/4, x_1 is a fair coin
        ...     return torch.nn.functional.pad(2 * x[..., :-1] - 1, (1, 0)) * torch.tensor(3.0).log()
        >>> p = Autoregressive(markov, 2, (3,), torch.zeros(()))
        >>> p.log_prob(torch.tensor([1.0, 1.0, 0.0])).exp()
        tensor(0.0938)
    """

    has_rsample = False

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        levels: int,
        event_shape: Sequence[int],
        like: Tensor,
        batch_shape: Sequence[int] = (),
        order: Sequence[int] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._logits, self.levels, self._like = logits, levels, like
        self._order = range(prod(event_shape)) if order is None else order
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        """It has no parameters but those of its network."""
        return {}

    @property
    def support(self) -> constraints.Constraint:
        """The levels of every entry."""
        entry = constraints.boolean if self.levels == 2 else constraints.integer_interval(0, self.levels - 1)
        return constraints.independent(entry, len(self.event_shape))

    @property
    def mean(self) -> NoReturn:
        """It has no closed form."""
        raise EstimateError(
            "the mean of an autoregressive distribution: expected a closed form, found none, since each entry depends "
            "on those before it; draw from it (mean=False) and average the draws"
        )

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Autoregressive:
        """The same distribution for a larger batch."""
        return Autoregressive(
            self._logits, self.levels, self.event_shape, self._like, batch_shape, self._order, self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats of x (..., *event_shape), of any dtype, broadcast against the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.to(self._like.dtype)  # bytes wrap where they are doubled
        scores = self._entries(self._logits(value)).log_prob(value)
        log_prob = scores.flatten(scores.dim() - len(self.event_shape)).sum(-1)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw the entries one after another, from torch's generator, under a progress bar if somebody is looking."""
        x = self._like.new_zeros(self._extended_shape(torch.Size(sample_shape)))
        lead = x.dim() - len(self.event_shape)
        flat = x.flatten(lead)  # a view
        with Progress("sampling", len(self._order), enabled=True, unit="entries") as bar:
            for done, i in enumerate(self._order):
                logits = self._logits(x).flatten(lead, x.dim() - 1).select(lead, i)
                flat[..., i] = self._entries(logits).sample().to(x)
                if bar.due:
                    bar.update(done, "")
        return x

    def _entries(self, logits: Tensor) -> TorchDistribution:
        """Distributions of single entries."""
        kind = Bernoulli if self.levels == 2 else Categorical
        return kind(logits=logits, validate_args=False)
