"""One step of a fit up to the update, as a function of tensors: run as it is, or captured and compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.errors import PairError, PplVaeError
from ppl_vae.objectives import Objective
from ppl_vae.pair import Pair
from ppl_vae.tape import Layout

__all__ = ["LOSS", "NORM", "Gradient", "Metrics", "binarized"]


class Metrics(NamedTuple):
    """What a step says of itself, in nats per datum; stacked in this order where it has to be one tensor."""

    loss: float
    """What was minimised."""
    objective: float
    """What is trained, to be maximised."""
    elbo: float
    """The true ELBO."""
    distortion: float
    """-E log p(x given z)."""
    rate: float
    """KL(q, prior)."""
    norm: float
    """Norm of the whole gradient before clipping."""


LOSS, NORM = Metrics._fields.index("loss"), Metrics._fields.index("norm")


class Gradient:
    """The gradient of an objective on some rows: `gradient(index, beta, *arrays)` gives metrics, then gradients.

    Rows are gathered, made binary and scored here, so that nothing of it is left to Python once this is compiled.

    Args:
        pair: The pair.
        objective: What is maximised.
        layout: Layout of the pair.
        parameters: What trains; those that the objective does not reach get no gradient.
        binarize: Whether to draw binary data from the first array.
        clip_norm: Largest norm of the whole gradient, or None.
    """

    def __init__(
        self,
        pair: Pair,
        objective: Objective,
        layout: Layout,
        parameters: Sequence[Tensor],
        *,
        binarize: bool,
        clip_norm: float | None,
    ) -> None:
        self._pair, self._objective, self._layout, self._parameters = pair, objective, layout, parameters
        self._binarize, self._clip_norm = binarize, clip_norm
        self.reached: list[Tensor] = []

    def __call__(self, index: Tensor, beta: Tensor, *arrays: Tensor) -> tuple[Tensor, ...]:
        """Metrics, stacked, and the gradient of each of the parameters in `reached`."""
        batch = tuple(array.index_select(0, index) for array in arrays)
        if self._binarize:
            batch = (binarized(batch[0]), *batch[1:])
        values = self._objective.evaluate(self._pair, batch, self._layout, beta)
        if not values.loss.requires_grad:
            raise self._nothing_reached()
        found: tuple[Tensor | None, ...] = torch.autograd.grad(values.loss, self._parameters, allow_unused=True)
        gradients = [g for g in found if g is not None]
        if not gradients:
            raise self._nothing_reached()
        if not self.reached:
            self._refuse_sparse(found)
        self.reached = [p for p, g in zip(self._parameters, found, strict=True) if g is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        if self._clip_norm is not None:
            factor = (self._clip_norm / (norm + 1e-6)).clamp_max(1.0)
            gradients = [g * factor.to(g.dtype) for g in gradients]
        return (torch.stack([values.loss.detach(), *values[1:], norm]), *gradients)

    def _nothing_reached(self) -> PairError:
        return PairError(
            f"expected a loss that depends on parameters to train, found that it reaches none of the "
            f"{len(self._parameters)} with requires_grad=True, such as {self._name(self._parameters[0])!r}; call "
            "requires_grad_(True) on those that the programs use"
        )

    def _refuse_sparse(self, found: Sequence[Tensor | None]) -> None:
        """Norm, clipping and the default optimiser are for dense gradients; looked at once."""
        for parameter, gradient in zip(self._parameters, found, strict=True):
            if gradient is not None and gradient.layout != torch.strided:
                raise PairError(
                    f"parameter {self._name(parameter)!r}: expected a dense gradient, found a sparse one; make the "
                    "embedding with sparse=False"
                )

    def _name(self, parameter: Tensor) -> str:
        return next((name for name, p in self._pair.named_parameters() if p is parameter), "no longer in the pair")


def check_gradients_enabled() -> None:
    """Refuses to train where gradients are switched off outside.

    Raises:
        PplVaeError: They are.
    """
    if not torch.is_grad_enabled():
        raise PplVaeError(
            "expected gradients to train by, found them switched off where this is called: call it outside of "
            "torch.no_grad(), torch.inference_mode() and torch.set_grad_enabled(False)"
        )


def binarized(probabilities: Tensor) -> Tensor:
    """Binary data drawn from probabilities; torch.bernoulli takes three times as long."""
    return (torch.rand_like(probabilities) < probabilities).to(probabilities.dtype)
