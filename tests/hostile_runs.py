"""Hostile files of runs and of data; those that have a hash stand under an intact one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppl_vae.data import array_names, load_array
from ppl_vae.pair import as_pair
from ppl_vae.rundir import (
    DataSpec,
    Evaluation,
    PairSpec,
    RunDirectory,
    RunRecord,
    TrainingSpec,
    read_arrays,
    read_evaluation,
    read_run,
    write_evaluation,
)
from ppl_vae.rundir.records import write_record
from ppl_vae.storage import plain
from tests.bombs import DEEP, LYING, OBJECTS, PICKLE, Bomb, Case, archive, of_numpy, of_torch, twice
from tests.evaluations import evaluation, result


def run_file(name: str, content: bytes, read: Callable[[Path], object]) -> Case:
    """A file of a run directory."""
    return Case(read, lambda folder: (folder.mkdir(), (folder / name).write_bytes(content), None)[-1])


def data(name: str, content: bytes, read: Callable[[Path], object] = load_array) -> Case:
    return Case(lambda folder: read(folder / name), run_file(name, content, read).make)


def sealed(name: str, fields: Any, read: Callable[[Path], object]) -> Case:
    """A record of a run under an intact hash."""
    return run_file(name, plain.seal(fields, indent=2), read)


def run_record(**changes: Any) -> Case:
    """A `run.json` under an intact hash that says something else."""
    record = RunRecord(("ppl-vae",), PairSpec("vae"), DataSpec("digits"), "0" * 64, "cpu", 3)
    return sealed("run.json", asdict(record) | changes, read_run)


TRAINING = TrainingSpec(
    epochs=1,
    batch_size=8,
    learning_rate=0.1,
    schedule="constant",
    objective="elbo",
    num_particles=1,
    beta=1.0,
    beta_warmup=0,
    gradient="pathwise",
    discrete="score",
    validation=True,
    patience=None,
    seed=0,
    device="cpu",
    compile=False,
    on_nonfinite="stop",
)
OUT_OF_RANGE: list[tuple[str, Any]] = [
    ("batch_size", 0),
    ("epochs", 0),
    ("epochs", 2**62),
    ("num_particles", 2**40),
    ("num_particles", 0),
    ("beta", -1.0),
    ("beta", 10**400),
    ("beta_warmup", -1),
    ("patience", 0),
    ("learning_rate", 0),
    ("learning_rate", -0.1),
    ("seed", 2**63),
    ("compile", 1),
]


COUNTED = ("num_parameters", "steps", "best_step", "seconds")
UNREAL = [
    *((name, -1.0) for name in ("mean_stderr", "population_stderr", "ess", "seconds", "share_untrusted")),
    ("share_untrusted", 7.0),
    ("khat_threshold", 1.5),
]


def trained(name: str, value: Any) -> Case:
    """A `run.json` with an option of the training that is out of its range."""
    return run_record(training=asdict(TRAINING) | {name: value})


def evaluation_record(**changes: Any) -> Case:
    """An `evaluation.json` under an intact hash that says something else."""
    return sealed("evaluation.json", asdict(evaluation()) | changes, read_evaluation)


def evaluated_at(record: Evaluation) -> Case:
    """Another record beside the arrays of `result()`."""

    def make(folder: Path) -> None:
        folder.mkdir()
        write_evaluation(folder, record, result())

    return Case(lambda folder: read_arrays(folder, ["value"]), make)


def evaluated(content: bytes | Callable[[Path], object]) -> Case:
    """The arrays of an evaluation, whose record states the hash of what is there."""

    def make(folder: Path) -> None:
        folder.mkdir()
        path = folder / "evaluation.npz"
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        found = hashlib.sha256(content if isinstance(content, bytes) else b"").hexdigest()
        write_record(folder / "evaluation.json", evaluation(arrays_sha256=found))

    return Case(lambda folder: read_arrays(folder, ["value"]), make)


def read_parameters(folder: Path) -> None:
    RunDirectory(folder).read_parameters(as_pair(_Pair()))


class _Pair:
    def model(self, x: torch.Tensor) -> None: ...
    def guide(self, x: torch.Tensor) -> None: ...


def read_history(folder: Path) -> None:
    RunDirectory(folder).read_history()


LARGE = LYING.replace(b"(4611686018427387904, 4)", b"(1099511627776,)".ljust(24))
BROKEN = bytearray(archive(value__npy=of_numpy(np.arange(3.0))))
BROKEN[45:60] = b"\xff" * 15  # within the deflated numbers

RUNS: dict[str, Case] = {
    "objects as .npy": data("x.npy", OBJECTS),
    "pickle as .npy": data("x.npy", PICKLE),
    "code in the header of .npy": data(
        "x.npy", LYING.replace(b"'descr': '<f4'", b"'descr': exit(9)"[:14].ljust(14)) + bytes(64)
    ),
    "shape of 2^64 numbers in .npy": data("x.npy", LYING + bytes(64)),
    "objects in .npz": data("x.npz", archive(x__npy=OBJECTS)),
    "pickle in .npz": data("x.npz", archive(x__npy=PICKLE)),
    "pickle as .npz": data("x.npz", PICKLE),
    "file of torch.save as .npz": data("x.npz", of_torch({"x": Bomb()})),
    "bomb in .npz": data(
        "x.npz", archive(x__npy=of_numpy(np.zeros(2**23, np.uint8))), partial(load_array, max_bytes=2**20)
    ),
    "two arrays of one name in .npz": data("x.npz", twice("x.npy", of_numpy(np.ones((2, 2))), OBJECTS)),
    "shape that lies in the second of one name": data(
        "x.npz", twice("x.npy", of_numpy(np.ones((2, 2))), LYING + bytes(64))
    ),
    "no zip": data("x.npz", b"PK\3\4" + bytes(99), array_names),
    "pickle as run.json": run_file("run.json", PICKLE, read_run),
    "deep run.json": run_file("run.json", DEEP, read_run),
    "run.json without a hash": run_file("run.json", b'{"pair": "os.system"}', read_run),
    "run.json of other fields": sealed("run.json", {"pair": "os.system"}, read_run),
    "run.json with a pair that is a name": run_record(pair="os.system"),
    "run.json with a hidden layer of 2^40": run_record(
        pair={"name": "vae", "latent_dim": 2, "hidden": [2**40], "seed": 0}
    ),
    "run.json with 10,000 hidden layers": run_record(
        pair={"name": "vae", "latent_dim": 2, "hidden": [1] * 10_000, "seed": 0}
    ),
    "run.json with layers of 2^40 weights": run_record(
        pair={"name": "vae", "latent_dim": 2, "hidden": [2**20, 2**20], "seed": 0}
    ),
    "run.json with 2^40 latents": run_record(pair={"name": "vae", "latent_dim": 2**40, "hidden": [2], "seed": 0}),
    "run.json with -1 latents": run_record(pair={"name": "vae", "latent_dim": -1, "hidden": [2], "seed": 0}),
    "run.json with 2^40 levels": run_record(data=asdict(DataSpec("digits")) | {"quantize": 2**40}),
    "run.json with a time of 10^400 seconds": run_record(seconds=10**400),
    "run.json with 2^70 parameters": run_record(num_parameters=2**70),
    **{f"run.json with {name} of {value}": trained(name, value) for name, value in OUT_OF_RANGE},
    "run.json with an evaluation of no samples": run_record(evaluation={"num_samples": 0, "limit": 10}),
    "run.json with an evaluation of -1 data": run_record(evaluation={"num_samples": 10, "limit": -1}),
    "evaluation.json with a mean of 10^400": evaluation_record(mean=10**400),
    "evaluation.json of data of -1 dimensions": evaluation_record(event_size=-1),
    "evaluation.json of a mean that is not that of its data": evaluated_at(evaluation(mean=-9.0)),
    **{f"evaluation.json with {name} of {value}": evaluation_record(**{name: value}) for name, value in UNREAL},
    **{f"run.json with {name} of -1": run_record(**{name: -1}) for name in COUNTED},
    "evaluation.json of no data": evaluation_record(num_data=0),
    "evaluation.json of other fields": sealed("evaluation.json", {"mean": "os.system"}, read_evaluation),
    "pipe as run.json": Case(read_run, lambda folder: (folder.mkdir(), os.mkfifo(folder / "run.json"), None)[-1]),
    "pipe as arrays of an evaluation": evaluated(os.mkfifo),
    "folder as arrays of an evaluation": evaluated(os.mkdir),
    "link to zeros as arrays of an evaluation": evaluated(lambda path: path.symlink_to("/dev/zero")),
    "empty file as arrays of an evaluation": evaluated(b""),
    "pickle as arrays of an evaluation": evaluated(PICKLE),
    ".npy as arrays of an evaluation": evaluated(of_numpy(np.ones(3))),
    "objects in the arrays of an evaluation": evaluated(archive(value__npy=of_numpy(np.array([Bomb()] * 3)))),
    "damaged deflate in the arrays of an evaluation": evaluated(bytes(BROKEN)),
    "2^40 numbers in the arrays of an evaluation": evaluated(archive(value__npy=LARGE + bytes(24))),
    "bomb in the arrays of an evaluation": evaluated(archive(value__npy=of_numpy(np.zeros(2**24, np.uint8)))),
    "two arrays of one name in an evaluation": evaluated(twice("value.npy", of_numpy(np.ones(3)), OBJECTS)),
    "arrays of another length in an evaluation": evaluated(archive(value__npy=of_numpy(np.ones(4)))),
    "no arrays in an evaluation": evaluated(archive(other__npy=of_numpy(np.ones(3)))),
    "deep evaluation.json": run_file("evaluation.json", DEEP, read_evaluation),
    "pickle as history": run_file("history.jsonl", b"\n" + PICKLE + b"\n", read_history),
    "list in history": run_file("history.jsonl", b"[1]\n", read_history),
    "history without a hash": run_file("history.jsonl", b'{"step":7}\n', read_history),
    "pickle as parameters": run_file("parameters.safetensors", PICKLE, read_parameters),
}
