"""Keeps numbers that are not finite from the optimiser."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.errors import EstimateError

__all__ = ["BadStep", "Guard", "NotFiniteError", "OverflowedError"]

_POLL_STEPS = 50
_STALLED = ("cuda",)  # types of device that a look stalls


class BadStep(NamedTuple):
    """A step whose loss or gradient is not finite: all that it takes to do it again."""

    step: int
    """Steps done before it."""
    rank: int
    """The process on whose rows it was found."""
    seed: int
    """Of all that this process draws in the step."""
    beta: float
    """Weight of the rate."""
    rows: Tensor
    """Positions of its rows in the data."""
    batch: tuple[Tensor, ...]
    """The rows; probabilities where binary data are drawn from them in the step."""
    reason: str
    """The first site or parameter that is not finite, with its rows."""


class NotFiniteError(EstimateError):
    """A step that was not taken, because its loss or gradient is not finite.

    Args:
        message: What was found.
        bad: The step.
    """

    def __init__(self, message: str, bad: BadStep) -> None:
        super().__init__(message)
        self.bad = bad


class OverflowedError(NotFiniteError):
    """A step was finite and its update has made parameters that are not: those before it are lost."""


class Guard:
    """Lets no number that is not finite reach the optimiser.

    On the CPU every step is looked at. On a GPU a look would stall it: where `late` is set, the fused optimiser is told
    to skip every step from the first bad one on, and the host looks now and then.

    Args:
        device: Where the fit runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.late, self.stalls = False, device.type in _STALLED
        self._first_bad = torch.full((), -1, device=device)

    @property
    def skip(self) -> Tensor | None:
        """One where the optimiser has to skip the step, for an optimiser that can be told; else None."""
        return (self._first_bad >= 0).float() if self.late else None

    def check(self, loss: Tensor, norm: Tensor, step: int) -> int | None:
        """Looks at loss and gradient norm before a step; returns the first bad step as far as the host knows of one."""
        healthy = torch.isfinite(loss + norm)
        if not self.late:
            return None if bool(healthy) else step
        newly = (self._first_bad < 0) & ~healthy
        self._first_bad = torch.where(newly, step, self._first_bad)
        return self.poll() if step % _POLL_STEPS == 0 else None

    def poll(self) -> int | None:
        """Waits for the device and returns the first bad step, if any."""
        first = int(self._first_bad)
        return first if first >= 0 else None

    def forget(self) -> None:
        """Lets the optimiser take steps again."""
        self._first_bad.fill_(-1)
