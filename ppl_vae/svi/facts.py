"""What decides the numbers of a run: whoever resumes it has to be given the same."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.distributed import Group
from ppl_vae.errors import first_line
from ppl_vae.pair import Pair
from ppl_vae.rundir import as_plain
from ppl_vae.storage.files import meanwhile
from ppl_vae.storage.versions import version_of
from ppl_vae.svi.code import CODE, code_within
from ppl_vae.svi.programs import facts_of_programs
from ppl_vae.svi.settings import FitSettings

__all__ = ["Change", "differences", "facts_of", "facts_of_machine", "other_programs", "python_version"]

_BLOCK, _SAMPLE, _READERS = 4096, 1024, 4
_SUBNORMAL = 1e-40  # zero where torch.set_flush_denormal(True)
_FREE = ("epochs", "steps", "on_nonfinite")  # may be others when a run is resumed
_VERSIONS = {"ppl_vae": "ppl-vae", "torch": "torch", "pyro": "pyro-ppl", "numpy": "numpy"}


def facts_of(
    pair: Pair,
    settings: FitSettings,
    compile: str | bool,
    data: tuple[Rows, Rows | None],
    device: torch.device,
    group: Group,
) -> dict[str, Any]:
    """What decides the numbers of a run: `run` and `programs` may not change as it resumes, `machine` is warned of."""
    rows, held_out = data
    run = {name: value for name, value in as_plain(settings).items() if name not in _FREE}
    run["compile"] = compile
    run |= {f"{CODE}{name}": code_within(getattr(settings, name)) for name in ("objective", "optimizer", "schedule")}
    for name, own in {"data": rows, "validation": held_out}.items():
        run |= {name: None if own is None else fingerprint(own), f"{name} on disk": bool(own and own.mapped)}
    return {"run": run, "machine": facts_of_machine(device, group), "programs": facts_of_programs(pair)}


def facts_of_machine(device: torch.device, group: Group) -> dict[str, Any]:
    """Versions, device and settings of torch, all that rounding may depend on."""
    return {
        **{name: version_of(package) or "unknown" for name, package in _VERSIONS.items()},
        "python": python_version(),
        "build of torch": _hash(torch.version.git_version, torch.__config__.show()),
        "device": device.type,
        "GPU": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "instructions of the CPU": torch.backends.cpu.get_cpu_capability(),
        "precision of float32": _precision(),
        "default type": str(torch.get_default_dtype()),
        "subnormal numbers": bool(torch.full((1,), _SUBNORMAL, dtype=torch.float32) * 1.0 > 0),
        "kernels of oneDNN": torch.backends.mkldnn.enabled,
        "search for kernels of cuDNN": torch.backends.cudnn.benchmark,
        "threads": torch.get_num_threads(),
        "processes": group.size,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def python_version() -> str:
    """The version of Python, as far as it decides what code looks like."""
    return ".".join(platform.python_version_tuple()[:2])


def _hash(*words: str | None) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


def _precision() -> str:
    """How matrices of single precision are multiplied."""
    try:
        return f"{torch.get_float32_matmul_precision()}, TF32 in cuDNN {torch.backends.cudnn.allow_tf32}"
    except RuntimeError as error:  # set in torch's newer way, which the older one cannot say
        return first_line(error)


def fingerprint(rows: Rows) -> str:
    """A hash of shapes, types and rows: of all rows in memory, of about a thousand of a file, evenly spread."""
    parts: list[Tensor | slice] = [slice(start, start + _BLOCK) for start in range(0, len(rows), _BLOCK)]
    if rows.mapped:
        parts = [torch.arange(0, len(rows), max(1, len(rows) // _SAMPLE))]
    with ThreadPoolExecutor(_READERS) as pool:  # hashing leaves the interpreter to others
        digests = [meanwhile(pool, _digest, rows, part) for part in parts]
        return hashlib.sha256(b"".join(digest() for digest in digests)).hexdigest()


def _digest(rows: Rows, which: Tensor | slice) -> bytes:
    digest = hashlib.sha256()
    for array in rows.take(which, torch.device("cpu")):
        digest.update(json.dumps([len(rows), list(array.shape), str(array.dtype)]).encode())
        digest.update(array.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()


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
    names = [name for name in {**before, **now} if same_python or not name.startswith(CODE)]
    changes = [Change(name, before.get(name), now.get(name)) for name in names]
    return [change for change in changes if change.before != change.now]


def other_programs(known: Any, facts: Mapping[str, Any], moved: Collection[str]) -> list[Change]:
    """The facts of programs that are not what is known of them, but for values that the fit itself has `moved`.

    Entries that have come to a list are a record. Where versions are others, and libraries may keep other values, those
    are compared that both know.
    """
    versions = [*_VERSIONS, "python"]
    before, now = _part(known, "machine"), facts["machine"]
    alike = all(before.get(name) == now[name] for name in versions)
    both = _part(known, "programs").keys() & facts["programs"].keys()
    changes = differences(known, facts, "programs")
    own = [c for c in changes if not any(c.name == name or c.name.startswith(f"{name}.") for name in moved)]
    recorded = {c.name for c in own if c.before is None and c.name.rpartition(".")[2].isdecimal()}
    return [change for change in own if change.name not in recorded and (alike or change.name in both)]


def _part(known: Any, part: str) -> Mapping[str, Any]:
    found = known.get(part) if isinstance(known, Mapping) else None
    return found if isinstance(found, Mapping) else {}
