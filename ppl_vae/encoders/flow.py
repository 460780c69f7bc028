"""Encoders whose density is a normalising flow (zuko, the extra "flows") conditioned on features of x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from torch import Tensor, nn

from ppl_vae import flows
from ppl_vae.encoders.features import split
from ppl_vae.flows import FlowDistribution
from ppl_vae.networks import MLP, Activation, positive
from ppl_vae.options import whole_number

__all__ = ["InverseAutoregressive", "MaskedAutoregressive", "NeuralSpline"]

_HIDDEN = (64, 64)


class _Flow(nn.Module):
    """`z = mu(x) + sigma(x) u`, with u of a flow that sees the context h(x)."""

    _make: ClassVar[staticmethod[[int, int, Sequence[int], int], nn.Module]]

    def __init__(
        self,
        network: nn.Module,
        latent_dim: int,
        context_dim: int,
        flow_hidden: Sequence[int] = _HIDDEN,
        num_flows: int = 2,
    ) -> None:
        super().__init__()
        whole_number("context_dim", context_dim, least=0)
        whole_number("num_flows", num_flows, least=1)
        whole_number("latent_dim", latent_dim, least=1)
        self.network, self.latent_dim, self.context_dim = network, latent_dim, context_dim
        self.flow = self._make(latent_dim, context_dim, flow_hidden, num_flows)

    @classmethod
    def mlp(
        cls,
        in_features: int,
        hidden: Sequence[int],
        latent_dim: int,
        context_dim: int = 32,
        flow_hidden: Sequence[int] = _HIDDEN,
        num_flows: int = 2,
        activation: Activation = nn.Tanh,
    ) -> Self:
        """Build the encoder on an `MLP` with the right number of output features."""
        whole_number("latent_dim", latent_dim, least=1)
        whole_number("context_dim", context_dim, least=0)
        network = MLP(in_features, hidden, 2 * latent_dim + context_dim, activation)
        return cls(network, latent_dim, context_dim, flow_hidden, num_flows)

    def forward(self, x: Tensor) -> FlowDistribution:
        """Return q(z given x): batch shape (N,), event shape (latent_dim,)."""
        loc, raw_scale, context = split(self.network(x), [self.latent_dim, self.latent_dim, self.context_dim])
        flow = self.flow(context) if self.context_dim else self.flow().expand(loc.shape[:-1])
        return FlowDistribution(flow, loc, positive(raw_scale))


class InverseAutoregressive(_Flow):
    """The encoder `z = mu(x) + sigma(x) u` with u of an inverse autoregressive flow that sees h(x).

    Draws and their densities cost one pass through each masked network; the densities of other values, and with them
    the gradients "stl", "dreg" and "score", cost latent_dim passes. All flow encoders start as `DiagonalNormal`.

    Args:
        network: Maps x to 2 latent_dim + context_dim features: mu(x), sigma(x) before the softplus, and h(x).
        latent_dim: Dimension of z.
        context_dim: Dimension of h(x); 0 leaves mu(x) and sigma(x) alone to depend on x.
        flow_hidden: Width of each hidden layer of the masked networks.
        num_flows: How many maps follow one another, each with the order of the coordinates reversed.

    Raises:
        PairError: The network gives another number of features.
        ValueError: latent_dim or num_flows is no whole number of at least 1, or context_dim none of at least 0.
        ImportError: zuko is not installed.

    Reference:
        Kingma et al. (2016), Improving Variational Inference with Inverse Autoregressive Flow; there mu and sigma come
        first, here last, which gives the same family.

    Example:
        >>> import torch
        >>> q = InverseAutoregressive.mlp(784, [200, 200], 10)(torch.zeros(32, 784))
        >>> q.batch_shape, q.event_shape
        (torch.Size([32]), torch.Size([10]))
    """

    _make = staticmethod(flows.inverse_autoregressive)


class MaskedAutoregressive(_Flow):
    """The encoder `z = mu(x) + sigma(x) u` with u of a masked autoregressive flow that sees h(x).

    Densities of any value cost one pass through each masked network, draws latent_dim passes: where draws are what
    costs, as in training, `InverseAutoregressive` is the faster one. Arguments and errors are the same.

    Reference:
        Papamakarios, Pavlakou and Murray (2017), Masked Autoregressive Flow for Density Estimation.

    Example:
        >>> import torch
        >>> MaskedAutoregressive.mlp(784, [200, 200], 3)(torch.zeros(32, 784)).sample().shape
        torch.Size([32, 3])
    """

    _make = staticmethod(flows.masked_autoregressive)


class NeuralSpline(_Flow):
    """The encoder `z = mu(x) + sigma(x) u` with u of a neural spline flow that sees h(x).

    Coupling layers whose halves are transformed by rational-quadratic splines of 8 bins on [-5, 5], the identity
    outside: a draw with its density costs three passes through each network, the density of any value one. Arguments
    and errors are those of `InverseAutoregressive`.

    Reference:
        Durkan, Bekasov, Murray and Papamakarios (2019), Neural Spline Flows.

    Example:
        >>> import torch
        >>> NeuralSpline.mlp(784, [200, 200], 10)(torch.zeros(32, 784)).sample().shape
        torch.Size([32, 10])
    """

    _make = staticmethod(flows.neural_spline)
