"""What was measured, in words for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from benchmarks.results import Record

__all__ = ["number", "scale", "to_text", "verdict"]

_LONG = 10.0  # seconds, from which milliseconds are too many digits


def to_text(record: Record) -> Group:
    """Lay a case out: cost and ratio of each side, median and range over the rounds, and which limits hold."""
    factor, symbol = scale(record)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column(f"{symbol} per {record['unit']}", justify="right", no_wrap=True)
    table.add_column(f"ratio to {record['reference']}", justify="right", no_wrap=True)
    for label, side in record["sides"].items():
        table.add_row(label, _text(side["cost"], factor), _text(side["ratio"]))
    lines = [verdict(record, limit) for limit in record["limits"]]
    if record["slope"] is not None:
        lines.append(f"slope of the logarithms: {_text(record['slope'])}")
    lines += [f"not measured: {label}: {why}" for label, why in record["missing"].items()]
    rounds = len(record["sides"][record["reference"]]["costs"])
    title = f"{record['title']}: median, range; rounds: {rounds}; {record['device']}"
    return Group(title, table, *lines, "")


def verdict(record: Record, limit: Record) -> str:
    """Say whether a limit holds."""
    alone = limit["over"] is None
    factor, symbol = scale(record) if alone else (1.0, "")
    what = limit["side"] if alone else f"{limit['side']} / {limit['over']}"
    found = "not measured" if limit["found"] is None else _text(limit["found"], factor)
    word = {True: ", kept", False: ", MISSED", None: ""}[limit["kept"]]
    return f"{what}: {found}, limit {number(limit['at_most'] * factor)} {symbol}".rstrip() + word


def scale(record: Record) -> tuple[float, str]:
    """Return the factor and the symbol of the unit in which the costs of a case are read."""
    if record["quantity"] == "bytes":
        return 1e-6, "MB"
    median = record["sides"][record["reference"]]["cost"]["median"]
    return (1.0, "s") if median >= _LONG else (1e3, "ms")


def number(value: float) -> str:
    """Write a number with three digits, and none after the point where there are three before it."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _text(value: Mapping[str, float], factor: float = 1.0) -> str:
    median, low, high = (number(factor * value[name]) for name in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"
