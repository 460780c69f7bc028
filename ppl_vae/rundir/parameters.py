"""The parameters that a run leaves, as the tensors of a file, with what the programs of the pair keep beside them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_vae.belongings import Belongings, Taken
from ppl_vae.errors import CheckpointError, DataError
from ppl_vae.pair import Pair, misfit
from ppl_vae.storage.exact import exact, of_exact
from ppl_vae.storage.plain import decode, encode
from ppl_vae.storage.tensors import under

__all__ = ["load_parameters", "parameters_of"]

_VALUES, _VALUE, _BUFFER = "values", "value/", "buffer/"  # no name of a state begins like these: see `Pair`


def parameters_of(pair: Pair, kept: Taken | None) -> dict[str, Tensor]:
    """Parameters and buffers, and what a fit has changed of what the programs keep; nothing else where it has not."""
    state = {**pair.state_dict(), **{f"{_BUFFER}{name}": buffer for name, buffer in _unsaved(pair).items()}}
    if kept is None:
        return state
    if kept.plain or kept.lost:
        text = encode({"values": exact(kept.plain), "lost": list(kept.lost)})
        state |= {_VALUES: torch.frombuffer(bytearray(text), dtype=torch.uint8)}
    return state | {f"{_VALUE}{name}": tensor for name, tensor in kept.tensors.items()}


@torch.no_grad()
def load_parameters(pair: Pair, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Gives a pair what `parameters_of` made of another one; what a file cannot hold a warning names.

    Raises:
        DataError: They are those of another pair; the first entry that differs is named.
        StorageError: The values are of another form.
    """
    kept, buffers = under(_VALUE, tensors), under(_BUFFER, tensors)
    state = {name: t for name, t in tensors.items() if name != _VALUES and not name.startswith((_VALUE, _BUFFER))}
    plain, lost = _plain(tensors, path)
    belongings = Belongings(pair) if plain or kept else None
    unknown = "" if belongings is None else belongings.misplaced(plain, kept)
    remade = set() if belongings is None or unknown else belongings.remade(pair, [*plain, *kept])
    own = _unsaved(pair)
    apart = remade | (own.keys() - buffers.keys())  # which earlier versions did not write
    if found := misfit(pair.state_dict(), state, remade) or misfit(own, buffers, apart):
        raise DataError(f"{path}: these parameters do not fit the pair: {found}; give it the pair that was trained")
    if unknown:
        raise DataError(
            f"{path}: {unknown}: expected a value of that name in the programs, which training has changed, found "
            "none; give it a new pair of the same programs, and run pair.prepare(*batch) first"
        )
    if belongings is not None:
        belongings.put(plain, kept)
    pair.load_state_dict(state)
    for name, buffer in _unsaved(pair).items():
        if name in buffers:
            buffer.copy_(buffers[name])
    if lost:
        warnings.warn(
            f"{path} does not hold {', '.join(map(repr, lost[:5]))}, which the programs had changed in training: what "
            "reads them gives other numbers than the trained pair",
            UserWarning,
            stacklevel=3,
        )


def _unsaved(pair: Pair) -> dict[str, Tensor]:
    """Buffers that `state_dict` leaves out, which steps may move, but for those of objectives: they begin anew."""
    found = {
        f"{where}.{name}".removeprefix("."): module._buffers.get(name)
        for where, module in pair.named_modules()
        if module is not pair.store
        for name in sorted(module._non_persistent_buffers_set)
    }
    return {name: buffer for name, buffer in found.items() if buffer is not None}


def _plain(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Any], list[str]]:
    """Numbers and text, and names of what is lost."""
    if (text := tensors.get(_VALUES)) is None:
        return {}, []
    try:
        found = of_exact(decode(text.numpy().tobytes(), path))
        return dict(found["values"]), [str(name) for name in found["lost"]]
    except (CheckpointError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected values as they were written, found others ({error})") from error
