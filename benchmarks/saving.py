"""Checkpoints beside a raw write of the same bytes: `os.write` of one buffer, and one `fsync`."""

from __future__ import annotations

import os
import tempfile
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.setting import Setting
from benchmarks.timing import Case, Limit, Unavailable, elapsed
from benchmarks.workload import make_vae
from ppl_vae import storage

__all__ = ["saving_case"]

RAW, WRITTEN, SAVED = "raw write and fsync", "write", "write, remove the old one"
LARGE = 100_000_000


def saving_case(name: str, setting: Setting) -> Case:
    """Time of a checkpoint: of the network of most cases with the moments of Adam, or of 100 MB."""
    if setting.device.type != "cpu":
        raise Unavailable("this is about the disk, not a GPU")
    tensors = _state() if name == "checkpoint" else {"x": torch.ones(setting.choose(LARGE, 1000) // 4)}
    repeats = setting.choose(10 if name == "checkpoint" else 1, 1)
    folder = Path(setting.stack.enter_context(tempfile.TemporaryDirectory()))
    content = b"".join(x.numpy().tobytes() for x in tensors.values())
    steps = count()

    def raw() -> float:
        path = folder / "raw"
        taken = sum(elapsed(lambda: _write(path / str(next(steps)), content)) for _ in range(repeats)) / repeats
        for file in path.iterdir():
            file.unlink()
        return taken

    def save(prune: bool) -> float:
        def once() -> None:
            storage.write(folder / "checkpoints", next(steps), tensors, {"epoch": 1})
            if prune:
                storage.prune(folder / "checkpoints", keep_last=1)

        taken = sum(elapsed(once) for _ in range(repeats)) / repeats
        storage.prune(folder / "checkpoints", keep_last=1)
        return taken

    (folder / "raw").mkdir()
    title = f"Checkpoint of {len(content) / 1e6:.0f} MB"
    sides = {RAW: raw, WRITTEN: lambda: save(False), SAVED: lambda: save(True)}
    limits = [Limit(side, RAW, 2.0) for side in (WRITTEN, SAVED)]
    return Case(name, title, "checkpoint", sides, reference=RAW, floor=RAW, limits=limits)


def _state() -> dict[str, Tensor]:
    parameters = {name: tensor.detach() for name, tensor in make_vae().named_parameters()}
    return {f"{part}/{name}": x.clone() for part in ("pair", "first", "second") for name, x in parameters.items()}


def _write(path: Path, content: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
    os.fsync(file)
    os.close(file)
