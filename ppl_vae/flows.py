"""Normalising flows of zuko as distributions of Pyro."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions import Distribution

from ppl_vae.contents import writes

__all__ = ["FlowDistribution", "inverse_autoregressive", "masked_autoregressive", "neural_spline"]


class FlowDistribution(TorchDistribution):
    """The distribution of `z = mu + sigma u`, `log p(z) = log p_u((z - mu) / sigma) - sum_i log sigma_i`, u of a flow.

    A draw knows its own log-density, gradient included: where the flow is fast one way only, scoring it again costs
    nothing. That of other values, of a detached draw and of one that torch has written to, goes through the flow.

    Args:
        flow: A distribution of zuko, with `rsample_and_log_prob`: p_u.
        loc: mu, (..., latent_dim).
        scale: sigma > 0, (..., latent_dim).

    Example:
        >>> flow = masked_autoregressive(2, 3, [8], 1)
        >>> p = FlowDistribution(flow(torch.zeros(5, 3)), torch.zeros(5, 2), torch.ones(5, 2))
        >>> z = p.rsample((4,))
        >>> torch.allclose(p.log_prob(z), p.log_prob(z.clone()), atol=1e-4)
        True
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (the form of torch)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: Any, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self._flow, self._loc, self._scale = flow, loc, scale
        self._draw: Tensor | None = None
        self._writes_at_draw: int | None = None
        self._log_prob_of_draw: Tensor | None = None
        super().__init__(flow.batch_shape, flow.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> FlowDistribution:
        """Return the same distribution for every entry of a larger batch."""
        return FlowDistribution(self._flow.expand(batch_shape), self._loc, self._scale, self._validate_args)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (immutable)
        """Draw z, reparametrised."""
        u, log_prob = self._flow.rsample_and_log_prob(sample_shape)
        self._draw, self._log_prob_of_draw = self._loc + self._scale * u, log_prob - self._scale.log().sum(-1)
        self._writes_at_draw = writes(self._draw)
        return self._draw

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value) in nats."""
        unchanged = value is self._draw and writes(value) is not None and writes(value) == self._writes_at_draw
        known = self._log_prob_of_draw if unchanged else None
        # A draw made without gradients does not know how its density depends on the parameters.
        if known is not None and (known.requires_grad or not torch.is_grad_enabled()):
            return known
        if self._validate_args:
            self._validate_sample(value)
        return self._flow.log_prob((value - self._loc) / self._scale) - self._scale.log().sum(-1)


def masked_autoregressive(dim: int, context_dim: int, hidden: Sequence[int], num_flows: int) -> nn.Module:
    """Make a flow `u_i = mu_i(u_<i, h) + sigma_i(u_<i, h) e_i`: densities in one pass, draws in `dim`.

    Like the other flows here it starts at u = e, whatever h.

    Args:
        dim: Dimension of u and e.
        context_dim: Dimension of the context h; 0 for none.
        hidden: Width of each hidden layer of the masked networks.
        num_flows: How many such maps follow one another, each with the order of the coordinates reversed.

    Raises:
        ImportError: zuko is not installed.

    Reference:
        Papamakarios, Pavlakou and Murray (2017), Masked Autoregressive Flow for Density Estimation.
    """
    return _at_identity(_zuko().flows.MAF(dim, context_dim, transforms=num_flows, hidden_features=tuple(hidden)))


def inverse_autoregressive(dim: int, context_dim: int, hidden: Sequence[int], num_flows: int) -> nn.Module:
    """Make a flow `u_i = mu_i(e_<i, h) + sigma_i(e_<i, h) e_i`: draws and their densities in one pass, others in `dim`.

    The arguments are those of `masked_autoregressive`.

    Reference:
        Kingma et al. (2016), Improving Variational Inference with Inverse Autoregressive Flow.
    """
    masked: Any = masked_autoregressive(dim, context_dim, hidden, num_flows)
    return _zuko().lazy.Flow(masked.transform.inv, masked.base)


def neural_spline(dim: int, context_dim: int, hidden: Sequence[int], num_flows: int) -> nn.Module:
    """Make a flow of coupling layers with rational-quadratic splines on [-5, 5]: densities in one pass, draws in three.

    The arguments are those of `masked_autoregressive`.

    Reference:
        Durkan, Bekasov, Murray and Papamakarios (2019), Neural Spline Flows.
    """
    options = {"passes": 2, "transforms": num_flows, "hidden_features": tuple(hidden)}
    return _at_identity(_zuko().flows.NSF(dim, context_dim, **options))


def _at_identity(flow: nn.Module) -> nn.Module:
    """Let the last layer of each network give zeros, so that u = e at the start.

    For one coordinate without a context zuko has no network, but parameters in a list.
    """
    for name, part in flow.named_modules():
        last = part[-1] if isinstance(part, nn.Sequential) and name.endswith(".hyper") else part
        if last is not part or isinstance(part, nn.ParameterList):
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
    return flow


def _zuko() -> ModuleType:
    """Import zuko, and keep torch's validation of arguments, which the import turns off for everybody."""
    validation = Distribution._validate_args
    try:
        import zuko
    except ImportError as error:
        raise ImportError('flows expected the package zuko, found none: pip install "ppl_vae[flows]"') from error
    finally:
        Distribution.set_default_validate_args(validation)
    return zuko
