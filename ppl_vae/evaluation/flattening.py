"""A guide some of whose discrete numbers are put anywhere among their values: probes of what it hardly gives."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import Independent, MaskedDistribution, TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.tape import Site

__all__ = ["Flatten", "Flattened", "finite_numbers"]


def finite_numbers(site: Site) -> int:
    """How many numbers of a site (one-hot vectors are one) have finitely many values, the same at every row; or 0."""
    fn = _base(site["fn"])
    if not fn.has_enumerate_support:
        return 0
    try:
        fn.enumerate_support(expand=False)
    except NotImplementedError:
        return 0
    return fn.batch_shape.numel()


class Flattened(TorchDistribution):
    r"""(1 - e) q + e / V for each number of a distribution q over V values.

    Args:
        base: q.
        share: e.

    Example:
        >>> import pyro.distributions as dist
        >>> Flattened(dist.Bernoulli(torch.tensor(0.0)), 0.5).log_prob(torch.tensor(1.0)).exp()
        tensor(0.2500)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base: Any, share: float) -> None:
        self._base, self._share = base, torch.tensor(share, dtype=torch.float64)
        self._values = base.enumerate_support(expand=False).reshape(-1, *base.event_shape)
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """That of q."""
        return self._base.support

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws."""
        own = self._base.sample(torch.Size(sample_shape))
        shape = own.shape[: own.dim() - self.event_dim]
        moved = torch.rand(shape, device=own.device) < float(self._share)
        other = self._values[torch.randint(len(self._values), shape, device=own.device)]
        return torch.where(moved.reshape(shape + (1,) * self.event_dim), other, own)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each number."""
        own = self._base.log_prob(value)
        anywhere = (self._share / len(self._values)).log().to(own)
        return torch.logaddexp(own + torch.log1p(-self._share).to(own), anywhere)


class Flatten(Messenger):
    """Flattens the discrete sites of a guide; a site that depends on another is drawn given what came of that."""

    def __init__(self, names: Collection[str], share: float) -> None:
        super().__init__()
        self._names, self._share = names, share

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._names:
            msg["fn"] = _flattened(msg["fn"], self._share)


def _base(fn: Any) -> Any:
    while isinstance(fn, Independent | MaskedDistribution):
        fn = fn.base_dist
    return fn


def _flattened(fn: Any, share: float) -> Any:
    if isinstance(fn, Independent):
        return Independent(_flattened(fn.base_dist, share), fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution):
        return MaskedDistribution(_flattened(fn.base_dist, share), fn._mask)
    return Flattened(fn, share)
