"""Noise by key: every draw is a function of (seed, what it is for), so that nothing depends on order or chunking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ppl_vae.options import whole_number

__all__ = ["current_state", "generator_of", "key", "own_noise", "permutation", "reseed", "restore_state", "seeded"]

_MASK = (1 << 64) - 1
_own_states: dict[torch.Generator, Tensor] = {}  # what the outermost `seeded` puts back


def key(*parts: int) -> int:
    """Mixes a seed and other integers into one 63-bit seed (splitmix64; Steele, Lea and Flood, 2014).

    Raises:
        ValueError: The seed is no whole number.

    Example:
        >>> key(0, 1) == key(0, 1), key(0, 1) == key(1, 0)
        (True, False)
    """
    state = 0
    for part in parts:
        state = (state + (whole_number("seed", part) & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Context with torch's generators seeded, and restored on leaving."""
    before = {generator: generator.get_state() for generator in _generators(device)}
    outermost = before.keys() - _own_states.keys()
    _own_states.update({generator: before[generator] for generator in outermost})
    try:
        reseed(seed, device)
        yield
    finally:
        for generator, state in before.items():
            generator.set_state(_own_states.pop(generator) if generator in outermost else state)


@contextmanager
def own_noise() -> Iterator[None]:
    """Context that draws from the user's own random state, and moves it on, wherever `seeded` is in force.

    Example:
        >>> with torch.random.fork_rng():
        ...     _ = torch.manual_seed(1)
        ...     first, second = torch.rand(()), torch.rand(())
        ...     _ = torch.manual_seed(1)
        ...     with seeded(0), own_noise():
        ...         inside = torch.rand(())
        ...     bool(inside == first), bool(torch.rand(()) == second)
        (True, True)
    """
    before = {generator: generator.get_state() for generator in _own_states}
    for generator, state in _own_states.items():
        generator.set_state(state)
    try:
        yield
    finally:
        for generator, state in before.items():
            _own_states[generator] = generator.get_state()
            generator.set_state(state)


def reseed(seed: int, device: torch.device | None = None) -> None:
    """Seeds the CPU generator and that of `device`; torch.manual_seed also queues a stack trace for absent GPUs.

    Raises:
        ValueError: The seed is no whole number of 64 bits.
    """
    seed = _of_64_bits(seed)
    for generator in _generators(device):
        generator.manual_seed(seed)


def generator_of(seed: int) -> torch.Generator:
    """A generator of the CPU with a state of its own.

    Raises:
        ValueError: The seed is no whole number of 64 bits.
    """
    return torch.Generator().manual_seed(_of_64_bits(seed))


def _of_64_bits(seed: int) -> int:
    if not -(1 << 63) <= whole_number("seed", seed) < 1 << 64:
        raise ValueError(f"seed: expected a whole number of 64 bits, found {seed}")
    return whole_number("seed", seed)


def _generators(device: torch.device | None) -> list[torch.Generator]:
    if device is None or device.type != "cuda":
        return [torch.default_generator]
    torch.cuda.init()
    return [torch.default_generator, torch.cuda.default_generators[device.index or 0]]


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
    generator = generator_of(key(seed, epoch, 0x0DE5))
    return torch.randperm(n, generator=generator)
