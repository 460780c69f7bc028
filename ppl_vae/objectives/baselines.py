"""Baselines of the score function: values close to a reward and independent of the draw that it belongs to."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vae.errors import PairError
from ppl_vae.pair import Pair

__all__ = ["BASELINES", "baseline", "begin_running", "follow"]

BASELINES = ("auto", "none", "leave_one_out", "batch", "running")
_STATE = "running_reward"
_DECAY = 0.9


def baseline(choice: str, reward: Tensor, pair: Pair, enumerated: bool) -> Tensor | float:
    """The baseline of each reward (K, N), or one for all."""
    particles, rows = reward.shape
    if choice == "auto":
        choice = "leave_one_out" if particles > 1 and not enumerated else "batch" if rows > 1 else "none"
    if choice == "leave_one_out":
        return (reward.sum(0, keepdim=True) - reward) / (particles - 1)
    if choice == "batch" and rows > 1:
        return (reward.sum(1, keepdim=True) - reward) / (rows - 1)
    if choice == "running":
        total, weight = _state(pair)
        return total / weight.clamp_min(1 - _DECAY)  # nothing has been seen before the first step: 0
    return 0.0


def begin_running(pair: Pair) -> None:
    """Forgets all rewards.

    What is kept is a buffer of the pair, so that compiled steps, trials and several processes treat it as the running
    means of a batch norm. Like the moments of an optimiser it is no part of `state_dict`, but among `pair.buffers()`.
    """
    like = next((p for p in pair.parameters()), torch.empty(0))
    if _STATE in pair.store._buffers:
        _state(pair).zero_()
    else:
        pair.store.register_buffer(_STATE, like.new_zeros(2).detach(), persistent=False)


def follow(pair: Pair, reward: Tensor) -> None:
    """Moves the average on by the rewards of a step, for the steps after it; nothing moves without gradients."""
    if torch.is_grad_enabled():
        state = _state(pair)
        with torch.no_grad():
            new = torch.stack([reward.mean(), torch.ones_like(reward.mean())])
            state.copy_(_DECAY * state + (1 - _DECAY) * new)


def _state(pair: Pair) -> Tensor:
    """Sum of the rewards seen, weighted, and sum of the weights."""
    state = pair.store._buffers.get(_STATE)
    if state is None:
        raise PairError("baseline='running': expected begin(pair) before the first evaluation, as fit has it")
    return state
