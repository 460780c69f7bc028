"""The update of the parameters by a torch optimiser."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.belongings import Belongings
from ppl_vae.errors import StorageError, first_line
from ppl_vae.holders import reached
from ppl_vae.svi.settings import OptimizerFactory

__all__ = ["Adam", "Update", "laid_out", "make_update", "optimizers_in"]


class Update:
    """Hands gradients to a torch optimiser, at the learning rate it was made with times a factor.

    Args:
        optimizer: The optimiser.
        others: Optimisers that the programs keep: the steps of these are theirs, and the states are kept with the rest.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, others: Iterable[torch.optim.Optimizer] = ()) -> None:
        self.optimizer = optimizer
        self.optimizers = _each_once([optimizer, *optimizers_in(optimizer), *others])
        """It, those within its reach, whose steps it averages, say, and the others: each state once."""
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self.options = [dict(group) for group in self.groups]
        states = [state for o in self.optimizers for state in o.state.values() if isinstance(state, dict)]
        self._begun = [weakref.ref(t) for state in states for t in state.values() if isinstance(t, Tensor)]

    @property
    def groups(self) -> list[MutableMapping[str, Any]]:
        """The groups of parameters of each of them; `options` is what is in these at the beginning."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def had(self, tensor: Tensor) -> bool:
        """Whether a tensor was in the state of a parameter at the beginning."""
        return any(begun() is tensor for begun in self._begun)

    @cached_property
    def values(self) -> Belongings:
        """What the optimiser keeps beside groups and the state of each parameter, as it was when first asked for."""
        return Belongings(self.optimizer, "optimizer")

    @property
    def can_skip(self) -> bool:
        """Whether the step can be told on a GPU to do nothing: that of torch's own fused classes, and of no other.

        A class of one's own may have an inner optimiser, with the same defaults, that is told nothing; so may a hook.
        """
        own = type(self.optimizer).__module__.startswith("torch.optim.")
        return own and not self._hooks and all(group.get("fused") for group in self.optimizer.param_groups)

    @property
    def _hooks(self) -> bool:
        return bool(self.optimizer._optimizer_step_pre_hooks or self.optimizer._optimizer_step_post_hooks)

    @property
    def learning_rate(self) -> float:
        """That of the first group of parameters."""
        return float(self.optimizer.param_groups[0]["lr"])

    def set_factor(self, factor: float) -> None:
        """Multiplies the learning rate of every group."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def __call__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], skip: Tensor | None) -> None:
        """Takes a step; does nothing where `skip` is one (on a device whose optimiser can be told so)."""
        self.optimizer.zero_grad(set_to_none=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if skip is None:
            self.optimizer.step()
            return
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf  # type: ignore[attr-defined]


class Adam(Update):
    """The default: torch's fused Adam called directly, which saves what `Optimizer.step` does around it."""

    def __init__(
        self, parameters: Sequence[Tensor], learning_rate: float, others: Iterable[torch.optim.Optimizer] = ()
    ) -> None:
        optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
        self._step = torch.zeros((), dtype=torch.float32, device=parameters[0].device)
        for p in parameters:
            optimizer.state[p] = {
                "step": self._step,
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }
        super().__init__(optimizer, others)

    @torch.no_grad()
    def __call__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], skip: Tensor | None) -> None:
        """Takes a step; does nothing where `skip` is one."""
        states = [self.optimizer.state[p] for p in parameters]
        for p, state in zip(parameters, states, strict=True):
            if state["exp_avg"].stride() != p.stride():  # someone has given it other memory
                state.update({name: laid_out(state[name], p) for name in ("exp_avg", "exp_avg_sq")})
        self._step += 1 if skip is None else 1 - skip
        moving = [*zip(parameters, gradients, states, strict=True)]
        for dtype in {p.dtype: None for p in parameters}:  # a kernel of CUDA takes one
            self._move([row for row in moving if row[0].dtype == dtype], skip)

    def _move(self, moving: Sequence[tuple[Tensor, Tensor, Mapping[str, Tensor]]], skip: Tensor | None) -> None:
        """Moves parameters of one dtype by their gradients and states."""
        group = self.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        torch._fused_adam_(
            [p for p, _, _ in moving],
            [laid_out(gradient, p) for p, gradient, _ in moving],
            [state["exp_avg"] for _, _, state in moving],
            [state["exp_avg_sq"] for _, _, state in moving],
            [],
            [self._step] * len(moving),
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=skip,
        )


def laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient in the memory layout of its parameter: fused kernels read both from end to end."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(gradient)


def optimizers_in(root: nn.Module | torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """Those within reach of a module and its programs, or of an optimiser, in the same order in every process."""
    return [value for _, value in reached(root) if isinstance(value, torch.optim.Optimizer)]


def _each_once(optimizers: Iterable[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    found: list[torch.optim.Optimizer] = []
    for optimizer in optimizers:
        if all(optimizer.state is not known.state for known in found):
            found.append(optimizer)
    return found


def make_update(
    optimizer: OptimizerFactory | None,
    parameters: Sequence[Tensor],
    learning_rate: float,
    others: Iterable[torch.optim.Optimizer] = (),
) -> Update:
    """The update of an optimiser called as `optimizer(parameters, lr=...)`; Adam, fused for real numbers, if None.

    Raises:
        ValueError: If no optimiser comes of it, or one whose step needs a closure, or one without a learning rate.
        StorageError: If what torch loads first for an optimiser, its compiler, finds no folder for temporary files.
    """
    try:
        if optimizer is None and not any(p.is_complex() for p in parameters):  # which no fused kernel moves
            return Adam(parameters, learning_rate, others)
        made = _called(optimizer or torch.optim.Adam, parameters, learning_rate)
    except OSError as error:
        raise StorageError(
            f"optimizer: expected what torch needs to make one, found {first_line(error)}; where the disk is full, "
            "make room, or name a folder for temporary files in TMPDIR"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ValueError(f"optimizer: expected a torch optimizer class such as torch.optim.AdamW, got {made!r} from it")
    if _needs_closure(made):
        raise ValueError(
            f"optimizer: {type(made).__name__} evaluates the loss several times in a step (it needs a closure), and "
            "a step of fit is one evaluation with noise of its own; use one without closure, such as torch.optim.Adam"
        )
    if not all("lr" in group for group in made.param_groups):
        raise ValueError(
            f"optimizer: expected one with a learning rate, the option lr of its groups, which schedules, rollback and "
            f"history need, found {type(made).__name__} without; use another one, such as torch.optim.Adam"
        )
    return Update(made, others)


def _called(optimizer: OptimizerFactory, parameters: Sequence[Tensor], learning_rate: float) -> Any:
    try:
        return optimizer(parameters, lr=learning_rate)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"optimizer: expected a call with (parameters, lr=...) to make a torch optimizer, found {first_line(error)}"
        ) from error


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
