"""The self-test: all cases on the devices of the machine, and their table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from ppl_vae.device import choose_device
from ppl_vae.progress import Progress
from ppl_vae.selftesting.accounts import aggregate, families
from ppl_vae.selftesting.chains import annealing, constrained, schedules
from ppl_vae.selftesting.evaluations import (
    bound_taken_apart,
    calibration,
    comparison,
    curve,
    escalation,
    precision,
    predictive,
)
from ppl_vae.selftesting.likelihoods import exact_guides, importance_sampling, mixture, quadrature, trust
from ppl_vae.selftesting.machinery import compiled_steps, noise
from ppl_vae.selftesting.objectives import bounds, gradients
from ppl_vae.selftesting.programs import Setting
from ppl_vae.selftesting.rows import Row, failed

__all__ = ["CASES", "SelfTest", "selftest"]

CASES: dict[str, Callable[[Setting], Iterable[Row]]] = {
    "exact-guides": exact_guides,
    "importance-sampling": importance_sampling,
    "trust": trust,
    "bounds": bounds,
    "gradients": gradients,
    "mixture": mixture,
    "quadrature": quadrature,
    "annealing": annealing,
    "schedules": schedules,
    "constrained": constrained,
    "gaps-and-ledger": bound_taken_apart,
    "families": families,
    "aggregate": aggregate,
    "calibration": calibration,
    "escalation": escalation,
    "precision": precision,
    "k-curve": curve,
    "comparison": comparison,
    "predictive": predictive,
    "noise": noise,
    "compiled-steps": compiled_steps,
}
_HEADINGS = ("what", "expected", "found", "±", "off by", "allowed", "verdict")


@dataclass(frozen=True)
class SelfTest:
    """What the self-test found."""

    rows: Mapping[str, tuple[Row, ...]]
    """Device -> its lines."""
    seconds: float
    """Wall time."""

    @property
    def passed(self) -> bool:
        """Whether no line failed."""
        return not any(row.verdict == "FAIL" for rows in self.rows.values() for row in rows)

    def __str__(self) -> str:
        lines = []
        for device, rows in self.rows.items():
            cells = [_HEADINGS, *(_cells(row) for row in rows)]
            widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADINGS))]
            lines.append(f"{device}, nats; exact answers and what was found")
            lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
            lines += [f"{row.what}: {row.note}" for row in rows if row.note]
        verdicts = [row.verdict for rows in self.rows.values() for row in rows]
        failures, omitted = verdicts.count("FAIL"), verdicts.count("left out")
        end = f"{failures} of {len(verdicts)} lines FAILED" if failures else f"all {len(verdicts) - omitted} lines pass"
        return "\n".join([*lines, f"{end}{f', {omitted} left out' * bool(omitted)} ({self.seconds:.0f} s)"])


def selftest(
    device: str | torch.device = "auto", *, only: Iterable[str] | None = None, seed: int = 0, progress: bool = True
) -> SelfTest:
    """Holds estimates, their errors, bounds and gradients against exact answers on this machine: seconds on a CPU.

    Lines with a standard error fail by chance once in a million; others are exact up to rounding. An error in a case is
    a failed line.

    Args:
        device: "auto" is the CPU, and CUDA beside it where there is one.
        only: Names of cases, all of them if None: `ppl_vae.selftesting.run.CASES`.
        seed: Of data and noise.
        progress: Show a progress bar where there is a terminal.

    Returns:
        A `SelfTest`; `print` gives the table.

    Raises:
        ValueError: There is no such case.
        PplVaeError: There is no such device.

    Example:
        >>> selftest("cpu", only=["mixture"], progress=False).passed
        True
    """
    chosen = tuple(CASES) if only is None else tuple(only)
    if unknown := [name for name in chosen if name not in CASES]:
        raise ValueError(f"only: expected cases among {', '.join(CASES)}, found {unknown[0]!r}")
    start, rows = time.monotonic(), {}
    devices = _devices(device)
    with Progress("self-test", len(devices) * len(chosen), progress, "cases") as bar:
        for i, place in enumerate(devices):
            found: list[Row] = []
            for j, name in enumerate(chosen):
                bar.update(i * len(chosen) + j, name)
                found += _rows(name, Setting(place, seed))
            rows[str(place)] = tuple(found)
    return SelfTest(rows, time.monotonic() - start)


def _devices(device: str | torch.device) -> list[torch.device]:
    if device != "auto":
        return [choose_device(device)]
    return [torch.device("cpu"), *([choose_device("cuda")] if torch.cuda.is_available() else [])]


def _rows(name: str, setting: Setting) -> list[Row]:
    rows: list[Row] = []
    try:
        rows.extend(CASES[name](setting))
    except Exception as error:  # whatever goes wrong on the user's machine is what the table is to say
        rows.append(failed(name, error))
    return rows


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.what,
        f"{row.expected:.5f}",
        f"{row.found:.5f}",
        "" if row.stderr is None else f"{row.stderr:.5f}",
        f"{row.error:.1e}",
        f"{row.allowed:.1e}",
        row.verdict,
    )
