"""Checkpoints: named tensors and plain values in a folder of their own, whole or absent, verified before use.

A checkpoint of step 1200 is the folder `step-000001200`, or `step-000001200.2` if it is the second of this step: none
is ever overwritten. It holds `tensors.safetensors`, `state.json` and `manifest.json`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ppl_vae.errors import CheckpointError, StorageError, refusal
from ppl_vae.options import whole_number
from ppl_vae.storage import calls, files, plain, tensors
from ppl_vae.storage.manifest import FORMAT, MAX_MANIFEST, Manifest, NewerFormatError
from ppl_vae.storage.versions import version_of

__all__ = [
    "Checkpoint",
    "UnreadableError",
    "check_storable",
    "discard_after",
    "newest",
    "prune",
    "read",
    "step_folder",
    "steps",
    "write",
]

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
MAX_STATE = 2**26
_NAME = re.compile(r"step-(\d{9,18})(?:\.(\d{1,9}))?")
_NOT_A_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}  # it is gone, or something else


class UnreadableError(CheckpointError):
    """The system does not let a checkpoint be read: whether it is good nobody knows, and it is not passed over."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    step: int
    """Number of steps done."""
    tensors: dict[str, Tensor]
    """Tensors by name, on the processor."""
    plain: dict[str, Any]
    """Plain values by name."""
    path: Path
    """Its folder."""
    library: str
    """Version of ppl_vae that wrote it."""
    skipped: tuple[str, ...] = ()
    """Of each newer checkpoint that is damaged, the file and what is wrong with it."""


class _Entry(NamedTuple):
    """A name in the folder of checkpoints; entries are ordered by step and attempt, never by the clock."""

    step: int
    attempt: int

    @property
    def name(self) -> str:
        return f"step-{self.step:09d}" + (f".{self.attempt}" if self.attempt > 1 else "")


def write(folder: Path, step: int, named: Mapping[str, Tensor], values: Mapping[str, Any]) -> Path:
    """Writes a checkpoint; when this returns, it is durable and was read back, and at no moment it is there in part.

    Args:
        folder: The folder of checkpoints, made if it is missing.
        step: Number of steps done.
        named: Tensors by name, of any shape, on any device.
        values: Plain values by name: what JSON holds exactly, see `plain.encode`.

    Returns:
        The folder of this checkpoint.

    Raises:
        ValueError: A tensor or a value cannot be stored; its name is in the message.
        CheckpointError: There is more than a checkpoint may hold, or the disk refuses or gives back other bytes;
            earlier checkpoints are as they were, and it is said whether this one stands.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as root:
        ...     _ = write(Path(root), 7, {"weight": torch.ones(2)}, {"beta": 0.5})
        ...     found = newest(Path(root))
        >>> found.step, found.tensors, found.plain
        (7, {'weight': tensor([1., 1.])}, {'beta': 0.5})
    """
    whole_number("step", step, least=0)
    chunks, state = _chunks(named), plain.encode(dict(values))
    if len(state) > MAX_STATE:
        raise CheckpointError(
            f"step {step}: no checkpoint written: expected at most {MAX_STATE} bytes of plain values, found "
            f"{len(state)}: keep arrays as tensors"
        )

    def manifest(sums: files.Sums) -> bytes:
        return Manifest(FORMAT, version_of("ppl-vae") or "unknown", step, dict(sums)).to_bytes()

    path: Path | None = None
    try:
        files.make_folder(folder)
        same = [entry.attempt for entry in _entries(folder) if entry.step == step]
        path = folder / _Entry(step, max(same, default=0) + 1).name
        files.write_folder(path, {TENSORS: chunks, STATE: [state]}, MANIFEST, manifest)
    except StorageError as error:
        if path is not None and os.path.lexists(path):  # only the folder it is in could not be synced
            what = f"{path}: the checkpoint is written and whole, but a loss of power may undo it"
        else:
            what = f"step {step}: no checkpoint written, earlier ones are as they were"
        raise CheckpointError(f"{what}: {error}") from error
    return path


def check_storable(named: Mapping[str, Tensor]) -> None:
    """Refuses tensors that no checkpoint can hold, before anything is written.

    Raises:
        ValueError: Of a tensor by its name, or the name itself.
        CheckpointError: They are too large together.
    """
    _chunks(named)


def newest(folder: Path) -> Checkpoint:
    """Reads the newest checkpoint that is not damaged.

    Raises:
        CheckpointError: There is none, or each one is damaged; each file is named, and what is wrong with it. Or the
            newest one that is not damaged was written by a newer version: an older one would be no better.
        UnreadableError: The system does not let one be read that may be good.
    """
    skipped: list[str] = []
    for entry in reversed(_entries(folder)):
        try:
            found = read(folder / entry.name)
        except (NewerFormatError, UnreadableError):
            raise
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        return replace(found, skipped=tuple(skipped))
    reasons = "".join(f"\n  {reason}" for reason in skipped) or " none"
    raise CheckpointError(f"{folder}: expected a checkpoint that can be used, found{reasons}")


