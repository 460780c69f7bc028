"""The command `ppl-vae`."""

from __future__ import annotations

import codecs
import io
import sys
from typing import TYPE_CHECKING, Any

from ppl_vae.cli.leaving import leave, on_signals

if TYPE_CHECKING:
    from ppl_vae.cli.main import app

__all__ = ["app", "run"]

_LENIENT = "ppl_vae.lenient"
_ESCAPED = 0xDC00  # and more by a byte, which is how Python has bytes in names of files that are no text
_SIGNS = {"±": "+/-", "≥": ">=", "≤": "<=", "–": "-", "×": "x"}


def run() -> None:
    """Run the command line; Ctrl-C and SIGTERM end it with a sentence even while its libraries are imported."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        _let_pass_what_is_printed(sys.stdout)
    with on_signals(leave):
        from ppl_vae.cli.main import app

        app(prog_name="ppl-vae")  # not `python -m ppl_vae.ppl-vae`


def _let_pass_what_is_printed(stream: io.TextIOWrapper) -> None:
    """Makes a stream write bytes in names of files that are no text as they are, and signs in its own characters.

    ASCII becomes UTF-8, as typer has it, which prints most of what the commands say.
    """
    codecs.register_error(_LENIENT, _leniently)
    is_ascii = codecs.lookup(stream.encoding).name == "ascii"
    stream.reconfigure(encoding="utf-8" if is_ascii else stream.encoding, errors=_LENIENT)


def _leniently(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign, end = error.object[error.start], error.start + 1
    byte = ord(sign) - _ESCAPED
    return (bytes([byte]) if 0x80 <= byte <= 0xFF else _SIGNS.get(sign, "?")), end


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name != "app":
            raise AttributeError(f"module 'ppl_vae.cli' has no attribute {name!r}")
        from ppl_vae.cli.main import app

        return app
