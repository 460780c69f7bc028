"""What an optimiser keeps, as named tensors and plain values: taken out, compared with its new place, put back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_vae.contents import memory
from ppl_vae.errors import CheckpointError
from ppl_vae.holders import is_option
from ppl_vae.storage.exact import exact
from ppl_vae.storage.plain import encode
from ppl_vae.storage.tensors import check_writable, under
from ppl_vae.svi.forms import HOW_TO_GO_ON, fitting
from ppl_vae.svi.update import Update

__all__ = ["TENSOR", "Moments", "check_moments", "moments", "names_of_moments", "overflowed", "put_moments"]

TENSOR = {"tensor": True}  # stands in the plain part for what is among the tensors
_LOST = {"lost": True}  # and for what nothing holds
_OTHER = object()
_SEQUENCES: dict[str, type] = {"tuple": tuple, "list": list}  # by the only key of what stands there for one
_DICT = "dict"  # the only key of what stands there for a dictionary that looks like one of these
_MARKS = {*TENSOR, *_LOST, *_SEQUENCES, _DICT}
_OPTIMIZER, _GROUP, _VALUE = "optimizer", "optimizer/group", "optimizer/value/"
_CPU = torch.device("cpu")


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
    states, groups, values = _entries_of(update), _options_of(update), update.values.taken()
    lost = (*values.lost, *_lost_in("entries", states), *_lost_in("groups", groups))
    packed = {
        kind: [{n: _packed(v) for n, v in place.items() if isinstance(n, str)} for place in found]
        for kind, found in (("entries", states), ("groups", groups))
    }
    tensors = _tensors_of(_OPTIMIZER, states) | _tensors_of(_GROUP, groups)
    others = {f"{_VALUE}{name}": tensor for name, tensor in values.tensors.items()}
    return Moments(tensors | others, {**packed, "values": values.plain}, lost)


def overflowed(update: Update) -> str:
    """Name of a tensor of the optimiser that is not finite; empty if all are."""
    found = _tensors_of(_OPTIMIZER, _states_of(update))
    return next((name for name, tensor in found.items() if not bool(torch.isfinite(tensor).all())), "")


def names_of_moments(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> set[str]:
    """The tensors that belong to the plain part."""
    kinds = {_OPTIMIZER: plain["entries"], _GROUP: plain["groups"]}
    packed = ((_place(kind, n, name), v) for kind in kinds for n, e in enumerate(kinds[kind]) for name, v in e.items())
    own = {where for place, value in packed for where, part in _parts(place, value) if part == TENSOR}
    return own | {name for name in tensors if name.startswith(_VALUE)}


def check_moments(update: Update, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Compares the state of an optimiser with one that it would be put into.

    Raises:
        CheckpointError: It is that of another optimiser; the first thing that differs is named.
    """
    states = _states_of(update)
    for name, count in {"entries": len(states), "groups": len(update.groups)}.items():
        if count != len(plain[name]):
            raise CheckpointError(f"optimizer.{name}: expected {count}, found {len(plain[name])}: {HOW_TO_GO_ON}")
    for number, (there, entry) in enumerate(zip(states, plain["entries"], strict=True)):
        for name in (name for name in entry.keys() & there.keys() if entry[name] != _LOST):
            if isinstance(there[name], Tensor) or (there[name] is not None and entry[name] is not None):
                where = f"{_OPTIMIZER}.entries[{number}].{name}"
                _check(where, _place(_OPTIMIZER, number, name), there[name], entry[name], tensors)
    for number, (begun, found) in enumerate(zip(update.options, plain["groups"], strict=False)):
        others = _others(begun)
        own = {name: value for name, value in begun.items() if name not in others}  # steps may add others
        for name in [*own, *found]:
            where = f"{_OPTIMIZER}.groups[{number}].{name}"
            if name not in found or name in others:
                raise CheckpointError(f"{where}: expected {'an' if name in own else 'no'} option: {HOW_TO_GO_ON}")
            if own.get(name) is not None and found[name] != _LOST:  # what begins as None may become anything
                _check(where, _place(_GROUP, number, name), own[name], found[name], tensors)
    if unknown := update.values.misplaced(plain["values"], under(_VALUE, tensors)):
        raise CheckpointError(f"{_VALUE}{unknown}: expected a value of that name, found none: {HOW_TO_GO_ON}")


