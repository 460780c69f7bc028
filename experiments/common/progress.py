"""Where a long experiment is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from ppl_vae.progress import is_watched

__all__ = ["steps"]

Part = TypeVar("Part")


def steps(parts: Sequence[Part], title: str) -> Iterator[Part]:
    """Go through the parts of an experiment under a bar with the time that is left, where somebody is looking."""
    yield from track(parts, title, console=Console(stderr=True), disable=not is_watched(sys.stderr))
