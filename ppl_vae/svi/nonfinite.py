"""What becomes of a fit that meets a loss or gradient that is not finite: it stops, skips the step, or goes back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ppl_vae.errors import EstimateError
from ppl_vae.svi.guard import NotFiniteError, OverflowedError
from ppl_vae.svi.state import State, captured, restore

if TYPE_CHECKING:
    from ppl_vae.svi.loop import Loop

__all__ = ["Policy"]

_MOST_IN_A_ROW = 10
_MOST_ROLLBACKS = 10
_RATE = 0.5


class Policy:
    """The policy of a fit, `settings.on_nonfinite`, and what it has done.

    Args:
        loop: The fit.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop, self._choice = loop, loop.settings.on_nonfinite
        self._leads = loop.stepper.group.leads
        self._safe: State | None = None
        self.skipped: list[int] = []
        self.rolled_back: list[int] = []

    def remember(self) -> None:
        """Keeps the state to go back to: at the start, and after every epoch."""
        if self._choice == "rollback":
            self._safe = captured(self._loop)

    def skip(self, error: NotFiniteError) -> None:
        """Leaves a step out, and its rows.

        Raises:
            NotFiniteError: The policy is another one, or parameters are not finite: then no step will be.
            EstimateError: The steps before it were left out, too: no step will be finite again.
        """
        if self._choice != "skip" or isinstance(error, OverflowedError):
            raise error
        self.skipped.append(error.bad.step)
        last = self.skipped[-_MOST_IN_A_ROW:]
        if last == [*range(error.bad.step - _MOST_IN_A_ROW + 1, error.bad.step + 1)]:
            raise EstimateError(f"{_MOST_IN_A_ROW} steps in a row were not finite, the last: {error}") from error
        if len(self.skipped) == 1:
            self._say(f"{error}. The step is skipped; how many are, `Fit.skipped` tells")

    def roll_back(self, error: NotFiniteError) -> None:
        """Goes back to the state that was kept last, with half the learning rate.

        Raises:
            NotFiniteError: The policy is another one.
            EstimateError: That has been done too often.
        """
        if self._choice != "rollback" or self._safe is None:
            raise error
        done = [*self.rolled_back, error.bad.step]
        if len(done) > _MOST_ROLLBACKS:
            raise EstimateError(f"the fit went back {_MOST_ROLLBACKS} times and does not get on: {error}") from error
        rate = self._loop.stepper.rate * _RATE
        before = self._loop.seconds_before
        self._loop.is_whole = False
        restore(self._loop, self._safe)
        self._loop.is_whole = True
        self._loop.seconds_before = before  # for the clock of this process has not stopped
        self.rolled_back, self._loop.stepper.rate = done, rate
        self._loop.stepper.guard.forget()
        self._say(f"{error}. The fit goes back to step {self._loop.step}, with {rate:g} times the learning rate")

    def state(self) -> dict[str, Any]:
        """What it has done, for `put` in another process."""
        return {"skipped": self.skipped, "rolled_back": self.rolled_back, "rate": self._loop.stepper.rate}

    def put(self, state: Mapping[str, Any]) -> None:
        """Takes what another process has done."""
        self.skipped, self.rolled_back = list(state["skipped"]), list(state["rolled_back"])
        self._loop.stepper.rate = state["rate"]

    def _say(self, message: str) -> None:
        if self._leads:
            warnings.warn(message, UserWarning, stacklevel=2)
