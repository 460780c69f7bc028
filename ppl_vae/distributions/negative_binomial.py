"""The negative binomial distribution, by its mean and its dispersion."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

from ppl_vae.distributions.stirling import HALF_LOG_2PI, LARGE, log_ratio, stirling

__all__ = ["NegativeBinomial"]


class NegativeBinomial(TorchDistribution):
    """The distribution of counts with mean m and variance `m + d m^2`: Poissons of a gamma distributed mean.

    `log P(x) = x log m - (x + 1/d) log(1 + d m) - log x! + sum_{i < x} log(1 + d i)`. torch's distribution of this name
    takes differences of log-gamma functions of 1/d and of x, which in single precision err by 1 nat at d = 1e-6 and
    at x = 1e6: here the leading terms of both are subtracted on paper.

    Args:
        loc: The mean m, in counts.
        dispersion: d, excess of the variance over the mean in units of the squared mean.

    Reference:
        Hilbe (2011), Negative Binomial Regression, on this parametrisation (NB2); Loader (2000), Fast and Accurate
        Computation of Binomial Probabilities.

    Example:
        >>> p = NegativeBinomial(torch.tensor(3.0), torch.tensor(0.5))
        >>> p.mean, p.variance
        (tensor(3.), tensor(7.5000))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.positive,
        "dispersion": constraints.positive,
    }
    support = constraints.nonnegative_integer

    def __init__(self, loc: Tensor, dispersion: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.dispersion = broadcast_all(loc, dispersion)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NegativeBinomial:
        """Return the same distribution with another batch shape."""
        loc, dispersion = self.loc.expand(batch_shape), self.dispersion.expand(batch_shape)
        return NegativeBinomial(loc, dispersion, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log P(x)."""
        if self._validate_args:
            self._validate_sample(value)
        of_few = _of_few(value.clamp_max(LARGE), self.loc, self.dispersion)
        of_many = _of_many(value.clamp_min(LARGE), self.loc, 1 / self.dispersion)
        return torch.where(value < LARGE, of_few, of_many)

    @property
    def mean(self) -> Tensor:
        """m."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """`m + d m^2`."""
        return self.loc + self.dispersion * self.loc.square()

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a rate from the gamma distribution of mean m and variance d m^2, then a count from Poisson's."""
        shape = self._extended_shape(sample_shape)
        rate = self.loc * self.dispersion * torch._standard_gamma((1 / self.dispersion).expand(shape))
        return torch.poisson(rate)


def _of_few(x: Tensor, m: Tensor, d: Tensor) -> Tensor:
    """log P(x), by the formula."""
    return x * m.log() - (x + 1 / d) * torch.log1p(d * m) - torch.lgamma(x + 1) + _log_rising(x, d)


def _of_many(x: Tensor, m: Tensor, r: Tensor) -> Tensor:
    """log P(x) of x >= LARGE, with r = 1/d and n = x + r.

    `x log(n m / (x (r + m))) + r log(r / (r + m)) + (r - 1/2) log n - log(x) / 2 - r + s(n) - s(x) - log Gamma(r)`,
    where s is the rest of Stirling's series.
    """
    small, large = r.clamp_max(LARGE), r.clamp_min(LARGE)
    count = x * log_ratio((1 + r / x) * (m / (r + m)), r / (r + m) * (m - x) / x)
    few_shares = small * torch.log(small * (x + small) / (small + m)) - 0.5 * torch.log(x * (x + small)) - small
    by_gamma = few_shares - torch.lgamma(small)
    spread = 0.5 * torch.log(x * (1 + x / large)) + HALF_LOG_2PI + stirling(large)
    by_series = large * log_ratio((x + large) / (large + m), (x - m) / (large + m)) - spread
    return count + torch.where(r < LARGE, by_gamma, by_series) + stirling(x + r) - stirling(x)


def _log_rising(x: Tensor, d: Tensor) -> Tensor:
    """`sum_{i < x} log(1 + d i) = log Gamma(r + x) - log Gamma(r) - x log r` with r = 1/d.

    For large r by Stirling's series, whose leading terms are subtracted on paper.
    """
    r = 1 / d
    small, large = r.clamp_max(LARGE), r.clamp_min(LARGE)
    by_gamma = torch.lgamma(small + x) - torch.lgamma(small) - x * small.log()
    by_series = (large + x - 0.5) * torch.log1p(x / large) - x + stirling(large + x) - stirling(large)
    return torch.where(r < LARGE, by_gamma, by_series)
