"""Buffers that the steps of a fit move, such as the running means of a batch norm."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.contents import give, writes
from ppl_vae.errors import PairError

__all__ = ["Moving", "check_own_memory"]

_SMALL = 1 << 14  # numbers that are copied faster than they are compared


def check_own_memory(module: nn.Module) -> None:
    """Refuses parameters and buffers that were expanded: their numbers cannot be put back, as nobody can write to them.

    Raises:
        PairError: There is one; its name is said.
    """
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise PairError(
                f"{name}: expected a place in memory for each number, found one that several share, as expand makes "
                "it, which no fit can put back: register it as tensor.clone(), or leave out validation, run_dir and "
                "on_nonfinite"
            )


class Moving:
    """The buffers of a module as they were before the last step, whatever it has done to them.

    Small ones are copied before every step, larger ones once a step has been seen to write to them. Torch counts what
    it writes, but not what a batch norm, compiled code or `tensor.data.copy_` does: the numbers of those that seem to
    rest are compared after the first step and, ever more rarely, after later ones.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._buffers: list[_Buffer] = []
        self._replaced: list[_Buffer] = []
        self._copied: list[tuple[Tensor, Tensor]] | None = None
        self._odd: dict[str, Tensor] | None = None
        self.steps = 0

    def look(self) -> None:
        """Is called before every step, and sees what the one before has moved."""
        if not self.steps:
            self._begin()
            return
        all_numbers = self.steps & (self.steps - 1) == 0  # after 1, 2, 4, 8, ... steps
        for buffer in self._buffers:
            now = buffer.now
            if now is not buffer.tensor or buffer.is_resized:
                self._replaced.append(buffer)
                self._note(buffer)
            elif not (buffer.moves or now is None) and (all_numbers or writes(now) != buffer.version):
                buffer.version = writes(now)
                if not _same(now, buffer.before):
                    self._note(buffer)

    def remember(self) -> None:
        """Is called after `look`, and keeps what there is."""
        for buffer in self._replaced:
            buffer.begin()
        self._replaced = []
        if self._copied is None:
            chosen = [(b.before, b.tensor) for b in self._buffers if b.moves or b.small]
            self._copied = [(before, now) for before, now in chosen if before is not None and now is not None]
        if self._copied:
            with torch.no_grad():
                torch._foreach_copy_([before for before, _ in self._copied], [now for _, now in self._copied])
        self.steps += 1

    @torch.no_grad()
    def put_back(self) -> None:
        """Undoes what was done to them since."""
        for buffer in self._buffers:
            buffer.put_back()
        self._replaced = []

    @property
    def some(self) -> bool:
        """Whether a step has been seen to move one."""
        return any(buffer.moves for buffer in self._buffers)

    @property
    def tensors(self) -> list[Tensor | None]:
        """All of them, as they are now."""
        return [buffer.now for buffer in self._buffers]

    def marks(self) -> list[bool]:
        """Which of them this step, or one before, has moved."""
        return [buffer.moves or buffer.has_moved() for buffer in self._buffers]

    def overflowed(self) -> str:
        """Name of a buffer with a number that is not finite and was so neither before the first step; empty if none.

        A mask of minus infinity is no fault.
        """
        odd = self._not_finite() if self._odd is None else self._odd
        for name, buffer in self._module.named_buffers():
            if not _is_number(buffer) or bool((good := torch.isfinite(buffer)).all()):
                continue
            known = odd.get(name)
            if known is None or known.shape != buffer.shape or not bool((good | _equal(buffer, known)).all()):
                return name
        return ""

    def _begin(self) -> None:
        """Not at once: a fit that resumes gives them numbers after this was made."""
        homes = [(m._buffers, name) for m in self._module.modules() for name in m._buffers]
        self._buffers = [_Buffer(home, name) for home, name in homes if _is_dense(home[name])]
        self._odd = self._not_finite()

    def _note(self, buffer: _Buffer) -> None:
        buffer.moves = True
        self._copied = None

    def _not_finite(self) -> dict[str, Tensor]:
        found = {name: b for name, b in self._module.named_buffers() if _is_number(b)}
        return {name: b.detach().clone() for name, b in found.items() if not bool(torch.isfinite(b).all())}


class _Buffer:
    """A buffer by its place, where another tensor may come, as `self.mean = ...` does it."""

    __slots__ = ("before", "home", "moves", "name", "small", "tensor", "version")

    def __init__(self, home: dict[str, Any], name: str) -> None:
        self.home, self.name, self.moves = home, name, False
        self.begin()

    def begin(self) -> None:
        """Keeps the tensor that is there."""
        self.tensor: Tensor | None = self.now
        self.before: Tensor | None = None
        self.version: int | None = None
        self.small = True
        if self.tensor is not None:
            self.before, self.version = self.tensor.detach().clone(), writes(self.tensor)
            self.small = self.tensor.numel() <= _SMALL

    @property
    def now(self) -> Tensor | None:
        """The tensor that is there."""
        return self.home.get(self.name)

    @property
    def is_resized(self) -> bool:
        """Whether the tensor has, in place, got another shape or type, as `mean.data = ...` does it."""
        return self.tensor is not None and self.before is not None and not _is_alike(self.tensor, self.before)

    def has_moved(self) -> bool:
        """Whether it is not what it was; of a large one torch has to have counted that it was written to."""
        now = self.now
        if now is not self.tensor or now is None:
            return now is not self.tensor
        return (self.small or writes(now) != self.version) and not _same(now, self.before)

    def put_back(self) -> None:
        """Puts tensor and numbers back."""
        self.home[self.name] = self.tensor
        if self.tensor is not None and self.before is not None and not _same(self.tensor, self.before):
            give(self.tensor, self.before)


def _is_dense(tensor: Tensor | None) -> bool:
    return tensor is None or tensor.layout == torch.strided


def _is_number(tensor: Tensor) -> bool:
    return _is_dense(tensor) and (tensor.is_floating_point() or tensor.is_complex())


def _same(tensor: Tensor, before: Tensor | None) -> bool:
    """Whether a tensor has the numbers of its copy, NaN included."""
    if before is None or not _is_alike(tensor, before):
        return False
    return torch.equal(tensor, before) or (_is_number(tensor) and bool(_equal(tensor, before).all()))


def _is_alike(tensor: Tensor, before: Tensor) -> bool:
    return tensor.shape == before.shape and tensor.dtype == before.dtype


def _equal(tensor: Tensor, before: Tensor) -> Tensor:
    return (tensor == before) | ((tensor != tensor) & (before != before))
