"""How the command fails: one line on standard error and an exit status, with --debug a traceback."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from ppl_vae.cli.leaving import INTERRUPTED, TERMINATED, end, leaving_words, on_signals

__all__ = ["Shell", "saying_what_is_left", "saying_what_is_saved"]

_LONGEST = 600
_TENSOR = re.compile(r"tensor\(\[[^()]*\)")
# What the library advises by the names of its functions and arguments.
_OPTIONS = {
    "ppl_vae.data.binarize(x, seed=0), or in fit binarize='dynamic'": "--binarize dynamic",
    "ppl_vae.data.quantize(x, levels)": "--quantize LEVELS",
    "load_array reads files of your own": "a file of your own is FILE.npy or FILE.npz",
    "choose another run_dir": "choose another --run-dir",
    "pass key": "name it in --arrays",
    "leave out key": "leave out --arrays",
    "pass max_bytes": "save it as FILE.npy",
    "binarize='dynamic'": "--binarize dynamic",
    "binarize='fixed'": "--binarize fixed",
    "a smaller learning_rate, clip_norm=..., or": "a smaller --learning-rate, or",
    'device "cpu"': "--device cpu",
    "device: expected": "--device: expected",
    "use annealed_importance_sampling": "use --method ais",
    "use log_likelihood": "use --method is",
    "use log_evidence": "use --method exact",
    "start='prior'": "--start prior",
}
_ADVICE = re.compile(r"(?<![\w./'\"-])(" + "|".join(map(re.escape, _OPTIONS)) + r")(?![\w/-]|\.\w)")


class Shell(TyperGroup):
    """The group of commands: status 2 for a wrong command line, 1 for other errors, 130 for Ctrl-C, 143 for SIGTERM."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line, and answer --version and --help."""
        try:
            return super().parse_args(ctx, args)
        except OSError as error:
            if _is_of_a_pipe(error):
                raise
            _complain(_in_words(error))
            raise typer.Exit(1) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command named on the command line."""
        try:
            with on_signals(end):
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            _complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except SystemExit as error:
            if error.code == TERMINATED:
                _complain("terminated")
            raise
        except Exception as error:
            if ctx.params["debug"] or _is_of_a_pipe(error):
                raise
            _complain(_in_words(error))
            raise typer.Exit(getattr(error, "exit_code", 1)) from None


@contextmanager
def saying_what_is_left(in_words: Callable[[], str]) -> Iterator[None]:
    """Context of work on a run: whoever interrupts it learns what stands, and which command goes on from there."""
    try:
        with leaving_words(in_words):
            yield
    except (KeyboardInterrupt, SystemExit):
        if said := in_words():
            typer.echo(said)
        raise


@contextmanager
def saying_what_is_saved(said: str) -> Iterator[None]:
    """Context of what comes after work that is saved: where a disk refuses more, or standard output, its error says so.

    Raises:
        StorageError: One of them refuses.
    """
    from ppl_vae.errors import StorageError

    try:
        yield
    except (StorageError, OSError) as error:
        if _is_of_a_pipe(error):
            raise
        raise StorageError(f"{_in_words(error)}; {said}") from error


def _is_of_a_pipe(error: Exception) -> bool:
    """Whether somebody has stopped reading what the command prints, as `head` does."""
    return getattr(error, "errno", None) == errno.EPIPE


def _in_words(error: Exception) -> str:
    from ppl_vae.errors import PplVaeError

    if hasattr(error, "format_message"):  # an error of the command line; the class moved between versions of typer
        return _with_help(error.format_message(), error)
    if isinstance(error, PplVaeError):
        return _in_options(str(error))
    if isinstance(error, OSError) and error.strerror:
        where = error.filename or ("standard output" if _refuses(sys.stdout, error) else "")
        return f"{where}: {error.strerror}" if where else error.strerror
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first} (`ppl-vae --debug ...` shows where)"


def _refuses(stream: Any, error: OSError) -> bool:
    """Whether a stream cannot write an empty line either, for the same reason: it has forgotten what it was given."""
    try:
        stream.write("\n")
        stream.flush()
    except OSError as again:
        return again.errno == error.errno
    except (AttributeError, ValueError):  # there is none
        return False
    return False


def _with_help(message: str, error: Exception) -> str:
    """The message, with where to read on, if it was the command line that could not be read."""
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    command = " ".join(["ppl-vae", *context.command_path.split()[1:]])
    return f"{message.removesuffix('.')} (see `{command} --help`)"


def _in_options(message: str) -> str:
    """A message of the library with the options of the command in place of Python's arguments.

    What is part of a path, or quoted, are words of the user's.
    """
    return _ADVICE.sub(lambda found: _OPTIONS[found[1]], message)


def _complain(message: str) -> None:
    """Print one line: numbers of a tensor are left out, and what is longer than anybody reads."""
    line = " ".join(_TENSOR.sub("tensor(...)", message).split())
    typer.echo(f"{_speaker()}: {line if len(line) <= _LONGEST else line[:_LONGEST] + '...'}", err=True)


def _speaker() -> str:
    """The command, with its number where it is not the first of several processes."""
    distributed = sys.modules.get("ppl_vae.distributed")  # heavy to import, and no group where nobody has
    rank = 0 if distributed is None else distributed.current().rank
    return f"ppl-vae, process {rank}" if rank else "ppl-vae"
