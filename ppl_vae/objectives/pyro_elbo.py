"""Between this library and `pyro.infer`: its ELBOs in our loop, our beta in its SVI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.infer
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_vae.objectives.base import Values
from ppl_vae.options import finite_number
from ppl_vae.pair import Pair, Program
from ppl_vae.tape import Batch, Layout

__all__ = ["FromPyro", "from_pyro", "scale_latents"]

_REFUSED = {
    "ReweightedWakeSleep": "its two losses need two optimisers; use IWAE(gradient='dreg')",
    "EnergyDistance": "it is no bound on log p(x)",
    "TraceTailAdaptive_ELBO": "its weights join all data of a batch; use Renyi(...)",
    "JitTrace_ELBO": "its TorchScript keeps parameters as constants; use Trace_ELBO()",
    "JitTraceMeanField_ELBO": "its TorchScript keeps parameters as constants; use TraceMeanField_ELBO()",
    "JitTraceEnum_ELBO": "its TorchScript keeps parameters as constants; use TraceEnum_ELBO()",
    "JitTraceGraph_ELBO": "its TorchScript keeps parameters as constants; use TraceGraph_ELBO()",
}
_PLAIN_ELBOS = (
    pyro.infer.Trace_ELBO,
    pyro.infer.TraceMeanField_ELBO,
    pyro.infer.TraceEnum_ELBO,
    pyro.infer.TraceGraph_ELBO,
)


@dataclass(frozen=True)
class FromPyro:
    """An ELBO of `pyro.infer` as an objective of `fit`; made by `from_pyro`."""

    elbo: Any
    num_particles: int = 1

    @property
    def beta(self) -> float:
        """Pyro's objectives have no beta of their own."""
        return 1.0

    def evaluate(self, pair: Pair, batch: Batch, layout: Layout, beta: Tensor | float) -> Values:
        """Runs Pyro's own objective; distortion and rate are NaN, the true ELBO too unless the objective is one."""
        full_size = layout.full_size or len(batch[0])
        total = self._loss(pair, batch)
        loss = total / full_size
        unknown = torch.full((), torch.nan, device=loss.device)
        is_elbo = type(self.elbo) in _PLAIN_ELBOS and not layout.rescaled
        objective = -loss.detach()
        return Values(loss, objective, objective if is_elbo else unknown, unknown, unknown)

    def judge(self) -> FromPyro:
        """Pyro's objective itself."""
        return self

    def _loss(self, pair: Pair, batch: Batch) -> Tensor:
        with pair.scope(*batch):
            if not torch.is_grad_enabled():
                return torch.as_tensor(self.elbo.loss(pair.model, pair.guide, *batch))
            if hasattr(self.elbo, "differentiable_loss"):
                return torch.as_tensor(self.elbo.differentiable_loss(pair.model, pair.guide, *batch))
            return _loss_with_gradients(self.elbo, pair, batch)


def from_pyro(elbo: Any) -> FromPyro:
    """Lets any `pyro.infer` ELBO (Trace, TraceMeanField, TraceEnum, TraceGraph, TraceTMC, Renyi, ...) train in `fit`.

    Raises:
        ValueError: For what is not a bound with one loss: wake-sleep, energy distance, tail-adaptive, TorchScript, and
            for a class.

    Example:
        >>> from pyro.infer import TraceEnum_ELBO
        >>> from_pyro(TraceEnum_ELBO(max_plate_nesting=1)).num_particles
        1
    """
    given = elbo if isinstance(elbo, type) else type(elbo)
    for family in given.__mro__:
        if (reason := _REFUSED.get(family.__name__)) is not None:
            raise ValueError(f"from_pyro: {family.__name__} cannot train in fit: {reason}")
    if isinstance(elbo, type) or not hasattr(elbo, "loss_and_grads"):
        found = f"the class {elbo.__name__}: call it" if isinstance(elbo, type) else repr(elbo)
        raise ValueError(f"from_pyro: expected an ELBO of pyro.infer such as Trace_ELBO(), found {found}")
    return FromPyro(elbo, int(getattr(elbo, "num_particles", 1)))


def scale_latents(program: Program, beta: float) -> Callable[..., Any]:
    """Wraps a Pyro program so that its latent sites are scaled by beta.

    Applied to model *and* guide, plain `pyro.infer.SVI` with `Trace_ELBO` trains the beta-VAE objective
    E_q log p(x given z) - beta KL, with the same gradients as `ELBO(beta=beta)`.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> program = scale_latents(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), beta=0.5)
        >>> pyro.poutine.trace(program).get_trace().nodes["z"]["scale"]
        0.5
    """
    finite_number("beta", beta, least=0)
    return _ScaleLatents(beta)(program)


class _ScaleLatents(Messenger):
    def __init__(self, beta: float) -> None:
        super().__init__()
        self._beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not isinstance(msg["fn"], _Subsample):
            msg["scale"] = msg["scale"] * self._beta


def _loss_with_gradients(elbo: Any, pair: Pair, batch: Batch) -> Tensor:
    """The loss of an objective that only knows how to call backward itself, as a tensor with the same gradient."""
    parameters = [p for p in pair.parameters() if p.requires_grad]
    saved = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    anchor = torch.zeros((), requires_grad=True)

    def guide(*args: Tensor) -> Any:
        pyro.param("_anchor", anchor)  # Pyro calls backward only if it sees some param statement.
        return pair.guide(*args)

    with _Anchor(anchor):
        value = elbo.loss_and_grads(pair.model, guide, *batch)
    linear = sum((p * p.grad).sum() for p in parameters if p.grad is not None)
    for p, grad in zip(parameters, saved, strict=True):
        p.grad = grad
    return value + (linear - linear.detach()) if isinstance(linear, Tensor) else torch.as_tensor(value)


class _Anchor(Messenger):
    def __init__(self, anchor: Tensor) -> None:
        super().__init__()
        self._anchor = anchor

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] == "_anchor":
            msg["value"], msg["done"] = self._anchor, True
