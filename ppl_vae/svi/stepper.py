"""Takes the steps of a fit, as written or compiled."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.compile import CaptureError, Compiled, Payback, compile_function
from ppl_vae.diagnosis import explain_non_finite
from ppl_vae.errors import EstimateError, PairError
from ppl_vae.pair import Pair
from ppl_vae.rng import key, reseed
from ppl_vae.svi.feed import Feed, Serving
from ppl_vae.svi.gradient import LOSS, NORM, Gradient, binarized
from ppl_vae.svi.guard import Guard
from ppl_vae.svi.order import Order
from ppl_vae.svi.settings import FitSettings
from ppl_vae.svi.update import make_update
from ppl_vae.tape import Layout

__all__ = ["Stepper"]


class Stepper:
    """All that a step needs and changes: parameters, optimiser, guard, and the gradient, compiled or not.

    Args:
        pair: The pair, in training mode, on its device.
        rows: The training data.
        layout: Layout of the pair.
        settings: Settings of the fit.
        device: Where the fit runs.
        compile: Whether to compile: at once, never, or once it pays.
    """

    def __init__(
        self,
        pair: Pair,
        rows: Rows,
        layout: Layout,
        settings: FitSettings,
        device: torch.device,
        compile: Literal["auto"] | bool,
    ) -> None:
        self.pair, self.layout, self.settings, self.device = pair, layout, settings, device
        self.parameters = [p for p in pair.parameters() if p.requires_grad]
        if not self.parameters:
            raise PairError("expected parameters to train, found none in model or guide")
        order = Order(len(rows), settings.batch_size, settings.seed, on_disk=rows.mapped)
        self.feed = Feed(rows, order, device)
        self.update = make_update(settings.optimizer, self.parameters, settings.learning_rate)
        self.guard = Guard(device, bool(self.update.optimizer.defaults.get("fused")))
        self.compiled: Compiled | None = None
        self._payback = Payback(compile, settings.total_steps(len(rows)))
        self._binarize = settings.binarize == "dynamic"
        self._gradient = Gradient(
            pair, settings.objective, layout, self.parameters, binarize=self._binarize, clip_norm=settings.clip_norm
        )

    def __call__(self, step: int, serving: Serving) -> Tensor:
        """Takes a step on some rows and returns its `Metrics`; all that it draws depends on (seed, step) alone."""
        full = len(serving.index) == self.settings.batch_size
        if full and self._payback.due(step):
            self._compile(step)
        arguments = self._arguments(step, serving)
        reseed(key(self.settings.seed, step), self.device)
        if full and self.compiled is not None:
            metrics, *gradients = self.compiled(*arguments)
        else:
            metrics, *gradients = self._gradient(*arguments)
        bad_step = self.guard.check(metrics[LOSS], metrics[NORM], step)
        if bad_step is not None:
            self._stop(bad_step, gradients)
        if self.settings.schedule is not None:
            self.update.set_factor(self.settings.schedule(step))
        self.update(self._gradient.reached, gradients, self.guard.skip)
        return metrics

    def finish(self) -> None:
        """Waits for the device, and raises if a step was not finite."""
        if (bad_step := self.guard.poll()) is not None:
            self._stop(bad_step, ())

    def beta_at(self, step: int) -> float:
        """Weight of the rate at a step."""
        beta = self.settings.objective.beta
        return beta(step) if callable(beta) else beta

    def _arguments(self, step: int, serving: Serving) -> tuple[Tensor, ...]:
        return serving.index, torch.tensor(self.beta_at(step), dtype=torch.float64), *serving.arrays

    def _compile(self, step: int) -> None:
        examples = [self._arguments(step + i, self.feed.serve(self.feed.order.at(i))) for i in range(2)]
        try:
            self.compiled = compile_function(self._gradient, examples, [*self.parameters, *self.pair.buffers()])
        except CaptureError as error:
            warnings.warn(f"this fit runs uncompiled: {error}", UserWarning, stacklevel=2)

    def _stop(self, step: int, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(self._gradient.reached, gradients, strict=False):
            parameter.grad = gradient
        batch = self.feed.rows.take(self.feed.order.at(step).to(self.device), self.device)
        reseed(key(self.settings.seed, step), self.device)
        if self._binarize:
            batch = (binarized(batch[0]), *batch[1:])
        reason = explain_non_finite(self.pair, batch, self.layout, self.settings.objective.num_particles)
        raise EstimateError(
            f"step {step + 1}: the loss or its gradient is not finite: {reason}. The parameters are those before "
            "the step; try a smaller learning_rate, clip_norm=..., or a lower bound on scales"
        )
