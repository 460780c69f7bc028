"""Where tensors live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppl_vae.errors import PplVaeError

__all__ = ["choose_device", "full_precision"]


def choose_device(device: str | torch.device) -> torch.device:
    """The device asked for; "auto" is CUDA where there is one, else the CPU.

    Products and, in fits and evaluations, convolutions of float32 on CUDA use TF32 only if you ask torch for it
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
        raise _other(device) from error
    if chosen.type not in ("cpu", "cuda"):
        raise _other(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise PplVaeError(
            f"device: expected a CUDA device {device!r}, found {torch.cuda.device_count()} that torch can use: take "
            'device "cpu", or a build of torch for your GPU'
        )
    return torch.device("cuda", torch.cuda.current_device()) if chosen == torch.device("cuda") else chosen


def _other(device: str | torch.device) -> PplVaeError:
    return PplVaeError(f"device: expected auto, cpu or cuda, found {str(device)!r}")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Context in which convolutions on CUDA keep the digits that products keep; torch itself lets them use TF32."""
    cudnn = torch.backends.cudnn
    if device.type != "cuda" or not _rounds_convolutions_alone():
        yield
        return
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = True


def _rounds_convolutions_alone() -> bool:
    try:
        return torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set for each operation in torch's newer way: the user has chosen
        return False
