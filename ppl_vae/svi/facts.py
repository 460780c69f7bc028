"""What decides the numbers of a run: whoever resumes it has to be given the same."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import platform
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple

import torch

from ppl_vae.arrays import Rows
from ppl_vae.distributed import Group
from ppl_vae.rundir import as_plain
from ppl_vae.storage.versions import version_of
from ppl_vae.svi.settings import FitSettings

__all__ = ["Change", "differences", "facts_of"]

_BLOCK, _SAMPLE = 4096, 1024
_FREE = ("epochs", "steps", "on_nonfinite")  # may be others when a run is resumed
_CODE = "code of "
_VERSIONS = {"ppl_vae": "ppl-vae", "torch": "torch", "pyro": "pyro-ppl", "numpy": "numpy"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def facts_of(
    settings: FitSettings, rows: Rows, held_out: Rows | None, device: torch.device, group: Group
) -> dict[str, Any]:
    """What decides the numbers of a run: `run` may not change when it is resumed, `machine` is warned of."""
    run = {name: value for name, value in as_plain(settings).items() if name not in _FREE}
    run |= {f"{_CODE}{name}": _code(getattr(settings, name)) for name in ("objective", "optimizer", "schedule")}
    for name, data in {"data": rows, "validation": held_out}.items():
        run |= {name: None if data is None else fingerprint(data), f"{name} on disk": bool(data and data.mapped)}
    machine = {
        **{name: version_of(package) or "unknown" for name, package in _VERSIONS.items()},
        "python": ".".join(platform.python_version_tuple()[:2]),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "processes": group.size,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }
    return {"run": run, "machine": machine}


def fingerprint(rows: Rows) -> str:
    """A hash of shapes, types and rows: of all rows in memory, of about a thousand of a file, evenly spread."""
    digest = hashlib.sha256()
    if rows.mapped:
        blocks = iter([rows.take(torch.arange(0, len(rows), max(1, len(rows) // _SAMPLE)), torch.device("cpu"))])
    else:
        blocks = (block for _, block in rows.blocks(_BLOCK, torch.device("cpu")))
    for block in blocks:
        for array in block:
            digest.update(json.dumps([len(rows), list(array.shape), str(array.dtype)]).encode())
            digest.update(array.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _code(value: Any) -> str:
    """A hash of the Python functions within a value: their code, defaults, and plain values that they close over."""
    return hashlib.sha256(repr(_described(value, 0)).encode(errors="backslashreplace")).hexdigest()[:16]


def _described(value: Any, depth: int) -> Any:
    if isinstance(value, _PLAIN):
        return repr(value)
    if depth > 8:
        return type(value).__qualname__
    deeper = functools.partial(_described, depth=depth + 1)
    if inspect.ismethod(value):
        return deeper(value.__func__)
    if isinstance(value, FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        return [deeper(value.__code__), deeper(value.__defaults__), deeper(value.__kwdefaults__), deeper(cells)]
    if isinstance(value, CodeType):
        return [value.co_code.hex(), value.co_names, [deeper(constant) for constant in value.co_consts]]
    if isinstance(value, functools.partial):
        return [deeper(value.func), deeper(value.args), deeper(value.keywords)]
    if isinstance(value, Mapping):
        return sorted((repr(name), repr(deeper(entry))) for name, entry in value.items())
    if isinstance(value, tuple | list):
        return [deeper(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(deeper(entry)) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, deeper(getattr(value, field.name))) for field in fields(value)]
    return getattr(value, "__qualname__", None) or type(value).__qualname__


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is in it yet
        return None


class Change(NamedTuple):
    """A fact that is not what it was."""

    name: str
    before: Any
    now: Any


def differences(known: Any, facts: Mapping[str, Any], part: str) -> list[Change]:
    """The facts of a part, `run` or `machine`, that are not what is known of them.

    The code of functions is compared under the same version of Python only, which decides what it looks like.
    """
    before, now = _part(known, part), facts[part]
    same_python = _part(known, "machine").get("python") == facts["machine"]["python"]
    names = [name for name in {**before, **now} if same_python or not name.startswith(_CODE)]
    changes = [Change(name, before.get(name), now.get(name)) for name in names]
    return [change for change in changes if change.before != change.now]


def _part(known: Any, part: str) -> Mapping[str, Any]:
    found = known.get(part) if isinstance(known, Mapping) else None
    return found if isinstance(found, Mapping) else {}
