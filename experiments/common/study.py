"""A study: measure, keep the record, draw it; the figure can be drawn again from the record alone."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure

from ppl_vae.errors import StorageError, first_line

__all__ = ["RESULTS", "Findings", "Study"]

RESULTS = Path(__file__).resolve().parents[1] / "results"
_PACKAGES = ("torch", "pyro-ppl", "numpy")
Config = TypeVar("Config")


class Findings(NamedTuple):
    """What a study found: all that its figure needs."""

    numbers: dict[str, Any]
    """Numbers, texts, lists and dictionaries of them; NaN and infinities become null in the record."""
    pictures: Mapping[str, np.ndarray] = {}
    """Images in [0, 1], by name; kept with 256 grey levels."""


@dataclass(frozen=True)
class Study(Generic[Config]):
    """One question: how it is measured, how it is drawn, and its two sizes.

    Args:
        name: Of the script, and of the files that it leaves.
        measure: Does all the work of a configuration, a frozen dataclass.
        draw: Makes the figure from findings read back from the record, and from nothing else.
        full: The configuration whose numbers are reported.
        small: The one that the tests run, in seconds.
    """

    name: str
    measure: Callable[[Config], Findings]
    draw: Callable[[Findings], Figure]
    full: Config = field(kw_only=True)
    small: Config = field(kw_only=True)

    def run(self, config: Config | None = None, folder: Path = RESULTS) -> Findings:
        """Measure and leave `NAME.json`, `NAME.npz` if there are pictures, and `NAME.png` in a folder."""
        config = self.full if config is None else config
        start, start_cpu = time.perf_counter(), _processor_seconds()
        found = self.measure(config)
        record = {
            "experiment": self.name,
            "config": asdict(config),  # type: ignore[call-overload]
            "minutes": round((time.perf_counter() - start) / 60, 2),
            "cpu_minutes": round((_processor_seconds() - start_cpu) / 60, 2),
            "environment": _environment(),
            "numbers": _plain(found.numbers),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if found.pictures:
            levels = {name: (np.clip(p, 0, 1) * 255).round().astype(np.uint8) for name, p in found.pictures.items()}
            np.savez_compressed(folder / f"{self.name}.npz", **levels)
        return self._drawn(self.read(folder), folder)

    def redraw(self, folder: Path = RESULTS) -> Findings:
        """Draw `NAME.png` from the record in a folder.

        Raises:
            StorageError: The record is damaged, or lacks what the figure needs.
        """
        found = self.read(folder)
        with _of_record(*(folder / f"{self.name}.{kind}" for kind in ("json", "npz"))):
            return self._drawn(found, folder)

    def _drawn(self, found: Findings, folder: Path) -> Findings:
        self.draw(found).savefig(folder / f"{self.name}.png", dpi=110)
        return found

    def read(self, folder: Path = RESULTS) -> Findings:
        """Findings of an earlier run.

        Raises:
            StorageError: A file of the record is damaged.
        """
        with _of_record(path := folder / f"{self.name}.json"):
            numbers = json.loads(path.read_text(encoding="utf-8"))["numbers"]
        pictures: dict[str, np.ndarray] = {}
        if (path := folder / f"{self.name}.npz").exists():
            with _of_record(path), path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                pictures = {name: kept[name] / 255 for name in kept.files}
        return Findings(numbers, pictures)

    def perform(self, *, small: bool = False, redraw: bool = False, folder: Path | None = None) -> list[Path]:
        """Run a form, or only draw its figure again; return the files of the record and the figure.

        Args:
            small: Take the form that the tests run.
            redraw: Draw from the record.
            folder: Where record and figure are; by default `results`, and a folder in it for the small form, which
                so never replaces the numbers that are reported.
        """
        folder = folder or (RESULTS / "small" if small else RESULTS)
        if redraw:
            self.redraw(folder)
        else:
            self.run(self.small if small else self.full, folder)
        return [path for ending in ("json", "npz", "png") if (path := folder / f"{self.name}.{ending}").exists()]

    def main(self, description: str | None) -> None:
        """Run from the command line."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--small", action="store_true", help="the form that the tests run")
        parser.add_argument("--redraw", action="store_true", help="only draw the figure again, from the record")
        parser.add_argument(
            "--results", type=Path, help="folder of record and figure; experiments/results, or its folder small"
        )
        options = parser.parse_args()
        for path in self.perform(small=options.small, redraw=options.redraw, folder=options.results):
            print(path)


@contextmanager
def _of_record(*paths: Path) -> Iterator[None]:
    """Context in which what fails, as files that were cut or changed do in many ways, is blamed on those that exist."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise StorageError(
            f"{', '.join(str(path) for path in paths if path.exists())}: expected the whole record of a run of the "
            f"experiment, found {type(error).__name__}: {first_line(error)}: run it without --redraw"
        ) from error


def _processor_seconds() -> float:
    """Of this process and of those that it has started and that are done."""
    return sum(os.times()[:4])


def _environment() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{package: version(package) for package in _PACKAGES},
    }


def _plain(value: Any) -> Any:
    """The same of what JSON knows."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
