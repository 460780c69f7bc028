"""A history as tensors: as large as a run is long, and exact, which what JSON holds of a state need not be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae.errors import CheckpointError
from ppl_vae.history import History, Record

__all__ = ["history_of", "names_of_history", "recorded"]

_HISTORY, _KL = "history", "history-kl/"
_COUNTS = ("epoch", "step")
_NUMBERS = [name for name in Record._fields if name != "validation_kl"]


def recorded(history: History) -> dict[str, Tensor]:
    """Numbers of the records, (epochs, fields), and for each latent site the KL of its scalars, (epochs, D).

    Example:
        >>> history = History([Record(1, 10, -2.0, -2.0, 1.5, 0.5, 3.0, 1.0, 1e-3, 0.1, float("nan"))])
        >>> recorded(history)["history"].shape, str(history_of(recorded(history))[0]) == str(history[0])
        (torch.Size([1, 13]), True)
    """
    numbers = [[float(getattr(record, name)) for name in _NUMBERS] for record in history]
    tensors = {_HISTORY: torch.tensor(numbers, dtype=torch.float64).reshape(len(history), len(_NUMBERS))}
    sites = history[0].validation_kl if len(history) else {}
    kl = {f"{_KL}{number:09d}/{site}": history.kl(site) for number, site in enumerate(sites)}
    return tensors | {name: torch.from_numpy(numbers).double() for name, numbers in kl.items()}


def names_of_history(tensors: Mapping[str, Tensor]) -> set[str]:
    """The tensors that belong to the history."""
    return {name for name in tensors if name == _HISTORY or name.startswith(_KL)}


def history_of(tensors: Mapping[str, Tensor]) -> History:
    """The history that `recorded` made this of.

    Raises:
        CheckpointError: It has made none like this.
    """
    numbers = _matrix(tensors, _HISTORY, len(_NUMBERS))
    names = sorted(names_of_history(tensors) - {_HISTORY})
    kl = {name[len(_KL) :].partition("/")[2]: _matrix(tensors, name, None, len(numbers)) for name in names}
    return History([_record(row, _at(kl, epoch)) for epoch, row in enumerate(numbers.tolist())])


def _record(row: list[float], kl: Mapping[str, tuple[float, ...]]) -> Record:
    values: dict[str, Any] = dict(zip(_NUMBERS, row, strict=True))
    for name in _COUNTS:
        if not values[name] >= 0 or values[name] % 1:
            raise CheckpointError(f"{_HISTORY}: expected whole numbers of {name}s, found {values[name]}")
    return Record(**values | {name: int(values[name]) for name in _COUNTS}, validation_kl=kl)


def _at(kl: Mapping[str, Tensor], epoch: int) -> Mapping[str, tuple[float, ...]]:
    return {site: tuple(numbers[epoch].tolist()) for site, numbers in kl.items()}


def _matrix(tensors: Mapping[str, Tensor], name: str, columns: int | None, rows: int | None = None) -> Tensor:
    found = tensors.get(name)
    if found is None or found.dtype != torch.float64 or found.dim() != 2:
        raise CheckpointError(f"{name}: expected numbers of float64 by epoch, found {_words(found)}")
    if columns not in (None, found.shape[1]) or rows not in (None, found.shape[0]):
        raise CheckpointError(f"{name}: expected ({rows or 'epochs'}, {columns or 'D'}), found {_words(found)}")
    return found


def _words(found: Tensor | None) -> str:
    return "none" if found is None else f"a tensor of shape {tuple(found.shape)}, {found.dtype}"
