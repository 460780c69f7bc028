"""What every case is built with."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch

__all__ = ["Setting"]


@dataclass(frozen=True)
class Setting:
    """Sizes, device, and what has to be tidied up when a case is done."""

    quick: bool
    """Whether tiny sizes do."""
    device: torch.device
    """Where our side and the sides in torch run."""
    stack: ExitStack
    """Closes the processes and removes the files of a case."""

    def choose(self, full: int, tiny: int) -> int:
        """Return a size: the full one, or the tiny one of a quick run."""
        return tiny if self.quick else full
