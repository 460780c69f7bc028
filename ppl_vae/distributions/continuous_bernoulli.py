"""The continuous Bernoulli distribution, by its logit."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["ContinuousBernoulli"]

_SMALL = 0.2  # below it the series are exact to 1e-10, above it the formulas are


class ContinuousBernoulli(TorchDistribution):
    """The distribution `p(x) = a e^(a x) / (e^a - 1)` of a number in [0, 1], with `a` the logit.

    torch's distribution of this name normalises with a probability clipped to [eps, 1 - eps]: in single precision it
    stops integrating to 1 from a logit of 16 on, which pixels near 0 or 1 pass.

    Args:
        logits: The logit a, any real number; 0 is the uniform distribution.

    Reference:
        Loaiza-Ganem and Cunningham (2019), The Continuous Bernoulli: Fixing a Pervasive Error in Variational
        Autoencoders.

    Example:
        >>> ContinuousBernoulli(torch.tensor([0.0, 100.0])).log_prob(torch.ones(2))
        tensor([0.0000, 4.6052])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"logits": constraints.real}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        """Return the same distribution with another batch shape."""
        return ContinuousBernoulli(self.logits.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x); from the nearer end of [0, 1], where nothing cancels."""
        if self._validate_args:
            self._validate_sample(value)
        a = self.logits
        size, small = _away_from_zero(a).abs(), a.clamp(-_SMALL, _SMALL)  # powers of a large one overflow
        near = a * (value - 0.5) - small.square() / 24 + small**4 / 2880 - small**6 / 181440
        far = (size / -torch.expm1(-size)).log() - size * torch.where(a > 0, 1 - value, value)
        return torch.where(a.abs() < _SMALL, near, far)

    @property
    def mean(self) -> Tensor:
        """`1 / (1 - e^-a) - 1 / a`."""
        a, far = self.logits.clamp(-_SMALL, _SMALL), _away_from_zero(self.logits)
        near = 0.5 + a / 12 - a**3 / 720 + a**5 / 30240
        return torch.where(self.logits.abs() < _SMALL, near, -1 / torch.expm1(-far) - 1 / far)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by the inverse of the distribution function."""
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        size = self.logits.abs().clamp_min(1e-6)
        from_end = (-torch.log1p(u * torch.expm1(-size)) / size).clamp(0, 1)
        return torch.where(self.logits > 0, 1 - from_end, from_end)


def _away_from_zero(a: Tensor) -> Tensor:
    """The logit where the formula is taken, elsewhere a number that keeps its gradient finite."""
    return torch.where(a.abs() < _SMALL, 1.0, a)
