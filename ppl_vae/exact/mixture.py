"""The density of a Gaussian mixture, and the Pyro programs of the mixture and of its exact posterior."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Categorical, TorchDistribution, constraints
from torch import Tensor, nn

__all__ = ["Component", "Mixture", "MixturePair"]

LOG_2PI = 1.8378770664093453
# 1 MB of float64: large enough for the matrix products, small enough for the cache of one core.
BLOCK_ELEMENTS = 1 << 17


class Mixture(NamedTuple):
    """The mixture sum_c pi_c N(x; mu_c, L_c L_c^T) of C components in D dimensions, ready to be evaluated."""

    log_weights: Tensor
    """log pi, shape (C,), normalised; -inf is a component that is never drawn."""
    means: Tensor
    """mu, shape (C, D)."""
    root: Tensor
    """L: lower triangles (C or 1, D, D), or standard deviations (C, D or 1)."""

    def blocks(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split rows (N, D) so that one block costs a fixed memory, whatever N."""
        if torch.is_grad_enabled() and self.means.requires_grad:
            return (x,)  # the gradient keeps every block anyway, and one block can be captured for any N
        return x.split(max(1, BLOCK_ELEMENTS // self.means.numel()))

    def component_log_prob(self, x: Tensor) -> Tensor:
        """Return log N(x; mu_c, L_c L_c^T) of data (..., D) under every component: (..., C), in nats."""
        table = torch.cat([self._table(block) for block in self.blocks(x.reshape(-1, x.shape[-1]))])
        return table.reshape(*x.shape[:-1], -1)

    def log_joint(self, x: Tensor) -> Tensor:
        """Return log p(x, z = c) of data (..., D) for every c: (..., C), in nats."""
        return self.log_weights + self.component_log_prob(x)

    def colour(self, z: Tensor, noise: Tensor) -> Tensor:
        """Map standard normal noise (..., D) to draws mu_z + L_z noise, without a matrix for each draw."""
        x = torch.empty_like(noise)
        roots = self.root.expand(len(self.means), *self.root.shape[1:])
        for c, (mean, root) in enumerate(zip(self.means, roots, strict=True)):
            drawn = z == c
            x[drawn] = mean + (noise[drawn] @ root.mT if root.ndim == 2 else noise[drawn] * root)
        return x

    @property
    def log_det(self) -> Tensor:
        """log det L, half that of the covariance, shape (C or 1,), in nats."""
        diagonal = self.root.diagonal(dim1=-2, dim2=-1) if self.root.ndim == 3 else self.root.expand_as(self.means)
        return diagonal.log().sum(-1)

    def _table(self, x: Tensor) -> Tensor:
        difference = x - self.means.unsqueeze(1)
        if self.root.ndim == 3:
            white = torch.linalg.solve_triangular(self.root, difference.mT, upper=False).mT
        else:
            white = difference / self.root.unsqueeze(1)
        return -0.5 * (white.square().sum(-1).T + x.shape[-1] * LOG_2PI) - self.log_det


class Component(TorchDistribution):
    """The normal distribution of component z, for an index z of any shape.

    The (N, C) table of log-densities of the data is computed once and looked up by z, so that K particles of N data
    cost K N numbers and no covariance for each.

    Args:
        mixture: The mixture whose components these are.
        z: Component of each draw, integers in [0, C), any shape; it is the batch shape.
        validate_args: As in every Pyro distribution.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (the contract of torch.distributions)
    support = constraints.real_vector

    def __init__(self, mixture: Mixture, z: Tensor, validate_args: bool | None = None) -> None:
        self.mixture, self.z = mixture, z
        super().__init__(z.shape, mixture.means.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Component:
        """Return the distribution with z broadcast to `batch_shape`."""
        return Component(self.mixture, self.z.expand(batch_shape), validate_args=False)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        """Draw x, shape sample_shape + z.shape + (D,)."""
        z, means = self.z.expand(*sample_shape, *self.z.shape), self.mixture.means
        with torch.no_grad():
            noise = torch.randn(*z.shape, *self.event_shape, dtype=means.dtype, device=means.device)
            return self.mixture.colour(z, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value given z) in nats, in the broadcast shape of z and of the value's batch."""
        if self._validate_args:
            self._validate_sample(value)
        table = self.mixture.component_log_prob(value.to(self.mixture.means))
        shape = torch.broadcast_shapes(self.z.shape, table.shape[:-1])
        own = shape[len(shape) - (table.ndim - 1) :]
        # Axes that only z has go last: the gather, and its gradient, then never repeat the table along them.
        particles = self.z.expand(shape).reshape(-1, *own).movedim(0, -1)
        return table.expand(*own, -1).gather(-1, particles).movedim(-1, 0).reshape(shape)


class MixturePair(nn.Module):
    """The pair of a mixture and its exact posterior, whose parameters a subclass has."""

    @abstractmethod
    def mixture(self) -> Mixture:
        """The mixture of the current parameters."""

    def model(self, x: Tensor) -> None:
        """Pyro program of p(x, z): latent "z" in {0, ..., C - 1}, observed "x", plate "data" over the rows of x.

        "z" is enumerated under `TraceEnum_ELBO`.
        """
        mixture = self.mixture()
        with pyro.plate("data", x.shape[0], dim=-1):
            prior = Categorical(logits=mixture.log_weights)
            z = pyro.sample("z", prior, infer={"enumerate": "parallel"})
            pyro.sample("x", Component(mixture, z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Pyro program of the exact posterior p(z given x) of the current parameters."""
        mixture = self.mixture()
        with pyro.plate("data", x.shape[0], dim=-1):
            posterior = Categorical(logits=mixture.log_joint(x.to(mixture.means)))
            pyro.sample("z", posterior, infer={"enumerate": "parallel"})
