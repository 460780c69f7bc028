"""Signals that ask a fit to stop: the step is finished first; who insists is obeyed at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Signals", "Terminated", "heard"]

_HEARD = (signal.SIGINT, signal.SIGTERM)


class Terminated(SystemExit):
    """SIGTERM was received and obeyed: ends Python with status 143."""


class Signals:
    """The first signal that was received, if any."""

    def __init__(self) -> None:
        self.received: int | None = None

    def obey(self, done: str) -> None:
        """Ends the work if a signal has asked for it: KeyboardInterrupt for SIGINT, exit with 143 for SIGTERM.

        Args:
            done: What is safe, for the message.
        """
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt(done)
        if self.received is not None:
            raise Terminated(128 + self.received)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler: remembers the first one; the second leaves at once."""
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise Terminated(128 + number)
        self.received = number


@contextmanager
def heard() -> Iterator[Signals]:
    """Context in which SIGINT and SIGTERM wait for the end of a step.

    Only the main thread of a process receives signals: in another one nothing changes. One that is ignored stays so, as
    SIGINT is by jobs in the background.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    heeded = [number for number in _HEARD if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signals.receive) for number in heeded}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
