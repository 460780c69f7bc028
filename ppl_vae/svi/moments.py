"""What an optimiser keeps, as named tensors and plain values: taken out, compared with its new place, put back."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_vae.errors import CheckpointError
from ppl_vae.storage.tensors import under
from ppl_vae.svi.forms import HOW_TO_GO_ON, fitting
from ppl_vae.svi.update import Update

__all__ = ["TENSOR", "Moments", "check_moments", "moments", "names_of_moments", "overflowed", "put_moments"]

TENSOR = {"tensor": True}  # stands in the plain part for what is among the tensors
_JSON = (bool, int, float, str, type(None))
_OPTIMIZER, _VALUE = "optimizer", "optimizer/value/"


class Moments(NamedTuple):
    """What an optimiser keeps, and those that it is made of."""

    tensors: dict[str, Tensor]
    """Tensors by parameter and name, and others that it keeps."""
    plain: dict[str, Any]
    """What else it keeps of each parameter, the options of its groups, and other numbers and text."""
    lost: tuple[str, ...]
    """Names of what else has changed in it."""


def moments(update: Update) -> Moments:
    """What the optimiser keeps now."""
    states, values = _states_of(update), update.values.taken()
    entries = [{name: TENSOR if isinstance(v, Tensor) else v for name, v in state.items()} for state in states]
    plain = {"entries": entries, "groups": [*map(_plain_of, _groups_of(update))], "values": values.plain}
    others = {f"{_VALUE}{name}": tensor for name, tensor in values.tensors.items()}
    return Moments(_tensors_of(states) | others, plain, values.lost)


def overflowed(update: Update) -> str:
    """Name of a tensor of the optimiser that is not finite; empty if all are."""
    found = _tensors_of(_states_of(update))
    return next((name for name, tensor in found.items() if not bool(torch.isfinite(tensor).all())), "")


def names_of_moments(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> set[str]:
    """The tensors that belong to the plain part."""
    entries = enumerate(plain["entries"])
    own = {_place(number, name) for number, entry in entries for name, value in entry.items() if value == TENSOR}
    return own | {name for name in tensors if name.startswith(_VALUE)}


def check_moments(update: Update, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Compares the state of an optimiser with one that it would be put into.

    Raises:
        CheckpointError: It is that of another optimiser; the first thing that differs is named.
    """
    states, groups = _states_of(update), _groups_of(update)
    for name, count in {"entries": len(states), "groups": len(groups)}.items():
        if count != len(plain[name]):
            raise CheckpointError(f"optimizer.{name}: expected {count}, found {len(plain[name])}: {HOW_TO_GO_ON}")
    for number, (there, entry) in enumerate(zip(states, plain["entries"], strict=True)):
        for name in entry.keys() & there.keys():
            if None not in (there[name], entry[name]):
                _check_kind(f"{_OPTIMIZER}.entries[{number}].{name}", there[name], entry[name])
            if isinstance(there[name], Tensor):
                fitting(tensors, _place(number, name), there[name])
    for number, (group, found) in enumerate(zip(groups, plain["groups"], strict=True)):
        own = _plain_of(group)
        for name in [*own, *found]:
            where = f"{_OPTIMIZER}.groups[{number}].{name}"
            if name not in own or name not in found:
                raise CheckpointError(f"{where}: expected {'an' if name in own else 'no'} option: {HOW_TO_GO_ON}")
            _check_kind(where, own[name], found[name])
    if unknown := update.values.misplaced(plain["values"], under(_VALUE, tensors)):
        raise CheckpointError(f"{_VALUE}{unknown}: expected a value of that name, found none: {HOW_TO_GO_ON}")


def put_moments(update: Update, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Puts the state of an optimiser back that `check_moments` has found to fit."""
    update.values.put(plain["values"], under(_VALUE, tensors))
    places = [(optimizer.state, p) for optimizer in _optimizers(update) for p in _parameters_of(optimizer)]
    for number, ((state, parameter), entry) in enumerate(zip(places, plain["entries"], strict=True)):
        own = state.setdefault(parameter, {})
        for name in own.keys() - entry.keys():  # made by steps after that state
            del own[name]
        for name, value in entry.items():
            if value != TENSOR:
                own[name] = value
                continue
            found = tensors[_place(number, name)]
            if isinstance(own.get(name), Tensor):
                own[name].copy_(found)
            else:
                home = found.device if found.dim() == 0 else parameter.device
                own[name] = found.clone().to(home)
    for group, known in zip(_groups_of(update), plain["groups"], strict=True):
        group.update(known)


def _check_kind(where: str, own: Any, found: Any) -> None:
    """A number may become another number, true may become false; nothing becomes something else."""
    wanted, given = (_kind(TENSOR if isinstance(value, Tensor) else value) for value in (own, found))
    if wanted != given:
        raise CheckpointError(f"{where}: expected {wanted}, found {given}: {HOW_TO_GO_ON}")


def _kind(value: Any) -> str:
    if value == TENSOR:
        return "a tensor"
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, int | float) else repr(value)[:40]


def _plain_of(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if isinstance(value, _JSON)}


def _place(number: int, name: str) -> str:
    return f"{_OPTIMIZER}/{number}/{name}"


def _tensors_of(states: list[Mapping[str, Any]]) -> dict[str, Tensor]:
    held = [(_place(number, name), value) for number, state in enumerate(states) for name, value in state.items()]
    return {name: value for name, value in held if isinstance(value, Tensor)}


def _states_of(update: Update) -> list[Mapping[str, Any]]:
    """The state of each parameter in each optimiser."""
    return [optimizer.state.get(p, {}) for optimizer in _optimizers(update) for p in _parameters_of(optimizer)]


def _groups_of(update: Update) -> list[MutableMapping[str, Any]]:
    return [group for optimizer in _optimizers(update) for group in optimizer.param_groups]


def _optimizers(update: Update) -> list[Optimizer]:
    """The optimiser and those that it keeps as attributes, whose steps it averages, say; each state once."""
    found = [update.optimizer]
    for optimizer in found:  # which grows meanwhile
        values = [
            v for value in vars(optimizer).values() for v in (value if isinstance(value, list | tuple) else [value])
        ]
        for value in values:
            if isinstance(value, Optimizer) and all(value.state is not known.state for known in found):
                found.append(value)
    return found


def _parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
