"""The negative binomial distribution, by its mean and its dispersion."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

__all__ = ["NegativeBinomial"]

_LARGE = 16.0  # Stirling's series to the fifth order errs by less than 1e-11 from here on


class NegativeBinomial(TorchDistribution):
    """The distribution of counts with mean m and variance `m + d m^2`: Poissons of a gamma distributed mean.

    `log P(x) = x log m - (x + 1/d) log(1 + d m) - log x! + sum_{i < x} log(1 + d i)`. torch's distribution of this name
    takes differences of log-gamma functions of 1/d, which in single precision err by 1 nat at d = 1e-6.

    Args:
        loc: The mean m, in counts.
        dispersion: d, excess of the variance over the mean in units of the squared mean.

    Reference:
        Hilbe (2011), Negative Binomial Regression, on this parametrisation (NB2).

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
        shrunk = (value + 1 / self.dispersion) * torch.log1p(self.dispersion * self.loc)
        return value * self.loc.log() - shrunk - torch.lgamma(value + 1) + _log_rising(value, self.dispersion)

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


def _log_rising(x: Tensor, d: Tensor) -> Tensor:
    """`sum_{i < x} log(1 + d i) = log Gamma(r + x) - log Gamma(r) - x log r` with r = 1/d.

    For large r by Stirling's series, whose leading terms are subtracted on paper.
    """
    r = 1 / d
    small, large = r.clamp_max(_LARGE), r.clamp_min(_LARGE)
    by_gamma = torch.lgamma(small + x) - torch.lgamma(small) - x * small.log()
    by_series = (large + x - 0.5) * torch.log1p(x / large) - x + _stirling(large + x) - _stirling(large)
    return torch.where(r < _LARGE, by_gamma, by_series)


def _stirling(r: Tensor) -> Tensor:
    """`log Gamma(r) - (r - 1/2) log r + r - log(2 pi) / 2`."""
    return 1 / (12 * r) - 1 / (360 * r**3) + 1 / (1260 * r**5)