def read(path: Path) -> Checkpoint:
    """Reads one checkpoint, and believes nothing that its hashes do not bear out.

    Raises:
        CheckpointError: It is damaged, is no checkpoint, or a newer version wrote it.
        UnreadableError: The system does not let it be read.
    """
    try:
        with calls.failing("cannot be read", path):
            return _read(path)
    except CheckpointError:
        raise
    except StorageError as error:
        if refusal(cause := error.__cause__) and getattr(cause, "errno", None) not in _NOT_A_FILE:
            raise UnreadableError(
                f"{error}: the checkpoint may be good: try again, or move {path} away to go on from the one before it"
            ) from error
        raise CheckpointError(str(error)) from error


def prune(folder: Path, keep_last: int = 2) -> list[Path]:
    """Removes old checkpoints; the newest one is durable and has been read back, or `write` would have failed.

    Args:
        folder: The folder of checkpoints.
        keep_last: How many steps to keep, at least 1; of each its last checkpoint.

    Returns:
        The folders removed.

    Raises:
        CheckpointError: The disk refuses.
    """
    whole_number("keep_last", keep_last, least=1)
    last = {entry.step: entry for entry in _entries(folder)}
    kept = {last[step] for step in last if step in sorted(last)[-keep_last:]}
    return _remove([folder / entry.name for entry in _entries(folder) if entry not in kept])


def discard_after(path: Path) -> list[Path]:
    """Removes the checkpoints after one, damaged or given up by a run that goes on from this one; returns them.

    Raises:
        CheckpointError: The disk refuses, or the one is gone.
    """
    entries = [entry.name for entry in _entries(path.parent)]
    if path.name not in entries:
        raise CheckpointError(f"{path}: expected the checkpoint that was read, found none: someone has removed it")
    return _remove([path.parent / name for name in entries[entries.index(path.name) + 1 :]])


def steps(folder: Path) -> list[int]:
    """Returns the steps of which there are checkpoints, from the first to the last, whether damaged or not.

    Raises:
        CheckpointError: The folder cannot be read.
    """
    return sorted({entry.step for entry in _entries(folder)})


def step_folder(folder: Path, step: int) -> Path:
    """Returns where the last checkpoint of a step is.

    Raises:
        CheckpointError: There is none.
    """
    attempts = [entry for entry in _entries(folder) if entry.step == step]
    if not attempts:
        raise CheckpointError(f"{folder}: expected a checkpoint of step {step}, found {steps(folder) or 'none'}")
    return folder / max(attempts).name


def _entries(folder: Path) -> list[_Entry]:
    try:
        matches = [match for name in files.listed(folder) if (match := _NAME.fullmatch(name))]
    except StorageError as error:
        raise CheckpointError(str(error)) from error
    entries = [(_Entry(int(match[1]), int(match[2] or 1)), match[0]) for match in matches]
    return sorted(entry for entry, name in entries if entry.name == name)


def _chunks(named: Mapping[str, Tensor]) -> Iterable[Any]:
    """The pieces of the file of tensors; raises as `check_storable` says."""
    chunks = tensors.to_chunks(named)
    size = sum(tensor.numel() * tensor.element_size() for tensor in named.values())
    if size > tensors.MAX_BYTES:
        raise CheckpointError(
            f"no checkpoint written: expected at most {tensors.MAX_BYTES} bytes of tensors, found {size}: leave out "
            "run_dir, or train a smaller pair"
        )
    return chunks


def _read(path: Path) -> Checkpoint:
    manifest = _manifest(path)
    state = plain.decode(_verified(path, STATE, manifest, MAX_STATE), path / STATE)
    if type(state) is not dict:
        raise StorageError(f"{path / STATE}: expected values by name, found {type(state).__name__}")
    named = tensors.from_bytes(_verified(path, TENSORS, manifest, tensors.MAX_BYTES), path / TENSORS)
    return Checkpoint(manifest.step, named, state, path, manifest.library)


def _manifest(path: Path) -> Manifest:
    if not stat.S_ISDIR(_mode(path)):
        raise StorageError(f"{path}: expected the folder of a checkpoint, found something else")
    manifest = Manifest.from_bytes(files.read(path / MANIFEST, MAX_MANIFEST), path / MANIFEST)
    if set(manifest.files) != {TENSORS, STATE}:
        raise StorageError(f"{path / MANIFEST}: expected the files {STATE} and {TENSORS}, found others")
    if (named := _NAME.fullmatch(path.name)) and int(named[1]) != manifest.step:
        raise StorageError(f"{path / MANIFEST}: expected step {int(named[1])}, found {manifest.step}: it was renamed")
    return manifest


def _verified(path: Path, name: str, manifest: Manifest, max_bytes: int) -> bytes:
    """The bytes of a file, which are those that were written."""
    expected = manifest.files[name]
    content = files.read(path / name, min(expected.num_bytes, max_bytes))
    found = files.Written(len(content), hashlib.sha256(content).hexdigest())
    if found.num_bytes != expected.num_bytes:
        raise StorageError(f"{path / name}: expected {expected.num_bytes} bytes, found {found.num_bytes}")
    if found.sha256 != expected.sha256:
        raise StorageError(
            f"{path / name}: expected SHA-256 {expected.sha256}, found {found.sha256}: the file is damaged"
        )
    return content


def _remove(paths: list[Path]) -> list[Path]:
    try:
        files.remove(paths)
    except StorageError as error:
        raise CheckpointError(f"newer checkpoints are as they were: {error}") from error
    return paths


def _mode(path: Path) -> int:
    try:
        return calls.do(os.lstat, path).st_mode
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
