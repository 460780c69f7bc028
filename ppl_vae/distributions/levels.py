"""Distributions of ordered levels 0, 1, ..., L - 1."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from ppl_vae.options import whole_number

__all__ = ["CategoricalLevels", "DiscretizedLogistic"]

_AT_ONCE = 2**20  # numbers that a mean makes at once: 4 MiB, where all levels of many images would be gigabytes


class CategoricalLevels(dist.Categorical):
    """The categorical distribution of levels 0..L-1, which have a mean; draws are floating, as data are.

    Example:
        >>> CategoricalLevels(torch.tensor([0.25, 0.25, 0.5])).mean
        tensor(1.2500)
    """

    @property
    def mean(self) -> Tensor:
        """`sum_j j p_j`."""
        return self.probs @ torch.arange(self._num_events, dtype=self.probs.dtype, device=self.probs.device)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw levels."""
        return super().sample(torch.Size(sample_shape)).to(self._param.dtype)


class DiscretizedLogistic(TorchDistribution):
    """The level whose bin a logistic variable falls in, `P(k) = s((k + 1/2 - m) / b) - s((k - 1/2 - m) / b)`.

    s is the logistic function; the bins of the lowest and the highest level reach to infinity.

    Args:
        loc: The median m of the logistic variable, in levels.
        scale: Its scale b, in levels.
        num_levels: L, the number of levels.

    Reference:
        Salimans, Karpathy, Chen and Kingma (2017), PixelCNN++; Kingma et al. (2016), Improving Variational Inference
        with Inverse Autoregressive Flow.

    Example:
        >>> p = DiscretizedLogistic(torch.tensor(1.3), torch.tensor(0.7), num_levels=4)
        >>> float(p.log_prob(torch.arange(4)).exp().sum().round(decimals=4))
        1.0
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
    }

    def __init__(self, loc: Tensor, scale: Tensor, num_levels: int, validate_args: bool | None = None) -> None:
        whole_number("num_levels", num_levels, least=2)
        self.loc, self.scale = broadcast_all(loc, scale)
        self.num_levels = num_levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The levels."""
        return constraints.integer_interval(0, self.num_levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        """Return the same distribution with another batch shape."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return DiscretizedLogistic(loc, scale, self.num_levels, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log P(k).

        With `a` and `b` the lower and upper end of a bin, `s(b) - s(a) = s(b) s(-a) (1 - e^(a - b))`: no difference of
        numbers near 0 or 1 is taken, however far in the tails. An end at infinity leaves out its factor.
        """
        if self._validate_args:
            self._validate_sample(value)
        below = logsigmoid((value + 0.5 - self.loc) / self.scale)
        above = logsigmoid((self.loc - value + 0.5) / self.scale)
        width = (-torch.expm1(-1 / self.scale)).log()
        lowest, highest = value == 0, value == self.num_levels - 1
        inside = torch.where(lowest | highest, 0.0, width)
        return torch.where(highest, 0.0, below) + torch.where(lowest, 0.0, above) + inside

    @property
    def mean(self) -> Tensor:
        """`sum_k P(x > k)`."""
        ends = torch.arange(self.num_levels - 1, dtype=self.loc.dtype, device=self.loc.device) + 0.5
        loc, scale = self.loc.unsqueeze(-1), self.scale.unsqueeze(-1)
        mean = torch.zeros_like(self.loc)
        for some in ends.split(max(1, _AT_ONCE // max(1, self.loc.numel()))):
            mean = mean + torch.sigmoid((loc - some) / scale).sum(-1)
        return mean

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a logistic variable, and take its bin."""
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        return (self.loc + self.scale * torch.logit(u)).round().clamp(0, self.num_levels - 1)
