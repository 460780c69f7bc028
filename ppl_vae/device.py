"""Where tensors live."""

from __future__ import annotations

import torch

__all__ = ["choose_device"]


def choose_device(device: str | torch.device) -> torch.device:
    """The device asked for; "auto" is CUDA where there is one, else the CPU.

    Precision is left as torch has it: float32 products on CUDA use TF32 only if you ask torch for it
    (`torch.set_float32_matmul_precision("high")`), which costs about three digits of each log-probability.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    return torch.device(device)
