"""Several processes that work on one fit or one evaluation: who takes which rows, and what they tell each other."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ppl_vae import errors
from ppl_vae.errors import GroupError, PplVaeError, first_line

__all__ = ["Group", "alone", "current", "started"]

_TIMEOUT, _DEFAULT_TIMEOUT = "PPL_VAE_TIMEOUT", 600.0
_alone: ContextVar[bool] = ContextVar("ppl_vae_alone", default=False)


@dataclass(frozen=True)
class Group:
    """The processes of torch's default process group; one, which tells nobody anything, where none was started.

    Every method that exchanges something has to be called by every process, in the same order. With one process it
    copies nothing and returns what it was given.

    Example:
        >>> [list(range(5))[Group(rank, 3).share(5)] for rank in range(3)]
        [[0, 1], [2, 3], [4]]
    """

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes, draws and prints."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` things: each thing is in one part, and the first parts may have one more."""
        part, rest = divmod(count, self.size)
        start = self.rank * part + min(self.rank, rest)
        return slice(start, start + part + (self.rank < rest))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.size > 1:
            _exchange(partial(dist.all_reduce, tensor))
        return tensor

    def from_first(self, tensors: Sequence[Tensor]) -> None:
        """Makes tensors what they are in process 0, bit by bit; one message for each dtype and device."""
        if self.size == 1:
            return
        kinds = list(dict.fromkeys((t.dtype, t.device) for t in tensors))
        with torch.no_grad():
            for kind in kinds:
                alike = [t for t in tensors if (t.dtype, t.device) == kind]
                flat = torch.cat([t.detach().flatten() for t in alike])
                _exchange(partial(dist.broadcast, _bytes(flat), 0))
                if not self.leads:
                    for tensor, value in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
                        tensor.copy_(value.view_as(tensor))

    def gather(self, arrays: Mapping[str, Tensor], device: torch.device) -> list[dict[str, Tensor]]:
        """The arrays of every process, in the order of the processes; names, shapes and dtypes may differ.

        Args:
            arrays: Those of this process, on the CPU.
            device: Where processes can exchange tensors: the CPU for gloo, a GPU for NCCL.
        """
        if self.size == 1:
            return [dict(arrays)]
        gathered = []
        headers = self.texts(json.dumps([[n, str(a.dtype), list(a.shape)] for n, a in arrays.items()]), device)
        for source, header in enumerate(headers):
            of_source = {}
            for name, dtype, shape in json.loads(header):
                kind = getattr(torch, dtype.removeprefix("torch."))
                mine = source == self.rank
                array = arrays[name].to(device).contiguous() if mine else torch.empty(shape, dtype=kind, device=device)
                _exchange(partial(dist.broadcast, _bytes(array), source))
                of_source[name] = array.cpu()
            gathered.append(of_source)
        return gathered

    def texts(self, text: str, device: torch.device) -> list[str]:
        """The texts of every process."""
        if self.size == 1:
            return [text]
        encoded = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
        sizes = torch.zeros(self.size, dtype=torch.int64, device=device)
        sizes[self.rank] = len(encoded)
        lengths = self.sum(sizes).tolist()
        longest = max(1, *lengths)
        padded = torch.zeros(longest, dtype=torch.uint8, device=device)
        padded[: len(encoded)] = encoded
        found = [torch.empty_like(padded) for _ in range(self.size)]
        _exchange(partial(dist.all_gather, found, padded))
        return [bytes(f[:n].tolist()).decode() for f, n in zip(found, lengths, strict=True)]

    @contextmanager
    def together(self, device: torch.device) -> Iterator[None]:
        """Context of work without exchange: what fails in one process raises in every one, so that none waits for it.

        Raises:
            PplVaeError: The error of the first process that failed, of the same class where it is one of ours.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            with contextlib.suppress(GroupError):  # the error itself says more
                self.texts(json.dumps([type(error).__name__, str(error)]), device)
            raise
        for rank, said in enumerate(self.texts("", device)):
            if said:
                name, message = json.loads(said)
                ours = name in errors.__all__
                raise (getattr(errors, name) if ours else GroupError)(
                    f"process {rank}: {message if ours else f'{name}: {message}'}"
                )

    def agree(self, facts: Mapping[str, Any], device: torch.device) -> None:
        """Makes sure that every process was given the same.

        Raises:
            GroupError: Naming the first fact in which a process differs from process 0.
        """
        if self.size == 1:
            return
        said = [json.loads(text) for text in self.texts(json.dumps(facts), device)]
        for rank, of_rank in enumerate(said):
            for name, value in said[0].items():
                if of_rank[name] != value:
                    raise GroupError(
                        f"expected processes with the same {name}, found {value} in process 0 and {of_rank[name]} in "
                        f"process {rank}"
                    )


def current() -> Group:
    """The group of this process: that of `torch.distributed` where somebody has started it, else a group of one.

    Example:
        >>> current()
        Group(rank=0, size=1)
    """
    if _alone.get() or not (dist.is_available() and dist.is_initialized()):
        return Group()
    return Group(dist.get_rank(), dist.get_world_size())


@contextmanager
def alone() -> Iterator[None]:
    """Context in which this process works by itself, whatever torch has started: for work of one process of several.

    Example:
        >>> with alone():
        ...     current().size
        1
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def started(timeout: float | None = None) -> Iterator[Group]:
    """Context with the process group that the environment of `torchrun` describes, for commands; a library never asks.

    Processes exchange tensors by NCCL where each one of a machine has a GPU of its own, else by gloo; the GPU of a
    process is that of its LOCAL_RANK. Where the environment speaks of one process, or the group exists, nothing
    is started.

    Args:
        timeout: Seconds to wait for another process; PPL_VAE_TIMEOUT if None, or 600.

    Raises:
        GroupError: The processes do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield current()
        return
    seconds = float(os.environ.get(_TIMEOUT, _DEFAULT_TIMEOUT)) if timeout is None else timeout
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if gpus:
        torch.cuda.set_device(local % gpus)
    own = gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nccl = gpus > 0 and own
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    # If the compiler is the first to import it, its default arguments hold the group, and the group's threads abort
    # a Python that ends.
    importlib.import_module("torch.distributed.nn")
    _exchange(partial(dist.init_process_group, backend, timeout=datetime.timedelta(seconds=seconds)))
    failed = True
    try:
        yield current()
        failed = False
    finally:
        if not (failed and nccl):  # it would wait for the others; the end of this process tells them sooner
            dist.destroy_process_group()


def _bytes(tensor: Tensor) -> Tensor:
    """The same memory, of a type that everything can send."""
    return tensor.detach().view(-1).view(torch.uint8)


def _exchange(act: Callable[[], Any]) -> None:
    """Waits for the other processes.

    Raises:
        GroupError: One of them has ended, or has not answered within the timeout of the group.
    """
    try:
        act()
    except PplVaeError:
        raise
    except (RuntimeError, ValueError) as error:
        text = f"the other processes cannot be reached, one may have ended or hang: {first_line(error)}"
        raise GroupError(text) from error
