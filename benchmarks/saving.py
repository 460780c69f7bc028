"""What saving costs: a checkpoint beside a raw write of the same bytes, and a whole run with a directory and without.

A raw write is `os.write` of one buffer, and one `fsync`.
"""

from __future__ import annotations

import os
import tempfile
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.setting import Setting
from benchmarks.timing import Case, Limit, Unavailable, elapsed
from benchmarks.workload import images, make_vae
from ppl_vae import fit, storage

__all__ = ["run_case", "saving_case"]

RAW, WRITTEN, SAVED = "raw write and fsync", "write", "write, remove the old one"
WITHOUT, WITH = "ppl_vae fit", "ppl_vae fit, run_dir"
LARGE = 100_000_000


def saving_case(name: str, setting: Setting) -> Case:
    """Time of a checkpoint: of the network of most cases with the moments of Adam, or of 100 MB."""
    _refuse_gpu(setting)
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


def run_case(name: str, setting: Setting) -> Case:
    """Time of a whole fit of as many images as MNIST has, with all that `run_dir` adds to it by default."""
    _refuse_gpu(setting)
    x, epochs = images(setting.choose(60_000, 256)), setting.choose(20, 1)
    folder = Path(setting.stack.enter_context(tempfile.TemporaryDirectory()))
    runs = count()

    def timed(saves: bool) -> float:
        vae, root = make_vae(), folder / f"{next(runs)}" if saves else None
        return elapsed(lambda: fit(vae, x, epochs=epochs, run_dir=root, device="cpu", progress=False))

    title = f"{epochs} epochs of {len(x):,} images, batch 128, with checkpoints"
    sides = {WITHOUT: lambda: timed(False), WITH: lambda: timed(True)}
    return Case(name, title, "run", sides, reference=WITHOUT, limits=[Limit(WITH, WITHOUT, 1.01)])


def _refuse_gpu(setting: Setting) -> None:
    if setting.device.type != "cpu":
        raise Unavailable("this is about the disk, not a GPU")


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
