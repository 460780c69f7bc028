"""All that a fit is in the middle of, as named tensors and plain values, so that another process can go on with it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.arrays import as_python
from ppl_vae.errors import CheckpointError
from ppl_vae.rundir import as_plain
from ppl_vae.storage.exact import exact, of_exact
from ppl_vae.storage.tensors import under
from ppl_vae.svi import forms
from ppl_vae.svi.guard import BadStep
from ppl_vae.svi.inputs import first_batch
from ppl_vae.svi.kept import Kept, check_kept, kept, moved_values, named, names_of_kept, put_kept
from ppl_vae.svi.moments import check_moments, moments, names_of_moments, put_moments
from ppl_vae.svi.recorded import history_of, names_of_history, recorded

if TYPE_CHECKING:
    from ppl_vae.svi.loop import Loop

__all__ = [
    "BATCH",
    "CHECKED",
    "ROWS",
    "Best",
    "State",
    "bundle",
    "captured",
    "check_plain",
    "random_states",
    "restore",
]

_BEST, _SUMS = "best", "sums"
BATCH, CHECKED, ROWS = "batch", "checked", "rows"  # of a bad step
_WORD = 2**32 - 1
_CPU = torch.device("cpu")


def _option(value: Any, where: str) -> None:
    """A learning rate is finite; whatever else an option is."""
    value = as_python(value)
    if where.endswith(".lr") and type(value) in (int, float):
        forms.number()(value, where)


_FORM = forms.fields(
    {
        "step": forms.whole(),
        "epoch": forms.whole(),
        "seen": forms.whole(),
        "seconds": forms.number(least=0.0),
        "optimizer": forms.fields(
            {
                "entries": forms.each(forms.fields(forms.anything)),
                "groups": forms.each(forms.fields(_option)),
                "values": forms.fields(forms.anything),
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
        "best": forms.either(
            forms.fields(
                {
                    "bound": forms.number(),
                    "step": forms.whole(),
                    "epoch": forms.whole(),
                    "values": forms.fields(forms.anything),
                }
            )
        ),
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
    state: Kept
    """The pair."""


class State(NamedTuple):
    """A fit between two steps."""

    tensors: dict[str, Tensor]
    """Parameters, buffers (those that `state_dict` leaves out too), moments of the optimiser, the best parameters, the
    history."""
    plain: dict[str, Any]
    """Step, epoch, patience, rates, random states, what is compiled: all that JSON can hold."""


def captured(loop: Loop) -> State:
    """The state of a fit between two steps; tensors are copies on the CPU, so that a save takes no memory of a GPU."""
    stepper = loop.stepper
    own = kept(stepper, _CPU)
    moved = moments(stepper.update)
    tensors = {**moved.tensors, _SUMS: loop.sums, **recorded(loop.history)}
    plain = {
        "step": loop.step,
        "epoch": loop.epoch,
        "seen": loop.seen,
        "seconds": loop.seconds,
        "optimizer": moved.plain,
        "compile": stepper.compile_state(),
        "random": random_states(),
        "values": own.values,
        "lost": [*own.lost, *moved.lost],
        "best": None,
        "policy": loop.policy.state(),
    }
    if loop.best is not None:
        *judged, best = loop.best
        plain["best"] = dict(zip(Best._fields, judged, strict=False)) | {"values": best.values}
        tensors |= {f"{_BEST}/{name}": tensor for name, tensor in best.tensors.items()}
    return State(own.tensors | _copies(tensors), exact(plain))


def bundle(loop: Loop, bad: BadStep) -> State:
    """What it takes to do a bad step again; see `replay`."""
    stepper = loop.stepper
    tensors = {**named(stepper.pair), ROWS: bad.rows}
    for name, batch in ((BATCH, bad.batch), (CHECKED, first_batch(stepper.pair, stepper.feed.rows, stepper.settings))):
        tensors |= {f"{name}/{i}": array for i, array in enumerate(batch)}
    own = kept(stepper, _CPU)
    plain = {
        "step": bad.step,
        "seed": bad.seed,
        "beta": bad.beta,
        "arrays": len(bad.batch),
        "rank": bad.rank,
        "reason": bad.reason,
        "objective": as_plain(loop.settings.objective),
        "binarize": loop.settings.binarize == "dynamic",
        "compiled": stepper.compiled is not None,
        "device": loop.device.type,
        "moved": sorted(moved_values(own.values, own.lost, own.tensors)),
    }
    return State(_copies(tensors), exact(plain))


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to(_CPU, copy=True) for name, tensor in tensors.items()}


def check_plain(plain: Any, step: int) -> None:
    """Looks at the plain values of a state before anything is done with them.

    Args:
        plain: The values.
        step: Steps done, as the checkpoint says.

    Raises:
        CheckpointError: They are of another form; the first one is named.
    """
    plain = of_exact(plain)  # what stands for a number is one where it is used
    _FORM(plain, "state")
    forms.whole(step, step)(plain["step"], "state.step")
    for name in ("step", "epoch") if plain["best"] else ():
        forms.whole(most=plain[name])(plain["best"][name], f"state.best.{name}")
    try:
        _put_random_states(plain["random"], random.Random(), np.random.RandomState())  # noqa: S311
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"state.random: expected states of Python and NumPy, found others: {error}") from error


@torch.no_grad()
def restore(loop: Loop, state: State) -> None:
    """Puts a fit that has not begun where another one was, or changes nothing.

    Raises:
        CheckpointError: The state is that of another pair or optimiser, the first entry that differs is named; or it is
            none that `captured` made.
    """
    check_plain(state.plain, state.plain.get("step", 0))
    tensors, plain = state.tensors, of_exact(state.plain)
    best = under(f"{_BEST}/", tensors)
    _check(loop, tensors, plain, best)
    history = history_of(tensors)
    stepper = loop.stepper
    put_kept(stepper, tensors, plain["values"])
    put_moments(stepper.update, tensors, plain["optimizer"])
    loop.sums.copy_(tensors[_SUMS])
    loop.step, loop.epoch, loop.seen = plain["step"], plain["epoch"], plain["seen"]
    loop.history, loop.seconds_before = history, plain["seconds"]
    loop.best = None
    if (judged := plain["best"]) is not None:
        copies = {name: tensor.clone().to(loop.device) for name, tensor in best.items()}
        loop.best = Best(judged["bound"], judged["step"], judged["epoch"], Kept(copies, judged["values"]))
    loop.policy.put(plain["policy"])
    stepper.restore_compile_state(plain["compile"])
    _put_random_states(plain["random"], random, np.random)


def _check(loop: Loop, tensors: Mapping[str, Tensor], plain: Mapping[str, Any], best: Mapping[str, Tensor]) -> None:
    """Compares all of a state with the fit that it would be put into."""
    stepper = loop.stepper
    check_kept(stepper, tensors, plain["values"])
    check_moments(stepper.update, tensors, plain["optimizer"])
    forms.fitting(tensors, _SUMS, loop.sums)
    own = {_SUMS, *names_of_kept(stepper, tensors, plain["values"]), *names_of_history(tensors)}
    if plain["best"] is not None:
        check_kept(stepper, best, plain["best"]["values"], f"{_BEST}/")
        own |= {f"{_BEST}/{name}" for name in names_of_kept(stepper, best, plain["best"]["values"])}
    if odd := sorted(tensors.keys() ^ (own | names_of_moments(plain["optimizer"], tensors))):
        words = "no such tensor, found one" if odd[0] in tensors else "a tensor of that name, found none"
        raise CheckpointError(f"{odd[0]}: expected {words}; {forms.HOW_TO_GO_ON}")


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
