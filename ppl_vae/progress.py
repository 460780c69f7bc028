"""The progress bar of long work, drawn at most five times a second and only where somebody is looking."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

__all__ = ["Progress", "is_watched"]

_INTERVAL = 0.2


def is_watched(stream: Any) -> bool:
    """Whether a stream is a terminal: not one that is closed, nor None, which Python has for one it was not given."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


class Progress:
    """A bar with rate and a text of one's own; `due` says whether drawing it again is worth the work.

    Example:
        >>> with Progress("work", total=3, enabled=False) as bar:
        ...     bar.update(3, "done")
    """

    def __init__(self, title: str, total: int, enabled: bool, unit: str = "it") -> None:
        self._total = total
        self._unit = unit
        self._title = title
        self._enabled = enabled and is_watched(sys.stderr)
        self._last = 0.0
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        if self._enabled:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(24),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._bar.stop()

    @property
    def due(self) -> bool:
        """Whether the bar is shown and has not been drawn for a fifth of a second."""
        return self._enabled and time.monotonic() - self._last > _INTERVAL

    def update(self, done: int, text: str) -> None:
        """Draws the bar at `done` of the total."""
        if not self._enabled:
            return
        self._last = time.monotonic()
        rate = done / max(self._last - self._start, 1e-9)
        self._bar.update(
            self._task, completed=done, text=f"{done:,}/{self._total:,} {rate:,.0f} {self._unit}/s  {text}"
        )
