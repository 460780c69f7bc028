"""When compiling pays."""

from __future__ import annotations

import time
from typing import Literal

__all__ = ["Payback"]

# Measured on the networks of the benchmark: what compiling is sure to save of a step, and what it costs where nothing
# is cached.
_SAVED_SHARE, _COST_SECONDS = 0.35, 10.0
_WARM_UP, _TRIAL = 5, 25


class Payback:
    """Says once, before a step, that it is time to compile.

    Args:
        choice: True at once, False never, "auto" after some steps as written, if the steps that are left will earn back
            what compiling costs.
        total: How many steps there will be.

    Example:
        >>> now = Payback(True, total=10)
        >>> now.due(0), now.due(1)
        (True, False)
        >>> any(Payback("auto", total=100).due(step) for step in range(100))
        False
    """

    def __init__(self, choice: Literal["auto"] | bool, total: int) -> None:
        if not isinstance(choice, bool) and choice != "auto":
            raise ValueError(f"compile: expected 'auto', True or False, found {choice!r}")
        self._decided = choice is False
        self._first_step = 0 if choice is True else _WARM_UP + _TRIAL
        self._total = total
        self._seen = 0
        self._start = 0.0

    def due(self, step: int) -> bool:
        """Whether to compile before this step."""
        if self._decided:
            return False
        if self._seen == _WARM_UP:
            self._start = time.perf_counter()
        self._seen += 1
        if self._seen <= self._first_step:
            return False
        self._decided = True
        return self._first_step == 0 or self._earns_it_back(self._total - step)

    def _earns_it_back(self, steps: int) -> bool:
        seconds = (time.perf_counter() - self._start) / _TRIAL
        return _SAVED_SHARE * seconds * steps > _COST_SECONDS
