"""What an optimiser keeps, as named tensors and plain values: taken out, compared with its new place, put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_vae.errors import CheckpointError
from ppl_vae.svi.update import Update

__all__ = ["TENSOR", "check_moments", "moments", "names_of_moments", "overflowed", "put_moments"]

TENSOR = {"tensor": True}  # stands in the plain part for what is among the tensors
_JSON = (bool, int, float, str, type(None))
_OPTIMIZER = "optimizer"
_HOW_TO_GO_ON = "resume with the pair and options that the run began with"


def moments(update: Update) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of the optimiser by parameter and name, and all else of it."""
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    for number, parameter in enumerate(_parameters_of(update)):
        entry = {}
        for name, value in update.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[_place(number, name)] = value
            entry[name] = TENSOR if isinstance(value, Tensor) else value
        entries.append(entry)
    return tensors, {"entries": entries, "groups": [_plain_of(group) for group in update.optimizer.param_groups]}


def overflowed(update: Update) -> str:
    """Name of a tensor of the optimiser that is not finite; empty if all are."""
    found, _ = moments(update)
    return next((name for name, tensor in found.items() if not bool(torch.isfinite(tensor).all())), "")


def names_of_moments(plain: Mapping[str, Any]) -> set[str]:
    """The tensors that belong to the plain part."""
    entries = enumerate(plain["entries"])
    return {_place(number, name) for number, entry in entries for name, value in entry.items() if value == TENSOR}


def check_moments(update: Update, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Compares the state of an optimiser with one that it would be put into.

    Raises:
        CheckpointError: It is that of another optimiser; the first thing that differs is named.
    """
    parameters, groups = _parameters_of(update), update.optimizer.param_groups
    for name, count in {"entries": len(parameters), "groups": len(groups)}.items():
        if count != len(plain[name]):
            raise CheckpointError(f"optimizer.{name}: expected {count}, found {len(plain[name])}: {_HOW_TO_GO_ON}")
    for number, (parameter, entry) in enumerate(zip(parameters, plain["entries"], strict=True)):
        there = update.optimizer.state.get(parameter, {})
        for name in entry.keys() & there.keys():
            if None not in (there[name], entry[name]):
                _check_kind(f"{_OPTIMIZER}.entries[{number}].{name}", there[name], entry[name])
            if isinstance(there[name], Tensor):
                _check_shape(_place(number, name), there[name], tensors)
    for number, (group, found) in enumerate(zip(groups, plain["groups"], strict=True)):
        own = _plain_of(group)
        for name in [*own, *found]:
            where = f"{_OPTIMIZER}.groups[{number}].{name}"
            if name not in own or name not in found:
                raise CheckpointError(f"{where}: expected {'an' if name in own else 'no'} option: {_HOW_TO_GO_ON}")
            _check_kind(where, own[name], found[name])


def put_moments(update: Update, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Puts the state of an optimiser back that `check_moments` has found to fit."""
    for number, (parameter, entry) in enumerate(zip(_parameters_of(update), plain["entries"], strict=True)):
        own = update.optimizer.state[parameter]
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
    for group, known in zip(update.optimizer.param_groups, plain["groups"], strict=True):
        group.update(known)


def _check_kind(where: str, own: Any, found: Any) -> None:
    """A number may become another number, true may become false; nothing becomes something else."""
    wanted, given = (_kind(TENSOR if isinstance(value, Tensor) else value) for value in (own, found))
    if wanted != given:
        raise CheckpointError(f"{where}: expected {wanted}, found {given}: {_HOW_TO_GO_ON}")


def _kind(value: Any) -> str:
    if value == TENSOR:
        return "a tensor"
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, int | float) else repr(value)[:40]


def _check_shape(name: str, own: Tensor, tensors: Mapping[str, Tensor]) -> None:
    found = tensors.get(name)
    if found is None or found.shape != own.shape or found.dtype != own.dtype:
        words = "none" if found is None else f"one of shape {tuple(found.shape)}, {found.dtype}"
        raise CheckpointError(
            f"{name}: expected a tensor of shape {tuple(own.shape)}, {own.dtype}, found {words}: {_HOW_TO_GO_ON}"
        )


def _plain_of(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if isinstance(value, _JSON)}


def _place(number: int, name: str) -> str:
    return f"{_OPTIMIZER}/{number}/{name}"


def _parameters_of(update: Update) -> Sequence[Tensor]:
    return [p for group in update.optimizer.param_groups for p in group["params"]]
