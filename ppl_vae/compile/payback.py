"""When compiling pays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from ppl_vae.operations import Operations
from ppl_vae.options import compile_choice

__all__ = ["Payback"]

# Measured on the networks of the benchmark: what a compiled call saves for each operation of the call as written and
# for each byte that it makes, and what compiling costs where nothing is cached.
_SAVED_SECONDS_PER_OPERATION, _SAVED_SECONDS_PER_BYTE, _COST_SECONDS = 1e-5, 2e-10, 8.0


class Payback:
    """Says once, before a call, that it is time to compile.

    What a call does decides, not the clock: two runs of the same thing decide alike.

    Args:
        choice: True at once, False never, "auto" after the first call as written, if the calls that are left will earn
            back what compiling costs.

    Example:
        >>> Payback(True).due(calls_left=1)
        True
        >>> import torch
        >>> now = Payback("auto")
        >>> with now.watching():
        ...     y = torch.ones(1000).exp()
        >>> now.due(calls_left=100)
        False
    """

    def __init__(self, choice: Literal["auto"] | bool) -> None:
        compile_choice(choice)
        self._never, self._at_once = choice is False, choice is True
        self._decided = self._never
        self._operations: Operations | None = None

    def due(self, calls_left: int) -> bool:
        """Whether to compile before this call."""
        if self._decided or not (self._at_once or self._operations):
            return False
        self._decided = True
        return self._at_once or calls_left * self._saved() > _COST_SECONDS

    def reopen(self) -> None:
        """What was decided was decided on a wrong number of calls, and is asked again."""
        self._decided = self._never

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Context of a call as written, which shows what there is to save."""
        if self._decided or self._operations:
            yield
            return
        with Operations() as operations:
            yield
        self._operations = operations

    def state(self) -> dict[str, Any]:
        """What it knows, for `restore` in another process."""
        seen = self._operations
        return {"decided": self._decided, "operations": None if seen is None else [seen.count, seen.bytes]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Knows what another one knew."""
        self._decided = state["decided"]
        if state["operations"] is not None:
            self._operations = Operations()
            self._operations.count, self._operations.bytes = state["operations"]

    def _saved(self) -> float:
        """Seconds that a compiled call will save, about."""
        assert self._operations is not None
        return _SAVED_SECONDS_PER_OPERATION * self._operations.count + _SAVED_SECONDS_PER_BYTE * self._operations.bytes
