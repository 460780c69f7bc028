"""Where tensors live."""

from __future__ import annotations

import torch

from ppl_vae.errors import PplVaeError

__all__ = ["choose_device"]


def choose_device(device: str | torch.device) -> torch.device:
    """The device asked for; "auto" is CUDA where there is one, else the CPU.

    Precision is left as torch has it: float32 products on CUDA use TF32 only if you ask torch for it
    (`torch.set_float32_matmul_precision("high")`), which costs about three digits of each log-probability.

    Raises:
        PplVaeError: There is no such device.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise PplVaeError(f"device: expected auto, cpu or cuda, found {device!r}") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise PplVaeError(
            f"device: expected a CUDA device {device!r}, found {torch.cuda.device_count()} that torch can use: take "
            'device "cpu", or a build of torch for your GPU'
        )
    return torch.device("cuda", torch.cuda.current_device()) if chosen == torch.device("cuda") else chosen
