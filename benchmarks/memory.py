"""Peak resident memory: of an evaluation against K, and of a fit and an evaluation against the size of a mapped file.

Each number is that of a process of its own, libraries included, since a process never gives back its peak.

The mapped files hold float32 binary images. A part of the rows, spread over the whole file, are digits; the others are
blank and take no room on disk where the file system knows holes. `fit` checks every row, trains on batches from all
over the file, and the log-likelihood is that of the last rows.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

import ppl_vae as pv
from benchmarks.evaluation import evaluate
from benchmarks.setting import Setting
from benchmarks.timing import Case, Limit, Unavailable
from benchmarks.workload import IMAGE, images, make_vae

__all__ = ["mapped_case", "samples_case", "write_images"]

GIGABYTE = 10**9
NOTHING = "libraries and network"
PIECE, SPACING = 1024, 16  # of every 16 pieces of 1,024 rows, one holds digits


def samples_case(name: str, setting: Setting) -> Case:
    """Peak of an evaluation with few and with many samples."""
    num_data, few, many = setting.choose(200, 4), setting.choose(500, 5), setting.choose(50_000, 500)
    small, large = f"K = {few:,}", f"K = {many:,}"
    sides = {
        large: partial(_peak_of, "samples", num_data, many),
        small: partial(_peak_of, "samples", num_data, few),
        NOTHING: partial(_peak_of, "samples", num_data, 0),
    }
    title = f"Peak memory of the log-likelihood of {num_data} images"
    limits = (Limit(large, small, 1.05), Limit(large, None, GIGABYTE))
    return _memory_case(name, title, sides, small, limits, setting, max_rounds=3)


def mapped_case(name: str, setting: Setting) -> Case:
    """Peak of a fit and an evaluation on data in a small and in a large file.

    Raises:
        Unavailable: There is no room for the files.
    """
    few, many = setting.choose(GIGABYTE, 10**6), setting.choose(8 * GIGABYTE, 8 * 10**6)
    folder = setting.stack.enter_context(tempfile.TemporaryDirectory())
    free = shutil.disk_usage(folder).free
    if free < 1.5 * (few + many):
        raise Unavailable(f"{1.5 * (few + many) / 1e9:.1f} GB of free disk wanted in {folder}, {free / 1e9:.1f} found")
    paths = {_size_text(size): Path(folder) / f"{size}.npy" for size in (many, few)}
    for path in paths.values():
        write_images(path, int(path.stem))
    large, small = paths
    steps, evaluated = setting.choose(300, 3), setting.choose(200, 4)
    sides = {label: partial(_peak_of, "mapped", str(path), steps, evaluated) for label, path in paths.items()}
    sides[NOTHING] = partial(_peak_of, "mapped", str(paths[small]), 0, 0)
    title = f"Peak memory of {steps} steps and an evaluation on a memory-mapped file"
    return _memory_case(name, title, sides, small, (Limit(large, small, 1.1),), setting, max_rounds=1)


def write_images(path: Path, num_bytes: int) -> None:
    """Write a `.npy` of images (N, 784), float32, of about a size: digits in some places, blank in between."""
    rows = num_bytes // (4 * IMAGE)
    x = np.lib.format.open_memmap(path, "w+", np.float32, (rows, IMAGE))
    digits = images(PIECE).numpy()
    for start in range(0, rows, SPACING * PIECE):
        piece = x[start : start + PIECE]
        piece[:] = digits[: len(piece)]
    x[-PIECE:] = digits[-min(rows, PIECE) :]
    x.flush()


def _memory_case(
    name: str, title: str, sides: dict, reference: str, limits: tuple, setting: Setting, max_rounds: int
) -> Case:
    if setting.device.type != "cpu":
        raise Unavailable("this is about the memory of the process, not that of a GPU")
    return Case(
        name,
        title,
        "process",
        sides,
        reference=reference,
        floor=NOTHING,
        limits=limits,
        quantity="bytes",
        max_rounds=max_rounds,
        warm_up=False,
    )


def _size_text(size: int) -> str:
    return f"{size // GIGABYTE} GB" if size >= GIGABYTE else f"{size // 10**6} MB"


def _peak_of(*work: str | int) -> float:
    """Do some work in a process of its own and return its peak resident memory, in bytes."""
    command = [sys.executable, "-m", "benchmarks.memory", *map(str, work)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _peak() -> int:
    """Peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux carries the ru_maxrss of the parent over to the child; VmHWM belongs to this program alone.
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _samples(num_data: int, num_samples: int) -> None:
    vae, x = make_vae(), images(num_data)
    if num_samples:
        evaluate(vae, x, num_samples, False)


def _mapped(path: str, steps: int, evaluated: int) -> None:
    vae, x = make_vae(), np.load(path, mmap_mode="r", allow_pickle=False)
    if steps:
        pv.fit(vae, x, steps=steps, batch_size=128, device="cpu", compile=False, progress=False)
        pv.log_likelihood(vae, x[-evaluated:], 100, device="cpu", compile=False, progress=False)


def _main(work: str, *arguments: str) -> None:
    if work == "samples":
        _samples(*map(int, arguments))
    else:
        path, steps, evaluated = arguments
        _mapped(path, int(steps), int(evaluated))
    print(json.dumps(_peak()))


if __name__ == "__main__":
    _main(*sys.argv[1:])
