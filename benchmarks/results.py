"""What was measured, as plain values, and the file that keeps them: a case measured again replaces itself alone."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES
from benchmarks.peer import PEERS_PYTHON
from benchmarks.setting import Setting
from benchmarks.timing import Limit, Measured

__all__ = ["Record", "merged", "read_records", "to_record", "write_records"]

Record = dict[str, Any]
_PACKAGES = ("torch", "pyro-ppl", "numpy", "scikit-learn")
_PEERS = ("numpyro", "jax", "jaxlib", "pythae", "torch")


def to_record(measured: Measured, setting: Setting) -> Record:
    """Return a case as plain values for JSON, every round kept, with when and where it was measured."""
    case, found = measured.case, measured.slope()
    return {
        "name": case.name,
        "device": setting.device.type,
        "title": case.title,
        "unit": case.unit,
        "quantity": case.quantity,
        "reference": case.reference,
        "floor": case.floor,
        "limits": [_limit_record(measured, limit) for limit in case.limits],
        "sides": {
            label: {
                "costs": list(costs),
                "cost": measured.cost(label)._asdict(),
                "ratio": measured.ratio(label)._asdict(),
            }
            for label, costs in measured.costs.items()
        },
        "missing": dict(measured.missing),
        "sizes": dict(case.sizes),
        "slope": None if found is None else found._asdict(),
        "quick": setting.quick,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "environment": _environment(setting),
    }


def read_records(path: Path) -> list[Record]:
    """Return what a file holds; nothing if there is none."""
    return json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else []


def merged(old: Sequence[Record], new: Sequence[Record]) -> list[Record]:
    """Return old and new records in the order of the cases; of one case on one device only the new one."""
    records = {(record["name"], record["device"]): record for record in (*old, *new)}
    order = list(CASES)
    return sorted(records.values(), key=lambda record: (record["device"], order.index(record["name"])))


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write the file anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cases": records}, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _limit_record(measured: Measured, limit: Limit) -> Record:
    found = measured.found(limit)
    return {
        **limit._asdict(),
        "found": None if found is None else found._asdict(),
        "kept": measured.keeps(limit),
    }


def _environment(setting: Setting) -> Record:
    """Return what costs depend on besides the code."""
    on_gpu = setting.device.type == "cuda"
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(setting.device) if on_gpu else None,
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "peers": _peers(),
    }


def _peers() -> dict[str, str]:
    """Return the versions in the environment of the peers; nothing where there is none."""
    folders = [str(folder) for folder in PEERS_PYTHON.parents[1].glob("lib/python*/site-packages")]
    found = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions(path=folders)}
    return {name: found[name] for name in _PEERS if name in found}
