"""How the command fails: one line on standard error and an exit status, with --debug a traceback."""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

__all__ = ["Shell"]

_INTERRUPTED = 130


class Shell(TyperGroup):
    """The group of commands: status 2 for a wrong command line, 1 for any other error, 130 for Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command named on the command line."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            _complain("interrupted")
            raise typer.Exit(_INTERRUPTED) from None
        except Exception as error:
            if ctx.params["debug"] or getattr(error, "errno", None) == errno.EPIPE:
                raise
            _complain(_in_words(error))
            raise typer.Exit(getattr(error, "exit_code", 1)) from None


def _in_words(error: Exception) -> str:
    from ppl_vae.errors import PplVaeError

    if hasattr(error, "format_message"):  # an error of the command line; the class moved between versions of typer
        return error.format_message()
    if isinstance(error, PplVaeError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error} (`ppl-vae --debug ...` shows where)"


def _complain(message: str) -> None:
    typer.echo(f"ppl-vae: {' '.join(message.split())}", err=True)
