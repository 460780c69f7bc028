"""What a pair is between two steps: parameters, buffers, and what its programs keep beside them, by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae.contents import same_numbers
from ppl_vae.errors import CheckpointError
from ppl_vae.pair import Pair
from ppl_vae.storage.tensors import under
from ppl_vae.svi.forms import HOW_TO_GO_ON, fitting

if TYPE_CHECKING:
    from ppl_vae.svi.stepper import Stepper

__all__ = [
    "Kept",
    "check_kept",
    "check_parameters",
    "kept",
    "moved_values",
    "named",
    "names_of_kept",
    "put_back",
    "put_kept",
    "put_parameters",
]

_PARAMETER, _BUFFER, _VALUE = "parameter", "buffer", "value"


class Kept(NamedTuple):
    """A pair as it was."""

    tensors: dict[str, Tensor]
    """Parameters, buffers (those that `state_dict` leaves out too), and tensors that programs keep: copies."""
    values: dict[str, Any]
    """Numbers and text that programs keep."""
    lost: tuple[str, ...] = ()
    """Names of what else they have changed, and nobody can keep."""


def kept(stepper: Stepper, device: torch.device | None = None) -> Kept:
    """The pair of a fit as it is now, in copies on a device; None where each tensor is."""
    values = stepper.values.taken()
    tensors = named(stepper.pair) | {f"{_VALUE}/{name}": tensor for name, tensor in values.tensors.items()}
    copies = {name: tensor.detach().to(device or tensor.device, copy=True) for name, tensor in tensors.items()}
    return Kept(copies, values.plain, values.lost)


def check_kept(stepper: Stepper, tensors: Mapping[str, Tensor], values: Mapping[str, Any], prefix: str = "") -> None:
    """Compares a pair as it was with the one of a fit.

    Raises:
        CheckpointError: It is another pair; the first entry that differs is named, after the prefix.
    """
    if unknown := stepper.values.misplaced(values, under(f"{_VALUE}/", tensors)):
        raise CheckpointError(
            f"{prefix}{unknown}: expected a value of that name in the programs, found none; {HOW_TO_GO_ON}"
        )
    check_parameters(stepper.pair, tensors, prefix, _remade(stepper, tensors, values))


def put_kept(stepper: Stepper, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Makes the pair of a fit, before its first step, what it was in another process; see `check_kept`."""
    stepper.values.put(values, under(f"{_VALUE}/", tensors))
    put_parameters(stepper.pair, tensors)


def put_back(stepper: Stepper, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Gives the pair of a fit the numbers that it had between two of its steps; what it has recorded since stays."""
    stepper.values.put_back(values, under(f"{_VALUE}/", tensors))
    put_parameters(stepper.pair, tensors)


def names_of_kept(stepper: Stepper, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> set[str]:
    """The tensors that belong to a pair."""
    remade = _remade(stepper, tensors, values)
    own = {*_named_in(tensors, stepper.pair)} - remade | (remade & tensors.keys())
    return own | {name for name in tensors if name.startswith(f"{_VALUE}/")}


def _remade(stepper: Stepper, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> set[str]:
    """Names of buffers that had another form than they begin with; what programs keep puts them in their places."""
    found = stepper.values.remade(stepper.pair, [*values, *under(f"{_VALUE}/", tensors)])
    return {f"{_BUFFER}/{name}" for name in found}


def moved_values(values: Mapping[str, Any], lost: Sequence[str], tensors: Mapping[str, Tensor]) -> set[str]:
    """Names of what programs keep that a fit had moved when a state was captured."""
    return {*lost, *(name.partition(":")[2] for name in (*values, *under(f"{_VALUE}/", tensors)))}


def check_parameters(pair: Pair, tensors: Mapping[str, Tensor], prefix: str = "", apart: Collection[str] = ()) -> None:
    """Compares parameters and buffers of a state with those of a pair, but for some.

    Raises:
        CheckpointError: They are those of another pair; the first entry that differs is named, after the prefix.
    """
    own = {name: tensor for name, tensor in _named_in(tensors, pair).items() if name not in apart}
    first: dict[int, str] = {}
    for name, tensor in own.items():
        fitting(tensors, name, tensor, prefix)
        other = first.setdefault(id(tensor), name)
        if other != name and not same_numbers(tensors[name], tensors[other]):
            raise CheckpointError(
                f"{prefix}{name}: expected the numbers of {other}, which is the same tensor, found others; "
                f"{HOW_TO_GO_ON}"
            )
    found = (name for name in tensors if name.startswith((f"{_PARAMETER}/", f"{_BUFFER}/")) and name not in apart)
    if more := [name for name in found if name not in own]:
        raise CheckpointError(f"{prefix}{more[0]}: expected no such tensor, found one; {HOW_TO_GO_ON}")


@torch.no_grad()
def put_parameters(pair: Pair, tensors: Mapping[str, Tensor]) -> None:
    """Gives a pair the parameters and buffers of a state, all of them or none.

    Raises:
        CheckpointError: See `check_parameters`.
    """
    check_parameters(pair, tensors)
    for name, own in _named_in(tensors, pair).items():
        own.copy_(tensors[name])


def named(pair: Pair) -> dict[str, Tensor]:
    """Parameters and buffers of a pair, by the names that they have in a state.

    Buffers of two names that are one tensor have both: a step may make them two.
    """
    parameters = {f"{_PARAMETER}/{name}": tensor for name, tensor in pair.named_parameters()}
    homes = ((where, module._buffers) for where, module in pair.named_modules())
    buffers = {f"{where}.{key}".lstrip("."): b for where, home in homes for key, b in home.items() if b is not None}
    return parameters | {f"{_BUFFER}/{name}": tensor for name, tensor in buffers.items()}


def _named_in(tensors: Mapping[str, Tensor], pair: Pair) -> dict[str, Tensor]:
    """The same, but for second names of a tensor that a state does not have: earlier versions wrote the first."""
    first: dict[int, str] = {}
    own = named(pair)
    return {name: t for name, t in own.items() if first.setdefault(id(t), name) == name or name in tensors}
