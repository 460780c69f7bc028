"""The Poisson distribution of counts however large."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import broadcast_all

from ppl_vae.distributions.stirling import HALF_LOG_2PI, LARGE, log_ratio, stirling

__all__ = ["Poisson"]


class Poisson(dist.Poisson):
    """The distribution of counts with mean and variance m.

    `log P(x) = x log m - m - log x!`, from x = 16 on as `(x - m) - x log(x / m) - log(2 pi x) / 2 - s(x)` with s the
    rest of Stirling's series: torch subtracts numbers near x log x, which in single precision err by 1.7 nat at a
    million.

    Args:
        rate: The mean m, in counts.

    Reference:
        Loader (2000), Fast and Accurate Computation of Binomial Probabilities.

    Example:
        >>> round(float(Poisson(torch.tensor(1e6)).log_prob(torch.tensor(1e6))), 4)
        -7.8267
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log P(x)."""
        if self._validate_args:
            self._validate_sample(value)
        mean, value = broadcast_all(self.rate, value)
        few, many = value.clamp_max(LARGE), value.clamp_min(LARGE)
        of_few = few.xlogy(mean) - mean - torch.lgamma(few + 1)
        excess = many - mean
        deviance = many * log_ratio(many / mean, excess / mean) - excess
        of_many = -deviance - 0.5 * many.log() - HALF_LOG_2PI - stirling(many)
        return torch.where(value < LARGE, of_few, of_many)
