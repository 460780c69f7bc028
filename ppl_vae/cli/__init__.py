"""The command `ppl-vae`."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

from ppl_vae.cli.leaving import leave, on_signals

if TYPE_CHECKING:
    from ppl_vae.cli.main import app

__all__ = ["app", "run"]


def run() -> None:
    """Run the command line; Ctrl-C and SIGTERM end it with a sentence even while its libraries are imported."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files may hold bytes that are no text
    with on_signals(leave):
        from ppl_vae.cli.main import app

        app(prog_name="ppl-vae")  # not `python -m ppl_vae.ppl-vae`


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name != "app":
            raise AttributeError(f"module 'ppl_vae.cli' has no attribute {name!r}")
        from ppl_vae.cli.main import app

        return app
