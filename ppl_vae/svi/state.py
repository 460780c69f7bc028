"""All that a fit is in the middle of, as named tensors and plain values, so that another process can go on with it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.errors import CheckpointError
from ppl_vae.pair import Pair
from ppl_vae.rundir import as_plain
from ppl_vae.svi import forms
from ppl_vae.svi.exact import exact, of_exact
from ppl_vae.svi.guard import BadStep
from ppl_vae.svi.moments import check_moments, moments, names_of_moments, put_moments
from ppl_vae.svi.recorded import history_of, names_of_history, recorded

if TYPE_CHECKING:
    from ppl_vae.svi.loop import Loop

__all__ = [
    "BATCH",
    "ROWS",
    "Best",
    "State",
    "bundle",
    "captured",
    "check_parameters",
    "check_plain",
    "moved_values",
    "named",
    "put_parameters",
    "random_states",
    "restore",
]

_PARAMETER, _BUFFER, _BEST, _VALUE, _SUMS = "parameter", "buffer", "best", "value", "sums"
BATCH, ROWS = "batch", "rows"  # of a bad step
_WORD = 2**32 - 1
_HOW_TO_GO_ON = "resume with the pair, data and options that the run began with"

_FORM = forms.fields(
    {
        "step": forms.whole(),
        "epoch": forms.whole(),
        "seen": forms.whole(),
        "seconds": forms.number(least=0.0),
        "optimizer": forms.fields(
            {
                "entries": forms.each(forms.fields(forms.anything)),
                "groups": forms.each(forms.fields(forms.anything)),
            }
        ),
        "compile": forms.fields(
            {
                "compiled": forms.flag,
                "payback": forms.fields(
                    {
                        "decided": forms.flag,
                        "operations": forms.either(forms.entries(forms.whole(), forms.number(least=0.0))),
                    }
                ),
            }
        ),
        "random": forms.fields(
            {
                "python": forms.entries(
                    forms.whole(3, 3), forms.each(forms.whole(0, _WORD), length=625), forms.either(forms.number())
                ),
                "numpy": forms.entries(
                    forms.text,
                    forms.each(forms.whole(0, _WORD), length=624),
                    forms.whole(0, 624),
                    forms.whole(0, 1),
                    forms.number(),
                ),
            }
        ),
        "values": forms.fields(forms.anything),
        "lost": forms.each(forms.text),
        "best": forms.either(forms.fields({"bound": forms.number(), "step": forms.whole(), "epoch": forms.whole()})),
        "policy": forms.fields(
            {
                "skipped": forms.each(forms.whole()),
                "rolled_back": forms.each(forms.whole()),
                "rate": forms.number(0.0, 1.0),
            }
        ),
    }
)


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
    """Parameters, buffers (those that `state_dict` leaves out too), moments of the optimiser, the best parameters, the
    history."""
    plain: dict[str, Any]
    """Step, epoch, patience, rates, random states, what is compiled: all that JSON can hold."""


def captured(loop: Loop) -> State:
    """The state of a fit between two steps; tensors are copies."""
    stepper = loop.stepper
    moved, optimizer = moments(stepper.update)
    values = stepper.values.taken()
    tensors = {**named(stepper.pair), **moved, _SUMS: loop.sums, **recorded(loop.history)}
    plain = {
        "step": loop.step,
        "epoch": loop.epoch,
        "seen": loop.seen,
        "seconds": loop.seconds,
        "optimizer": optimizer,
        "compile": stepper.compile_state(),
        "random": random_states(),
        "values": values.plain,
        "lost": list(values.lost),
        "best": None,
        "policy": loop.policy.state(),
    }
    tensors |= {f"{_VALUE}/{name}": tensor for name, tensor in values.tensors.items()}
    if loop.best is not None:
        plain["best"] = {"bound": loop.best.bound, "step": loop.best.step, "epoch": loop.best.epoch}
        tensors |= {f"{_BEST}/{i}": tensor for i, tensor in enumerate(loop.best.state)}
    return State({name: tensor.detach().clone() for name, tensor in tensors.items()}, exact(plain))


def bundle(loop: Loop, bad: BadStep) -> State:
    """What it takes to do a bad step again; see `replay`."""
    tensors = {**named(loop.stepper.pair), ROWS: bad.rows} | {f"{BATCH}/{i}": x for i, x in enumerate(bad.batch)}
    plain = {
        "step": bad.step,
        "seed": bad.seed,
        "beta": bad.beta,
        "arrays": len(bad.batch),
        "rank": bad.rank,
        "reason": bad.reason,
        "objective": as_plain(loop.settings.objective),
        "binarize": loop.settings.binarize == "dynamic",
        "compiled": loop.stepper.compiled is not None,
        "device": loop.device.type,
    }
    return State({name: tensor.detach().clone() for name, tensor in tensors.items()}, exact(plain))


def check_plain(plain: Any, step: int) -> None:
    """Looks at the plain values of a state before anything is done with them.

    Args:
        plain: The values.
        step: Steps done, as the checkpoint says.

    Raises:
        CheckpointError: They are of another form; the first one is named.
    """
    _FORM(plain, "state")
    forms.whole(step, step)(plain["step"], "state.step")
    try:
        _put_random_states(plain["random"], random.Random(), np.random.RandomState())  # noqa: S311
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"state.random: expected states of Python and NumPy, found others: {error}") from error


def moved_values(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> set[str]:
    """Names of what programs keep that the fit had moved when a state was captured."""
    held = [*plain["values"], *(name.removeprefix(f"{_VALUE}/") for name in tensors if name.startswith(f"{_VALUE}/"))]
    return {*plain["lost"], *(name.partition(":")[2] for name in held)}


def check_parameters(pair: Pair, tensors: Mapping[str, Tensor]) -> None:
    """Compares parameters and buffers of a state with those of a pair.

    Raises:
        CheckpointError: They are those of another pair; the first entry that differs is named.
    """
    own = named(pair)
    for name, tensor in own.items():
        _fitting(tensors, name, tensor)
    if more := [name for name in tensors if name.startswith((f"{_PARAMETER}/", f"{_BUFFER}/")) and name not in own]:
        raise CheckpointError(f"{more[0]}: expected no such tensor, found one; {_HOW_TO_GO_ON}")


@torch.no_grad()
def put_parameters(pair: Pair, tensors: Mapping[str, Tensor]) -> None:
    """Gives a pair the parameters and buffers of a state, all of them or none.

    Raises:
        CheckpointError: See `check_parameters`.
    """
    check_parameters(pair, tensors)
    for name, own in named(pair).items():
        own.copy_(tensors[name])


@torch.no_grad()
def restore(loop: Loop, state: State) -> None:
    """Puts a fit that has not begun where another one was, or changes nothing.

    Raises:
        CheckpointError: The state is that of another pair or optimiser, the first entry that differs is named; or it is
            none that `captured` made.
    """
    check_plain(state.plain, state.plain.get("step", 0))
    tensors, plain = state.tensors, of_exact(state.plain)
    values = {name.removeprefix(f"{_VALUE}/"): t for name, t in tensors.items() if name.startswith(f"{_VALUE}/")}
    _check(loop, tensors, plain, values)
    history = history_of(tensors)
    stepper = loop.stepper
    stepper.values.put(plain["values"], values)
    put_parameters(stepper.pair, tensors)
    put_moments(stepper.update, tensors, plain["optimizer"])
    loop.sums.copy_(tensors[_SUMS])
    loop.step, loop.epoch, loop.seen = plain["step"], plain["epoch"], plain["seen"]
    loop.history, loop.seconds_before = history, plain["seconds"]
    if (best := plain["best"]) is not None:
        now = enumerate(loop.state_tensors())
        kept = [tensors[f"{_BEST}/{i}"].clone().to(tensor.device) for i, tensor in now]
        loop.best = Best(best["bound"], best["step"], best["epoch"], kept)
    loop.policy.put(plain["policy"])
    stepper.restore_compile_state(plain["compile"])
    _put_random_states(plain["random"], random, np.random)


def _check(loop: Loop, tensors: Mapping[str, Tensor], plain: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
    """Compares all of a state with the fit that it would be put into."""
    stepper = loop.stepper
    check_parameters(stepper.pair, tensors)
    check_moments(stepper.update, tensors, plain["optimizer"])
    wanted = {_SUMS: loop.sums}
    if plain["best"] is not None:
        wanted |= {f"{_BEST}/{i}": tensor for i, tensor in enumerate(loop.state_tensors())}
    for name, tensor in wanted.items():
        _fitting(tensors, name, tensor)
    if unknown := stepper.values.misplaced(plain["values"], values):
        raise CheckpointError(
            f"{unknown}: expected a value of that name in the programs, found none; resume with the pair of the run"
        )
    own = {*named(stepper.pair), *wanted, *(f"{_VALUE}/{name}" for name in values), *names_of_history(tensors)}
    if odd := sorted(tensors.keys() ^ (own | names_of_moments(plain["optimizer"]))):
        words = "no such tensor, found one" if odd[0] in tensors else "a tensor of that name, found none"
        raise CheckpointError(f"{odd[0]}: expected {words}; {_HOW_TO_GO_ON}")


def named(pair: Pair) -> dict[str, Tensor]:
    """Parameters and buffers of a pair, by the names that they have in a state."""
    parameters = {f"{_PARAMETER}/{name}": tensor for name, tensor in pair.named_parameters()}
    return parameters | {f"{_BUFFER}/{name}": tensor for name, tensor in pair.named_buffers()}


def _fitting(tensors: Mapping[str, Tensor], name: str, own: Tensor) -> None:
    found = tensors.get(name)
    if found is None or found.shape != own.shape or found.dtype != own.dtype:
        words = "none" if found is None else f"one of shape {tuple(found.shape)}, {found.dtype}"
        raise CheckpointError(
            f"{name}: expected a tensor of shape {tuple(own.shape)}, {own.dtype}, found {words}; {_HOW_TO_GO_ON}"
        )


def random_states() -> dict[str, Any]:
    """Those of Python and NumPy, from which programs may draw; torch's is a function of (seed, step).

    Raises:
        CheckpointError: NumPy draws from another generator than the one it begins with.
    """
    generator = np.random.get_state(legacy=False)["bit_generator"]  # noqa: NPY002 (what programs of others draw from)
    if generator != "MT19937":
        raise CheckpointError(
            f"random state of NumPy: expected that of MT19937, with which NumPy begins, found {generator}: no "
            "checkpoint could hold it; leave out numpy.random.set_bit_generator"
        )
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return {"python": [version, list(internal), gauss], "numpy": [str(name), [int(k) for k in keys], *rest]}


def _put_random_states(states: Mapping[str, Any], python: Any, numpy: Any) -> None:
    version, internal, gauss = states["python"]
    python.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    numpy.set_state((name, np.array(keys, dtype=np.uint32), *rest))
