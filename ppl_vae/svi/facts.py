"""What decides the numbers of a run: whoever resumes it has to be given the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ppl_vae.arrays import Rows
from ppl_vae.distributed import Group
from ppl_vae.rundir import as_plain
from ppl_vae.svi.settings import FitSettings

__all__ = ["Change", "facts_of", "first_difference"]

_ROWS = 1024
_FREE = ("epochs", "steps", "on_nonfinite")  # may be others when a run is resumed


def facts_of(
    settings: FitSettings, rows: Rows, held_out: Rows | None, device: torch.device, group: Group
) -> dict[str, Any]:
    """What decides the numbers of a run: `run` may not change when it is resumed, `machine` is warned of."""
    run = {name: value for name, value in as_plain(settings).items() if name not in _FREE}
    run |= {"data": _fingerprint(rows), "validation": None if held_out is None else _fingerprint(held_out)}
    machine = {
        "torch": str(torch.__version__),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "processes": group.size,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }
    return {"run": run, "machine": machine}


def _fingerprint(rows: Rows) -> str:
    """A hash of number, shapes, types and about a thousand rows, evenly spread."""
    digest = hashlib.sha256()
    stride = max(1, len(rows) // _ROWS)
    for array in rows.take(torch.arange(0, len(rows), stride), torch.device("cpu")):
        digest.update(json.dumps([len(rows), list(array.shape), str(array.dtype)]).encode())
        digest.update(array.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Change(NamedTuple):
    """A fact that is not what it was."""

    name: str
    before: Any
    now: Any


def first_difference(known: Any, facts: Mapping[str, Any], part: str) -> Change | None:
    """The first fact of a part, `run` or `machine`, that is not what is known of it."""
    before = known.get(part) if isinstance(known, Mapping) else None
    before, now = before if isinstance(before, Mapping) else {}, facts[part]
    changes = (Change(name, before.get(name), now.get(name)) for name in {**before, **now})
    return next((change for change in changes if change.before != change.now), None)
