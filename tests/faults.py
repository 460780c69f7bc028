"""Faults of the disk and of the machine, put in the place of `ppl_vae.storage.calls.do`.

A fault is a function of the same form, which gets each system call before it is made. `Kill` and `Fail` stop at the
n-th; `Recorder` notes all of them, and `crashes` gives every state that the disk may be in after a loss of power.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ppl_vae import storage
from ppl_vae.errors import CheckpointError
from ppl_vae.storage import calls, files

KILLED = 77
_ONE_BY_ONE = threading.Lock()  # syncs are made at the same time


@contextmanager
def fault(do: Callable[..., Any]) -> Iterator[None]:
    """Context in which system calls of storage go through `do`."""
    before = calls.do
    calls.do = do
    try:
        yield
    finally:
        calls.do = before


class Kill:
    """Ends the process before its n-th call, or in the middle of it where it writes."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        with _ONE_BY_ONE:
            if self.left == 0:
                if operation is os.write:
                    os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os._exit(KILLED)
            self.left -= 1
            return operation(*arguments)


class Fail:
    """Refuses the n-th call and, for a full or dead disk, all of its kind that follow."""

    CHANGING = (os.write, os.fsync, os.mkdir, os.rename, os.unlink, os.rmdir, os.ftruncate, os.pwrite)

    def __init__(self, at: int, code: int, forever: bool = False) -> None:
        self.left, self.code, self.forever = at, code, forever
        self.happened = False

    def __call__(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        with _ONE_BY_ONE:
            due = self.left == 0 or (self.forever and self.happened and self.changes(operation, *arguments))
            self.left -= 1
        if not due:
            return operation(*arguments)
        self.happened = True
        if operation is os.close:
            os.close(*arguments)  # Linux frees the descriptor whatever close returns
        elif operation is os.write:
            os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
        raise OSError(self.code, os.strerror(self.code))

    def changes(self, operation: Callable[..., Any], *arguments: Any) -> bool:
        """Whether a call changes what is on the disk; one that opens a file makes it, or its entry in a folder."""
        return operation in self.CHANGING or (operation is os.open and bool(arguments[1] & os.O_CREAT))


class Flip:
    """A disk that fails without a word: one bit of what the n-th call of a kind writes or reads is another one."""

    def __init__(self, operation: Callable[..., Any], at: int) -> None:
        self.operation, self.left = operation, at

    def __call__(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        due = operation is self.operation and self.left == 0
        self.left -= operation is self.operation
        if not due:
            return operation(*arguments)
        if operation is os.write:
            return os.write(arguments[0], self.changed(bytes(arguments[1])))
        return self.changed(os.read(*arguments))

    def changed(self, content: bytes) -> bytes:
        return bytes([content[0] ^ 1]) + content[1:] if content else b"?"


class Call(NamedTuple):
    """A system call that was made."""

    name: str
    arguments: tuple[Any, ...]
    result: Any


class Recorder:
    """Notes every call and what it returned."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        with _ONE_BY_ONE:
            return self._noted(operation, *arguments)

    def _noted(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        result = operation(*arguments)
        kept = tuple(bytes(a) if isinstance(a, memoryview) else a for a in arguments)
        self.calls.append(Call(operation.__name__, kept, result))
        return result


def count(work: Callable[[], object]) -> int:
    """Number of system calls of a piece of work, those included that find nothing."""
    never = Fail(-1, 0)
    with fault(never):
        work()
    return -1 - never.left


def forked(work: Callable[[], object]) -> int:
    """Runs a piece of work in a forked process and returns how it ended: its exit code, or minus the signal.

    What the work raised stands among what the test has printed.
    """
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# The disk after a loss of power


class _File:
    def __init__(self, content: bytes = b"") -> None:
        self.durable, self.content = content, content

    def states(self) -> list[bytes]:
        """What may be on the disk: what was synced, all, a part of the rest, or zeros in its place."""
        if self.durable == self.content:
            return [self.content]
        rest = self.content[len(self.durable) :]
        half = self.durable + rest[: len(rest) // 2]
        return list(dict.fromkeys([self.durable, self.content, half, self.durable + bytes(len(rest))]))


class _Folder:
    def __init__(self) -> None:
        self.durable: dict[str, Any] = {}


class _Change(NamedTuple):
    """A change of names in a folder that no sync of the folder has followed."""

    folder: _Folder
    name: str
    node: Any
    """What gets the name; None where it goes."""
    source: str | None = None
    """The name that it had before."""


class Disk:
    """What is known to be on the disk, and what may be, as a system that promises no more than POSIX does it.

    Names become durable by a sync of their folder alone, bytes by a sync of their file; until then any of the changes
    may be there without those before it.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.tree = root, self._scan(root)
        self.pending: list[_Change] = []
        self.open: dict[int, Any] = {}

    def _scan(self, path: Path) -> Any:
        if path.is_file():
            return _File(path.read_bytes())
        folder = _Folder()
        folder.durable = {child.name: self._scan(child) for child in path.iterdir()}
        return folder

    def apply(self, call: Call) -> None:
        """Follows a call."""
        getattr(self, f"_{call.name}", lambda *_: None)(call.result, *call.arguments)

    def _names(self, folder: _Folder, chosen: Sequence[_Change]) -> dict[str, Any]:
        names = dict(folder.durable)
        for change in chosen:
            if change.folder is not folder:
                continue
            if change.source is not None:
                names.pop(change.source, None)
            if change.node is None:
                names.pop(change.name, None)
            else:
                names[change.name] = change.node
        return names

    def _find(self, path: Path) -> Any:
        node = self.tree
        for part in Path(path).relative_to(self.root).parts:
            node = self._names(node, self.pending).get(part)
        return node

    def _change(self, path: Path, node: Any, source: str | None = None) -> None:
        self.pending.append(_Change(self._find(Path(path).parent), Path(path).name, node, source))

    def _open(self, file: int, path: Path, flags: int, *_: Any) -> None:
        if flags & os.O_CREAT and self._find(path) is None:
            self._change(path, _File())
        self.open[file] = self._find(path)

    def _write(self, done: int, file: int, content: bytes) -> None:
        self.open[file].content += content[:done]

    def _ftruncate(self, _: None, file: int, size: int) -> None:
        self.open[file].content = self.open[file].content[:size]

    def _fsync(self, _: None, file: int) -> None:
        node = self.open[file]
        if isinstance(node, _File):
            node.durable = node.content
        else:
            node.durable = self._names(node, self.pending)
            self.pending = [change for change in self.pending if change.folder is not node]

    def _mkdir(self, _: None, path: Path) -> None:
        self._change(path, _Folder())

    def _rename(self, _: None, source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent, "only within a folder is a rename one change"
        self._change(target, self._find(source), Path(source).name)

    def _unlink(self, _: None, path: Path) -> None:
        self._change(path, None)

    _rmdir = _unlink

    def states(self, limit: int, chance: random.Random) -> Iterator[dict[str, Any]]:
        """Every state of the disk after a loss of power now, or `limit` of them by chance."""
        choices = [(False, True)] * len(self.pending)
        loose = [node for node in self._files() if len(node.states()) > 1]
        total = 2 ** len(choices) * math.prod(len(node.states()) for node in loose)
        spaces = [*choices, *(node.states() for node in loose)]
        picked = itertools.product(*spaces) if total <= limit else _sampled(spaces, limit, chance)
        for pick in picked:
            chosen = [change for change, there in zip(self.pending, pick, strict=False) if there]
            contents = dict(zip(map(id, loose), pick[len(choices) :], strict=True))
            yield self._tree(self.tree, chosen, contents)

    def _files(self) -> list[_File]:
        everything: dict[int, Any] = {}

        def visit(node: Any) -> None:
            everything[id(node)] = node
            if isinstance(node, _Folder):
                for child in self._names(node, self.pending).values():
                    visit(child)

        visit(self.tree)
        return [node for node in everything.values() if isinstance(node, _File)]

    def _tree(self, folder: _Folder, chosen: Sequence[_Change], contents: dict[int, bytes]) -> dict[str, Any]:
        return {
            name: self._tree(node, chosen, contents)
            if isinstance(node, _Folder)
            else contents.get(id(node), node.content)
            for name, node in self._names(folder, chosen).items()
        }


def _sampled(spaces: Sequence[Sequence[Any]], limit: int, chance: random.Random) -> Iterator[tuple[Any, ...]]:
    for _ in range(limit):
        yield tuple(chance.choice(space) for space in spaces)


def lay_out(tree: dict[str, Any], root: Path) -> None:
    """Puts a state of the disk into a new folder."""
    root.mkdir()
    for name, node in tree.items():
        if isinstance(node, dict):
            lay_out(node, root / name)
        else:
            (root / name).write_bytes(node)


# What is stored, and the recovery that must always be possible


def tensors_of(step: int, num_bytes: int = 2000) -> dict[str, torch.Tensor]:
    """The tensors of a step, every one of them a function of it."""
    generator = torch.Generator().manual_seed(step)
    return {
        "pair/weight": torch.rand(num_bytes // 8, generator=generator),
        "optimizer/moment": torch.rand(num_bytes // 16, generator=generator, dtype=torch.float64),
        "step": torch.tensor(step),
    }


def values_of(step: int) -> dict[str, Any]:
    """The plain values of a step."""
    return {"epoch": step // 10, "history": [step / 3, None, True], "seed": {"order": step}}


def save(folder: Path, step: int, num_bytes: int = 2000) -> None:
    """Writes the checkpoint of a step."""
    storage.write(folder, step, tensors_of(step, num_bytes), values_of(step))


def holds(found: storage.Checkpoint, num_bytes: int = 2000) -> bool:
    """Whether a checkpoint is, to the bit, what `save` wrote."""
    expected = tensors_of(found.step, num_bytes)
    same = all(torch.equal(found.tensors[name], expected[name]) for name in expected)
    return same and set(found.tensors) == set(expected) and found.plain == values_of(found.step)


def recovered(folder: Path, allowed: Sequence[int], num_bytes: int = 2000) -> str:
    """What is wrong with the folder after a crash: nothing, if the newest checkpoint is one of those allowed.

    No checkpoint stands there in part, no debris is left by the next start, and no checkpoint is lost by that.
    """
    for again in range(2):
        damaged = [reason for name in files.listed(folder) if (reason := _damage(folder / name))]
        if damaged:
            return damaged[0]
        found = storage.newest(folder) if storage.steps(folder) else None
        if (found.step if found else 0) not in allowed:
            return f"newest {found.step if found else 0}, allowed {allowed}"
        if found and not holds(found, num_bytes):
            return f"step {found.step} holds other numbers"
        if not again:
            storage.remove_debris(folder)
    left = [name for name in files.listed(folder) if not name.startswith("step-")]
    return f"debris {left}" if left else ""


def _damage(path: Path) -> str:
    try:
        if path.name.startswith("step-"):
            storage.read(path)
    except CheckpointError as error:
        return str(error)
    return ""


def killed_at_random(work: Callable[[Callable[[str], None]], object], after: float) -> list[str]:
    """Kills a forked process so many seconds after its first word, and returns what it had said until then."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ours)
            work(lambda text: os.write(theirs, (json.dumps(text) + "\n").encode()))
        finally:
            os._exit(1)
    os.close(theirs)
    first = os.read(ours, 1).decode()
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with os.fdopen(ours) as said:
        return [json.loads(line) for line in (first + said.read()).splitlines()]
