"""All that a fit is in the middle of, as named tensors and plain values, so that another process can go on with it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.errors import CheckpointError, first_line
from ppl_vae.history import History
from ppl_vae.pair import Pair
from ppl_vae.rundir import as_plain, record_as_plain, record_of_plain
from ppl_vae.svi.guard import BadStep
from ppl_vae.svi.update import Update

if TYPE_CHECKING:
    from ppl_vae.svi.loop import Loop

__all__ = ["BATCH", "FIELDS", "ROWS", "Best", "State", "bundle", "captured", "put_parameters", "restore"]

_PARAMETER, _BUFFER, _BEST, _OPTIMIZER, _VALUE, _SUMS = "parameter", "buffer", "best", "optimizer", "value", "sums"
BATCH, ROWS = "batch", "rows"  # of a bad step
FIELDS = ("step", "epoch", "seen", "history", "seconds", "optimizer", "compile", "random", "values", "best", "policy")
_JSON = (bool, int, float, str, type(None))
_TENSOR = {"tensor": True}  # stands in the plain part of an optimiser's state for what is among the tensors


class Best(NamedTuple):
    """The best state so far, as the held-out data judge it."""

    bound: float
    """Bound that is watched, in nats per datum."""
    step: int
    """Steps done."""
    epoch: int
    """Epochs done."""
    state: list[Tensor]
    """Copies of parameters and buffers."""


class State(NamedTuple):
    """A fit between two steps."""

    tensors: dict[str, Tensor]
    """Parameters, buffers (those that `state_dict` leaves out too), moments of the optimiser, the best parameters."""
    plain: dict[str, Any]
    """Step, epoch, history, patience, rates, random states, what is compiled: all that JSON can hold."""


def captured(loop: Loop) -> State:
    """The state of a fit between two steps; tensors are copies."""
    stepper = loop.stepper
    moments, optimizer = _optimizer_state(stepper.update)
    tensors = {**_named(stepper.pair), **moments, _SUMS: loop.sums}
    plain = {
        "step": loop.step,
        "epoch": loop.epoch,
        "seen": loop.seen,
        "history": [record_as_plain(record) for record in loop.history],
        "seconds": loop.seconds,
        "optimizer": optimizer,
        "compile": stepper.compile_state(),
        "random": _random_states(),
        "values": stepper.values.plain_now(),
        "best": None,
        "policy": loop.policy.state(),
    }
    tensors |= {f"{_VALUE}/{name}": tensor for name, tensor in stepper.values.tensors_now().items()}
    if loop.best is not None:
        plain["best"] = {"bound": loop.best.bound, "step": loop.best.step, "epoch": loop.best.epoch}
        tensors |= {f"{_BEST}/{i}": tensor for i, tensor in enumerate(loop.best.state)}
    return State({name: tensor.detach().clone() for name, tensor in tensors.items()}, plain)


def bundle(loop: Loop, bad: BadStep) -> State:
    """What it takes to do a bad step again; see `replay`."""
    tensors = {**_named(loop.stepper.pair), ROWS: bad.rows} | {f"{BATCH}/{i}": x for i, x in enumerate(bad.batch)}
    plain = {
        "step": bad.step,
        "seed": bad.seed,
        "beta": bad.beta,
        "rank": bad.rank,
        "reason": bad.reason,
        "objective": as_plain(loop.settings.objective),
        "binarize": loop.settings.binarize == "dynamic",
        "compiled": loop.stepper.compiled is not None,
    }
    return State({name: tensor.detach().clone() for name, tensor in tensors.items()}, plain)


@torch.no_grad()
def put_parameters(pair: Pair, tensors: Mapping[str, Tensor]) -> None:
    """Gives a pair the parameters and buffers of a state.

    Raises:
        CheckpointError: They are those of another pair; the first entry that differs is named.
    """
    for name, own in _named(pair).items():
        own.copy_(_fitting(tensors, name, own))


def restore(loop: Loop, state: State) -> None:
    """Puts a fit that has not begun where another one was.

    Raises:
        CheckpointError: The state is that of another pair or optimiser, the first entry that differs is named; or it is
            none that `captured` made.
    """
    try:
        _restore(loop, state.tensors, state.plain)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"expected the state of a fit that this version has saved, found another: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


@torch.no_grad()
def _restore(loop: Loop, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    stepper = loop.stepper
    put_parameters(stepper.pair, tensors)
    _restore_optimizer(stepper.update, tensors, plain["optimizer"])
    loop.sums.copy_(_fitting(tensors, _SUMS, loop.sums))
    loop.step, loop.epoch, loop.seen = plain["step"], plain["epoch"], plain["seen"]
    loop.history = History([record_of_plain(record) for record in plain["history"]])
    loop.seconds_before = plain["seconds"]
    if (best := plain["best"]) is not None:
        now = enumerate(loop.state_tensors())
        kept = [_fitting(tensors, f"{_BEST}/{i}", tensor).clone().to(tensor.device) for i, tensor in now]
        loop.best = Best(best["bound"], best["step"], best["epoch"], kept)
    loop.policy.put(plain["policy"])
    stepper.restore_compile_state(plain["compile"])
    _restore_random_states(plain["random"])
    values = {name.removeprefix(f"{_VALUE}/"): t for name, t in tensors.items() if name.startswith(f"{_VALUE}/")}
    if unknown := stepper.values.put(plain["values"], values):
        raise CheckpointError(
            f"{unknown}: expected a value of that name in the programs, found none; resume with the pair of the run"
        )


def _named(pair: Pair) -> dict[str, Tensor]:
    parameters = {f"{_PARAMETER}/{name}": tensor for name, tensor in pair.named_parameters()}
    return parameters | {f"{_BUFFER}/{name}": tensor for name, tensor in pair.named_buffers()}


def _fitting(tensors: Mapping[str, Tensor], name: str, own: Tensor) -> Tensor:
    found = tensors.get(name)
    if found is None or found.shape != own.shape or found.dtype != own.dtype:
        words = "none" if found is None else f"one of shape {tuple(found.shape)}, {found.dtype}"
        raise CheckpointError(
            f"{name}: expected a tensor of shape {tuple(own.shape)}, {own.dtype}, found {words}; resume with the pair, "
            "data and options that the run began with"
        )
    return found


def _optimizer_state(update: Update) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of the optimiser by parameter and name, and all else of it."""
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    for number, parameter in enumerate(_parameters_of(update)):
        entry = {}
        for name, value in update.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}/{number}/{name}"] = value
            entry[name] = _TENSOR if isinstance(value, Tensor) else value
        entries.append(entry)
    groups = [{n: v for n, v in g.items() if isinstance(v, _JSON)} for g in update.optimizer.param_groups]
    return tensors, {"entries": entries, "groups": groups}


