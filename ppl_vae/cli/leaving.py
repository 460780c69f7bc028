"""Signals that ask the command to stop, from its first line on: it loads nothing but Python's own modules."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["INTERRUPTED", "TERMINATED", "end", "leave", "leaving_words", "on_signals"]

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_IMPORT = "<frozen importlib._bootstrap>"
_left: list[Callable[[], str]] = []

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def on_signals(handler: Handler) -> Iterator[None]:
    """Context in which a handler hears SIGINT and SIGTERM, where none but Python's own or the command's does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = (signal.SIG_DFL, signal.default_int_handler, leave)
    before = {number: heard for number in _SAID if (heard := signal.getsignal(number)) in ours}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, heard in before.items():
            signal.signal(number, heard)


@contextmanager
def leaving_words(in_words: Callable[[], str]) -> Iterator[None]:
    """Context of work of which `leave` says what stands."""
    _left.append(in_words)
    try:
        yield
    finally:
        _left.pop()


def leave(number: int, frame: FrameType | None) -> None:
    """The handler while nothing has begun: ends the process with its sentence, whoever would catch an exception."""
    with suppress(Exception):  # nobody reads, or the words need what is being imported
        sys.stdout.writelines(f"{said}\n" for in_words in reversed(_left) if (said := in_words()))
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, f"ppl-vae: {_SAID[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)


def end(number: int, frame: FrameType | None) -> None:
    """The handler of a command at work: an exception, by which all that is open is closed.

    Within an import, Python's modules and the C code of NumPy and torch swallow it, or abort.
    """
    if _is_importing(frame):
        leave(number, frame)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signals = sys.modules.get("ppl_vae.svi.signals")  # heavy to import; who tells it from others has done so
    raise getattr(signals, "Terminated", SystemExit)(TERMINATED)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != _IMPORT:
        frame = frame.f_back
    return frame is not None
