"""Signals that ask a fit to stop: the step is finished first; who presses Ctrl-C again is obeyed at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Signals", "Terminated", "heard"]

_HEARD = (signal.SIGINT, signal.SIGTERM)
_VOTE_TO_END = 2.0**12  # above the number of processes


class Terminated(SystemExit):
    """SIGTERM was received and obeyed: ends Python with status 143."""


class Signals:
    """The first signal that was received, if any, whether somebody insisted, and what the processes have agreed on.

    Args:
        alone: Whether this process is the only one: then what it receives is agreed on.
    """

    def __init__(self, alone: bool = True) -> None:
        self.received: int | None = None
        self.insisted = False
        self._agreed: int | None = None
        self._alone = alone

    @property
    def agreed(self) -> int | None:
        """The signal that all processes obey at the end of this step."""
        return self.received if self._alone else self._agreed

    @property
    def vote(self) -> float:
        """A number whose sum over the processes says what one of them has received."""
        return 0.0 if self.received is None else _VOTE_TO_END if self.received == signal.SIGTERM else 1.0

    def agree(self, votes: float) -> None:
        """Takes the sum of all votes."""
        if votes:
            self._agreed = signal.SIGTERM if votes >= _VOTE_TO_END else signal.SIGINT

    def obey(self, done: str, by_itself: bool = False) -> None:
        """Ends the work if a signal has asked for it: KeyboardInterrupt for SIGINT, exit with 143 for SIGTERM.

        Args:
            done: What is safe, for the message.
            by_itself: Whether to obey what this process has received, though no other one knows of it.
        """
        number = self.received if by_itself else self.agreed
        if number == signal.SIGINT:
            raise KeyboardInterrupt(done)
        if number is not None:
            raise Terminated(128 + number)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler: remembers the first one; SIGINT as the second leaves at once.

        SIGTERM may well come twice: whoever manages a job sends it to all processes, and torchrun passes its own on.
        """
        if self.received is None:
            self.received = number
        elif number == signal.SIGINT:
            self.insisted = True
            raise KeyboardInterrupt


@contextmanager
def heard(alone: bool = True) -> Iterator[Signals]:
    """Context in which SIGINT and SIGTERM wait for the end of a step, of all processes if this one is not alone.

    One that nobody has obeyed by then is obeyed at the end of the context, whose work is done, or has failed: the error
    is then the context of what is raised. Only the main thread of a process receives signals: in another one nothing
    changes. One that is ignored stays so, as SIGINT is by jobs in the background, and so does one that a program in C
    hears, around this Python.

    Raises:
        KeyboardInterrupt: SIGINT was received after the last step, or in one that failed.
        Terminated: SIGTERM was, likewise.
    """
    signals = Signals(alone)
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    heeded = [number for number in _HEARD if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, signals.receive) for number in heeded}
    try:
        yield signals
    except Exception:
        signals.obey("the fit has failed", by_itself=True)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    signals.obey("all steps are done and saved", by_itself=True)
