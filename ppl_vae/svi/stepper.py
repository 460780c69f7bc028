"""Takes the steps of a fit, as written or compiled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.attributes import Change
from ppl_vae.belongings import Belongings
from ppl_vae.compile import CaptureError, Compiled, Payback, compile_function
from ppl_vae.diagnosis import NO_SITE, cannot_draw, explain_non_finite, fault_of_beta
from ppl_vae.distributed import Group
from ppl_vae.errors import PairError, is_of_programs, located
from ppl_vae.pair import Pair
from ppl_vae.rng import key, reseed
from ppl_vae.svi.feed import Feed, Serving
from ppl_vae.svi.gradient import LOSS, NORM, Gradient, Metrics, binarized
from ppl_vae.svi.guard import BadStep, Guard, NotFiniteError, OverflowedError
from ppl_vae.svi.joint import Joint
from ppl_vae.svi.moments import overflowed
from ppl_vae.svi.moving import Moving
from ppl_vae.svi.order import Order
from ppl_vae.svi.settings import FitSettings
from ppl_vae.svi.signals import Signals
from ppl_vae.svi.update import make_update, optimizers_in
from ppl_vae.svi.watch import Watch
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
        group: The processes of the fit.
    """

    def __init__(
        self,
        pair: Pair,
        rows: Rows,
        layout: Layout,
        settings: FitSettings,
        device: torch.device,
        compile: Literal["auto"] | bool,
        group: Group,
    ) -> None:
        self.pair, self.layout, self.settings, self.device = pair, layout, settings, device
        self.group = group
        if (begin := getattr(settings.objective, "begin", None)) is not None:
            begin(pair)
        self._watch = Watch(pair)
        self.parameters = self._watch.parameters
        if not self.parameters:
            raise PairError("expected parameters to train, found none in model or guide")
        order = Order(len(rows), settings.batch_size, settings.seed, on_disk=rows.mapped, group=group)
        self.feed = Feed(rows, order, device)
        self._usual = len(range(order.size(0))[group.share(order.size(0))])
        self.update = make_update(settings.optimizer, self.parameters, settings.learning_rate, optimizers_in(pair))
        self.moving = Moving(pair)
        self.rate = 1.0
        self.guard = Guard(device)
        self._may_be_late = self.guard.stalls and self.update.can_skip and settings.on_nonfinite != "skip"
        self.compiled: Compiled | None = None
        self._was_compiled = False  # by the process that this one goes on from
        self._reached: list[Tensor] = []
        self._payback, self._total = Payback(compile), settings.total_steps(len(rows))
        self._binarize = settings.binarize == "dynamic"
        clip_norm = settings.clip_norm if group.size == 1 else None
        self._gradient = Gradient(
            pair, settings.objective, layout, self.parameters, binarize=self._binarize, clip_norm=clip_norm
        )
        self._joint: Joint | None = None
        if group.size > 1:
            self._joint = Joint(group, self.parameters, self.moving, settings.clip_norm)

    def __call__(self, step: int, serving: Serving) -> Tensor:
        """Takes a step on some rows and returns its `Metrics`; all that it draws depends on (seed, step) alone.

        With several processes the rows are those of this process, what it draws depends on (seed, step, rank), and the
        step and its metrics are joint.

        Raises:
            NotFiniteError: The loss or its gradient is not finite; parameters and buffers are those before the step.
            OverflowedError: The update before has made parameters that are not finite.
        """
        self.moving.look()
        if self._may_be_late:
            self._decide_late()
        self.moving.remember()
        if self._joint is None:
            metrics, gradients = self._own(step, serving)
            self._take(step, metrics, gradients, self._gradient.reached, gradients)
            return metrics
        rows = len(serving.index)
        found, own = self._own(step, serving) if rows else (None, [])
        reached = self._gradient.reached if rows else []
        metrics, gradients = self._joint(rows / self.feed.order.size(step), found, reached, own)
        self._take(step, metrics, gradients, self._joint.reached, own)
        return metrics

    def _decide_late(self) -> None:
        """Lets a bad step be noticed late where steps move parameters alone: nothing else waits for the optimiser.

        Buffers are looked at before every step, what the programs keep after the first.
        """
        if not self.moving.steps:
            _ = self.values
        elif self.moving.some:
            self._may_be_late = self.guard.late = False
            if (bad_step := self.guard.poll()) is not None:
                raise self._not_finite(bad_step, ())
        elif self.moving.steps == 1:
            self._may_be_late = self.guard.late = not any(self.values.taken())

    def heed(self, signals: Signals) -> None:
        """Tells the other processes of signals that this one receives."""
        if self._joint is not None:
            self._joint.signals = signals

    def consult(self) -> None:
        """Learns, after the last step, of signals that processes have received since they took it."""
        if self._joint is not None:
            self._joint.vote()

    def is_finite(self) -> bool:
        """Whether parameters that train, and buffers that training moves, are finite."""
        return all(map(_is_finite, self.parameters)) and not self.moving.overflowed()

    def is_settled(self) -> bool:
        """Whether `settle` has nothing to say, as far as this process sees, which tells the others nothing."""
        return self.guard.poll() is None and self.is_finite() and not overflowed(self.update)

    def settle(self, step: int) -> None:
        """Gives all processes the buffers of the first, and makes sure that the next step can begin.

        All processes call it between the same two steps.

        Args:
            step: Steps done.

        Raises:
            NotFiniteError: A step was not finite that has not been noticed yet.
            OverflowedError: The last one was finite and led to parameters that are not, to such buffers or moments.
        """
        self.group.from_first([*self.pair.buffers()])
        bad_step = self.guard.poll()
        if bad_step is None and not all(map(_is_finite, self.parameters)):
            bad_step = step
        if bad_step is not None:
            raise self._not_finite(bad_step, ())
        if name := self.moving.overflowed():
            raise self._buffer_overflowed(step, name)
        if name := overflowed(self.update):
            reason = f"{name}, which the optimiser keeps, is not finite"
            raise self._overflowed(step, reason, "try a smaller learning_rate, clip_norm=..., or another optimizer")

    def finish(self, step: int) -> None:
        """Ends an epoch after some steps."""
        self.settle(step)
        self._watch.check()

    @cached_property
    def values(self) -> Belongings:
        """What the programs keep, as it was when first asked for: before the first step, by who keeps a fit."""
        return Belongings(self.pair)

    def compile_state(self) -> dict[str, Any]:
        """Whether steps run compiled, and what was decided of it, for `restore_compile_state` in another process."""
        return {"compiled": self.compiled is not None, "payback": self._payback.state()}

    def restore_compile_state(self, state: Mapping[str, Any]) -> None:
        """Compiles before the next step if the other process had: compiled steps round in another way."""
        if self.compiled is not None:
            return
        if state["compiled"]:
            self._payback, self._was_compiled = Payback(True), True
        else:
            self._payback.restore(state["payback"])

    def beta_at(self, step: int) -> float:
        """Weight of the rate at a step."""
        beta = self.settings.objective.beta
        return beta(step) if callable(beta) else beta

    def _factor(self, step: int) -> float:
        if self.settings.schedule is None:
            return 1.0
        factor: Any = self.settings.schedule(step)
        try:
            finite = math.isfinite(factor)
        except (TypeError, ValueError, RuntimeError):  # no number, or a tensor of several
            finite = False
        if not finite:
            raise ValueError(
                f"schedule: expected a finite factor of the learning rate, found {factor!r} at step {step + 1}"
            )
        return float(factor)

    def _own(self, step: int, serving: Serving) -> tuple[Tensor, list[Tensor]]:
        """Metrics and gradients of the rows of this process."""
        full = 0 < len(serving.index) == self._usual
        if full and self._payback.due(self._total - step):
            self._compile(step)
        arguments = self._arguments(step, serving)
        self._watch.check()
        if self.compiled is not None and (change := self.compiled.outdated()) is not None:
            self._give_up(change)
        reseed(self._key(step), self.device)
        with located(f"step {step + 1}, on {len(serving.index)} rows"):
            try:
                return self._gradients(arguments, full)
            except Exception as error:
                if is_of_programs(error) and self._cannot_draw(step):
                    self._gradient.reached = []
                    return torch.full((len(Metrics._fields),), math.nan), []
                raise

    def _gradients(self, arguments: Sequence[Tensor], full: bool) -> tuple[Tensor, list[Tensor]]:
        if full and self.compiled is not None:
            metrics, *gradients = self.compiled(*arguments)
            self._gradient.reached = self._reached
        else:
            with self._payback.watching():
                metrics, *gradients = self._gradient(*arguments)
        return metrics, gradients

    def _take(
        self, step: int, metrics: Tensor, gradients: Sequence[Tensor], reached: Sequence[Tensor], own: Sequence[Tensor]
    ) -> None:
        """Updates the parameters, unless a number is not finite; `own` are the gradients before they became joint."""
        bad_step = self.guard.check(metrics[LOSS], metrics[NORM], step)
        if bad_step is not None:
            raise self._not_finite(bad_step, own)
        if self.settings.schedule is not None or self.rate != 1.0:
            self.update.set_factor(self._factor(step) * self.rate)
        with located(f"step {step + 1}: the optimiser"):
            self.update(reached, gradients, self.guard.skip)

    def _arguments(self, step: int, serving: Serving) -> tuple[Tensor, ...]:
        return serving.index, torch.tensor(self.beta_at(step), dtype=torch.float64), *serving.arrays

    def _compile(self, step: int) -> None:
        order = self.feed.order
        first = [order.at(epoch * order.per_epoch) for epoch in range(2)]  # never the smaller batch that ends an epoch
        examples = [self._arguments(step + i, self.feed.serve(index)) for i, index in enumerate(first)]
        try:
            self.compiled = compile_function(self._gradient, examples, self.pair)
            self._reached = self._gradient.reached
        except CaptureError as error:
            other = ", and goes on not bit by bit as it would have" if self._was_compiled else ""
            warnings.warn(f"this fit runs uncompiled{other}: {error}", UserWarning, stacklevel=2)

    def _give_up(self, change: Change) -> None:
        """Goes on with the step as written."""
        self.compiled = None
        warnings.warn(
            f"this fit goes on uncompiled: {change.name!r}, which the programs can read, was {change.before} when they "
            f"were compiled and is {change.now} now; keep a number that changes in a tensor that is written in place",
            UserWarning,
            stacklevel=2,
        )

    def _key(self, step: int, rank: int | None = None) -> int:
        """Seed of all that a process draws in a step; this one if no other is named."""
        own = () if self._joint is None else (self.group.rank if rank is None else rank,)
        return key(self.settings.seed, step, *own)

    def _not_finite(self, step: int, gradients: Sequence[Tensor]) -> NotFiniteError:
        """What is wrong with a step, found out by all processes together."""
        self.moving.put_back()
        if step > 0 and (name := next(filter(None, self.group.texts(self.moving.overflowed(), self.device)), "")):
            return self._buffer_overflowed(step, name)
        reasons = self.group.texts(self._explain(step, gradients), self.device)
        self.moving.put_back()  # for the explanation has run the programs again
        blamed = [(rank, reason) for rank, reason in enumerate(reasons) if reason != NO_SITE]
        rank, reason = blamed[0] if blamed else (0, NO_SITE)
        if self._joint is not None:
            reason = f"process {rank}, on its rows: {reason}"
        mend = "try a smaller learning_rate, clip_norm=..., or a lower bound on scales"
        bad = self._bad_step(step, rank, reason)
        if step > 0 and not all(map(_is_finite, self.parameters)):
            return OverflowedError(
                f"step {step}: loss and gradient were finite, but the update has made parameters that are not: "
                f"{reason}. No checkpoint holds them, and those before the step are lost; {mend}",
                bad,
            )
        return NotFiniteError(
            f"step {step + 1}: the loss or its gradient is not finite: {reason}. Parameters and buffers are those "
            f"before the step; {mend}",
            bad,
        )

    def _buffer_overflowed(self, step: int, name: str) -> OverflowedError:
        reason = f"buffer {name!r}, which the programs move, is not finite"
        return self._overflowed(step, reason, "look for rows that are far from the others, or let no such number in")

    def _overflowed(self, step: int, reason: str, mend: str) -> OverflowedError:
        """A step was finite and has left something else than parameters that is not."""
        return OverflowedError(
            f"step {step}: loss, gradient and parameters are finite, but {reason}: no step after it would be one. "
            f"No checkpoint holds it; {mend}",
            self._bad_step(max(0, step - 1), 0, reason),
        )

    def _bad_step(self, step: int, rank: int, reason: str) -> BadStep:
        """The step as the process saw it that is to blame."""
        rows, batch = self._rows_of(step)
        own = {"rows": rows.cpu()} | {str(i): array.cpu() for i, array in enumerate(batch)}
        theirs = self.group.gather(own, self.device)[rank]
        arrays = tuple(theirs[str(i)] for i in range(len(batch)))
        return BadStep(step, rank, self._key(step, rank), self.beta_at(step), theirs["rows"], arrays, reason)

    def _explain(self, step: int, gradients: Sequence[Tensor]) -> str:
        """What is not finite on the rows of this process."""
        if told := fault_of_beta(self.beta_at(step)):
            return told
        for parameter, gradient in zip(self._gradient.reached, gradients, strict=False):
            parameter.grad = gradient
        index, batch = self._seen_in(step)
        if not len(index):
            return NO_SITE
        return explain_non_finite(self.pair, batch, index, self.layout, self.settings.objective)

    def _cannot_draw(self, step: int) -> bool:
        """Whether a step has failed since parameters that it draws from are NaN; a GPU is of no use after that."""
        if self.device.type != "cpu":
            return False
        self.moving.put_back()
        return cannot_draw(self.pair, self._seen_in(step)[1], self.layout, self.settings.objective)

    def _seen_in(self, step: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Positions of the rows of this process in a step, and what programs get of them, before all that they draw."""
        index, batch = self._rows_of(step)
        reseed(self._key(step), self.device)
        return index, (binarized(batch[0]), *batch[1:]) if self._binarize and len(index) else batch

    def _rows_of(self, step: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Positions of the rows of this process in a step, and the rows."""
        index = self.feed.order.at(step)
        return index, self.feed.rows.take(index.to(self.device), self.device)


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
