"""The command `ppl-vae`."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_vae.cli.main import app

__all__ = ["app", "run"]

_INTERRUPTED = 130


def run() -> None:
    """Run the command line; Ctrl-C ends it quietly even while its libraries are imported."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files may hold bytes that are no text
    try:
        from ppl_vae.cli.main import app

        app(prog_name="ppl-vae")  # not `python -m ppl_vae.ppl-vae`
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("ppl-vae: interrupted\n")
        sys.exit(_INTERRUPTED)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name != "app":
            raise AttributeError(f"module 'ppl_vae.cli' has no attribute {name!r}")
        from ppl_vae.cli.main import app

        return app
