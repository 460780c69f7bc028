"""What was measured, in words for the terminal and as plain values for JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from benchmarks.evaluation import Memory
from benchmarks.timing import Measured, Spread

__all__ = [
    "MEMORY_LIMIT",
    "environment",
    "memory_record",
    "memory_text",
    "milliseconds",
    "number",
    "to_record",
    "to_text",
]

MEMORY_LIMIT = 10**9  # bytes
_PACKAGES = ("torch", "pyro-ppl", "numpy", "scikit-learn")


def to_text(measured: Measured) -> Group:
    """Lay a case out: time and ratio of each side, median and range over the rounds."""
    case = measured.case
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column(f"ms per {case.unit}", justify="right", no_wrap=True)
    table.add_column(f"ratio to {case.reference}", justify="right", no_wrap=True)
    for label in case.sides:
        table.add_row(label, _text(milliseconds(measured, label)), _text(measured.ratio(label)))
    verdicts = [
        f"{limit.side} / {limit.over}: {_text(measured.ratio(limit.side, limit.over))}, limit {limit.ratio}, "
        + ("kept" if measured.keeps(limit) else "MISSED")
        for limit in case.limits
    ]
    title = f"{case.title}: median, range of {len(measured.seconds[case.reference])} rounds"
    return Group(title, table, *verdicts, "")


def to_record(measured: Measured) -> dict[str, Any]:
    """Return a case as plain values for JSON, times in seconds, every round kept."""
    case = measured.case
    return {
        "name": case.name,
        "title": case.title,
        "unit": f"seconds per {case.unit}",
        "reference": case.reference,
        "floor": case.floor,
        "limits": [
            {
                **limit._asdict(),
                "found": measured.ratio(limit.side, limit.over)._asdict(),
                "kept": measured.keeps(limit),
            }
            for limit in case.limits
        ],
        "sides": {
            label: {
                "seconds": list(measured.seconds[label]),
                "time": measured.time(label)._asdict(),
                "ratio": measured.ratio(label)._asdict(),
            }
            for label in case.sides
        },
    }


def memory_text(memory: Memory) -> str:
    """Say in a sentence what an evaluation needs."""
    before, peak = memory.before / 1e6, memory.peak / 1e6
    verdict = "kept" if memory.peak <= MEMORY_LIMIT else "MISSED"
    return (
        f"Peak memory of log_likelihood, {memory.num_data} images at K = {memory.num_samples:,}: {peak:.0f} MB, "
        f"{before:.0f} MB of them there before it; limit {MEMORY_LIMIT / 1e6:.0f} MB, {verdict}"
    )


def memory_record(memory: Memory) -> dict[str, Any]:
    """Return the memory as plain values for JSON, in bytes."""
    return {**memory._asdict(), "limit": MEMORY_LIMIT, "within_limit": memory.peak <= MEMORY_LIMIT}


def environment() -> dict[str, Any]:
    """Return what the times depend on besides the code."""
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def milliseconds(measured: Measured, label: str) -> Spread:
    """Return the time of a side in milliseconds."""
    return Spread(*(1e3 * value for value in measured.time(label)))


def _text(value: Spread) -> str:
    return f"{number(value.median)} [{number(value.low)}, {number(value.high)}]"


def number(value: float) -> str:
    """Write a number with three digits, and none after the point where there are three before it."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
