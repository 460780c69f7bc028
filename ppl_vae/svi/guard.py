"""Keeps numbers that are not finite from the optimiser."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Guard"]

_POLL_STEPS = 50


class Guard:
    """Lets no number that is not finite reach the optimiser.

    On the CPU every step is looked at. On a GPU a look would stall it: there the fused optimiser is told to skip every
    step from the first bad one on, and the host looks now and then.

    Args:
        device: Where the fit runs.
        fused: Whether the optimiser can be told to skip a step.
    """

    def __init__(self, device: torch.device, fused: bool) -> None:
        self._lazy = device.type == "cuda" and fused
        self._first_bad = torch.full((), -1, device=device)

    @property
    def skip(self) -> Tensor | None:
        """One where the optimiser has to skip the step, for an optimiser that can be told; else None."""
        return (self._first_bad >= 0).float() if self._lazy else None

    def check(self, loss: Tensor, norm: Tensor, step: int) -> int | None:
        """Looks at loss and gradient norm before a step; returns the first bad step as far as the host knows of one."""
        healthy = torch.isfinite(loss + norm)
        if not self._lazy:
            return None if bool(healthy) else step
        newly = (self._first_bad < 0) & ~healthy
        self._first_bad = torch.where(newly, step, self._first_bad)
        return self.poll() if step % _POLL_STEPS == 0 else None

    def poll(self) -> int | None:
        """Waits for the device and returns the first bad step, if any."""
        first = int(self._first_bad)
        return first if first >= 0 else None
