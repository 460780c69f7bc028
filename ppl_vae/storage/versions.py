"""Which version of a package is installed."""

from __future__ import annotations

import importlib.metadata
from functools import cache

__all__ = ["version_of"]


@cache
def version_of(package: str) -> str | None:
    """Returns the version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