def put_moments(update: Update, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Puts the state of an optimiser back that `check_moments` has found to fit."""
    update.values.put(plain["values"], under(_VALUE, tensors))
    places = [(o.state, p, group) for o in update.optimizers for group in o.param_groups for p in group["params"]]
    for number, ((state, parameter, group), entry) in enumerate(zip(places, plain["entries"], strict=True)):
        own = state.get(parameter, {})
        later = [n for n in own if isinstance(n, str) and n not in entry]  # made by steps after that state
        for name in later:
            del own[name]
        for name, value in entry.items():
            if value == _LOST:
                continue  # what the optimiser has made anew stays
            place = _place(_OPTIMIZER, number, name)
            if value == TENSOR and isinstance(own.get(name), Tensor):
                own[name].copy_(tensors[place])
            else:
                own[name] = _unpacked(place, value, tensors, _home(name, parameter, group))
        if own:
            state[parameter] = own
        elif later:
            del state[parameter]  # an optimiser may take an empty one for one that it has begun
    for number, (options, begun, found) in enumerate(zip(update.groups, update.options, plain["groups"], strict=True)):
        for name in [name for name in options if name not in found and name not in _others(begun)]:
            del options[name]
        for name, value in found.items():
            if value != _LOST:
                own = options.get(name)
                device = own.device if isinstance(own, Tensor) else _CPU
                options[name] = _unpacked(_place(_GROUP, number, name), value, tensors, device)


def _home(name: str, parameter: Tensor, group: Mapping[str, Any]) -> torch.device:
    """Where torch puts a tensor that an optimiser keeps of a parameter, in `Optimizer.load_state_dict`."""
    counted_there = group.get("fused") or group.get("capturable")
    return _CPU if name == "step" and not counted_there else parameter.device


def _check(where: str, place: str, own: Any, found: Any, tensors: Mapping[str, Tensor]) -> None:
    """A number may become another number, true may become false; nothing becomes something else."""
    wanted, given = _kind(_packed(own)), _kind(found)
    if wanted != given:
        raise CheckpointError(f"{where}: expected {wanted}, found {given}: {HOW_TO_GO_ON}")
    if isinstance(own, Tensor):
        fitting(tensors, place, own)
    if type(own) in _SEQUENCES.values():
        for number, (entry, part) in enumerate(zip(own, _inside(found), strict=False)):  # lists may grow
            _check(f"{where}[{number}]", f"{place}.{number}", entry, part, tensors)


def _kind(value: Any) -> str:
    if value in (TENSOR, _LOST):
        return "a tensor" if value == TENSOR else "what no checkpoint holds"
    if kind := _sequence(value):
        return f"a tuple of {len(value[kind])}" if kind == "tuple" else "a list"
    if isinstance(value, list):  # as earlier versions packed one
        return "a list"
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, int | float | np.number) else type(value).__name__


def _packed(value: Any) -> Any:
    """A value in the plain part."""
    if not _is_entry(value):
        return _LOST
    if isinstance(value, Tensor):
        return TENSOR
    if type(value) is dict:
        return {_DICT: value} if len(value) == 1 and not _MARKS.isdisjoint(value) else value
    kind = next((kind for kind, sequence in _SEQUENCES.items() if type(value) is sequence), None)
    return value if kind is None else {kind: [*map(_packed, value)]}


def _is_entry(value: Any) -> bool:
    """Whether the value of a state can be held: a tensor, what JSON holds, or a list or tuple of such."""
    try:
        return _is_held(value)
    except (ValueError, RecursionError):
        return False


def _is_held(value: Any) -> bool:
    if type(value) in _SEQUENCES.values():
        return all(map(_is_held, value))
    if isinstance(value, Tensor):
        check_writable("tensor", value)
    else:
        encode(exact(value))
    return _is_of_json(value)


def _is_of_json(value: Any) -> bool:
    """Whether dictionaries and lists are no others, such as a `defaultdict`, which JSON would not give back."""
    if not isinstance(value, dict | list):
        return True
    inside = value.values() if isinstance(value, dict) else value
    return type(value) in (dict, list) and all(map(_is_of_json, inside))


def _lost_in(kind: str, places: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Names of what the optimiser keeps of each parameter, or group, and no checkpoint holds."""
    found = (
        (n, name)
        for n, place in enumerate(places)
        for name in place
        if not (isinstance(name, str) and _is_entry(place[name]))
    )
    return [f"{_OPTIMIZER}.{kind}[{n}].{name}" for n, name in found]


def _unpacked(place: str, value: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if value == TENSOR:
        return tensors[place].clone().to(device)
    kind = "list" if isinstance(value, list) else _sequence(value)
    if not kind:
        return value[_DICT] if isinstance(value, dict) and [*value] == [_DICT] else value
    return _SEQUENCES[kind](_unpacked(f"{place}.{n}", part, tensors, device) for n, part in enumerate(_inside(value)))


def _sequence(value: Any) -> str:
    """The kind of sequence that a packed value stands for; empty if it is none."""
    kinds = (kind for kind in _SEQUENCES if isinstance(value, dict) and [*value] == [kind])
    return next((kind for kind in kinds if isinstance(value[kind], list)), "")


def _inside(value: Any) -> Any:
    """What is in a sequence, packed or not; nothing in what is none."""
    return value if type(value) in _SEQUENCES.values() else value[kind] if (kind := _sequence(value)) else ()


def _parts(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value, packed or not, and what is in it if it is a sequence, by their places."""
    yield place, value
    for number, part in enumerate(_inside(value)):
        yield from _parts(f"{place}.{number}", part)


def _options_of(update: Update) -> list[dict[Any, Any]]:
    """The options of each group, `_OTHER` in the place of those that an optimiser made anew would be refused."""
    groups = zip(update.groups, chain(update.options, repeat({})), strict=False)
    return [
        {n: v if _may_become(begun.get(n), v) else _OTHER for n, v in group.items() if n not in _others(begun)}
        for group, begun in groups
    ]


def _others(begun: Mapping[Any, Any]) -> set[Any]:
    """Names in a group of what is no option in this sense: parameters, and what `Update.values` follows."""
    return {name for name, value in begun.items() if name == "params" or not is_option(value)}


def _may_become(begun: Any, now: Any) -> bool:
    """Whether `check_moments` would take an option for what was there at the beginning."""
    if begun is None:
        return True
    try:
        _check(
            "", "", begun, _packed(now), {where: part for where, part in _parts("", now) if isinstance(part, Tensor)}
        )
    except CheckpointError:
        return False
    return True


def _place(kind: str, number: int, name: str) -> str:
    return f"{kind}/{number}/{name}"


def _tensors_of(kind: str, places: Sequence[Mapping[Any, Any]]) -> dict[str, Tensor]:
    found = (
        (_place(kind, n, name), value)
        for n, place in enumerate(places)
        for name, value in place.items()
        if isinstance(name, str)
    )
    held = ((where, value) for where, value in found if _is_entry(value))
    return {where: v for place, value in held for where, v in _parts(place, value) if isinstance(v, Tensor)}


def _states_of(update: Update) -> list[Mapping[Any, Any]]:
    """The state of each parameter in each optimiser."""
    return [optimizer.state.get(p, {}) for optimizer in update.optimizers for p in _parameters_of(optimizer)]


def _entries_of(update: Update) -> list[dict[Any, Any]]:
    """The same, `_OTHER` in the place of tensors that came with the steps and share memory: each would be a copy."""
    states = _states_of(update)
    held = Counter(memory(tensor) for state in states for value in state.values() for tensor in _tensors_in(value))
    parameters = {memory(p) for optimizer in update.optimizers for p in _parameters_of(optimizer)}
    shared = ({where for where, count in held.items() if count > 1} | parameters) - {None, 0}

    def is_shared(value: Any) -> bool:
        return any(memory(tensor) in shared and not update.had(tensor) for tensor in _tensors_in(value))

    return [{name: _OTHER if is_shared(value) else value for name, value in state.items()} for state in states]


def _tensors_in(value: Any) -> list[Tensor]:
    return [part for _, part in _parts("", value) if isinstance(part, Tensor)] if _is_entry(value) else []


def _parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