def _restore_optimizer(update: Update, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    parameters, entries = _parameters_of(update), plain["entries"]
    if len(parameters) != len(entries):
        raise CheckpointError(f"optimizer: expected {len(parameters)} parameters, found {len(entries)} in the state")
    for number, (parameter, entry) in enumerate(zip(parameters, entries, strict=True)):
        own = update.optimizer.state[parameter]
        for name in own.keys() - entry.keys():  # made by steps after that state
            del own[name]
        for name, value in entry.items():
            if value != _TENSOR:
                own[name] = value
                continue
            found = tensors[f"{_OPTIMIZER}/{number}/{name}"]
            if isinstance(own.get(name), Tensor):
                own[name].copy_(found)
            else:
                home = found.device if found.dim() == 0 else parameter.device
                own[name] = found.clone().to(home)
    for group, known in zip(update.optimizer.param_groups, plain["groups"], strict=True):
        group.update(known)


def _parameters_of(update: Update) -> Sequence[Tensor]:
    return [p for group in update.optimizer.param_groups for p in group["params"]]


def _random_states() -> dict[str, Any]:
    """Those of Python and NumPy, from which programs may draw; torch's is a function of (seed, step)."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (what programs of others draw from)
    version, internal, gauss = random.getstate()
    return {"python": [version, list(internal), gauss], "numpy": [str(name), [int(k) for k in keys], *rest]}


def _restore_random_states(states: Mapping[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
