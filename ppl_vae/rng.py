"""Noise by key: every draw is a function of (seed, what it is for), so that nothing depends on order or chunking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["current_state", "key", "permutation", "reseed", "restore_state", "seeded"]

_MASK = (1 << 64) - 1


def key(*parts: int) -> int:
    """Mixes integers into one 63-bit seed (splitmix64; Steele, Lea and Flood, 2014).

    Example:
        >>> key(0, 1) == key(0, 1), key(0, 1) == key(1, 0)
        (True, False)
    """
    state = 0
    for part in parts:
        state = (state + (int(part) & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Context with torch's generators seeded, and restored on leaving."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        reseed(seed, device)
        yield


def reseed(seed: int, device: torch.device | None = None) -> None:
    """Seeds the CPU generator and that of `device`; torch.manual_seed also queues a stack trace for absent GPUs."""
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.init()
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def current_state(device: torch.device) -> tuple[torch.device, Tensor, Tensor | None]:
    """State of the generators that a computation on `device` draws from."""
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return device, torch.get_rng_state(), on_gpu


def restore_state(state: tuple[torch.device, Tensor, Tensor | None] | None) -> None:
    """Puts the generators back to a state of `current_state`; does nothing for None."""
    if state is None:
        return
    device, on_cpu, on_gpu = state
    torch.set_rng_state(on_cpu)
    if on_gpu is not None:
        torch.cuda.set_rng_state(on_gpu, device)


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The order of the n rows in an epoch: a function of (seed, epoch) alone, on the CPU so that devices agree."""
    generator = torch.Generator().manual_seed(key(seed, epoch, 0x0DE5))
    return torch.randperm(n, generator=generator)
