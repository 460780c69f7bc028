"""Runs in which one file is hostile, and what goes on with them: a fit that resumes, `replay`, `ppl-vae evaluate`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import ppl_vae as pv
from ppl_vae.cli.evaluating import EvaluationSettings, evaluate
from ppl_vae.distributed import current
from ppl_vae.storage import plain
from tests.bombs import OBJECTS, PICKLE, SIGN, STATE, TENSORS, Case, sign
from tests.commands import SMALL_VAE, TINY, read, rewritten, succeed
from tests.pairs import ModuleVAE
from tests.resuming import binary, run

SOUND = "sound"
CODE = f"__import__('os').mkdir({SIGN!r})"
SETTINGS = EvaluationSettings(num_samples=5, limit=10, seed=0, device="cpu")
CHECKPOINT, BAD_STEP = Path("checkpoints", "step-000000003"), Path("bad-steps", "step-000000000")


def normal_vae() -> pv.VAE:
    decoder, encoder = pv.decoders.Gaussian.mlp(1, [4], 2), pv.encoders.DiagonalNormal.mlp(2, [4], 1)
    return pv.VAE(pv.priors.StandardNormal(1), decoder, encoder)


ACTS: dict[str, Callable[[Path], object]] = {
    "fit": lambda folder: run(ModuleVAE, binary, {"epochs": 1}, seed=1, run_dir=folder, resume=True),
    "replay": lambda folder: pv.replay(normal_vae(), folder),
    "evaluate": lambda folder: evaluate(folder, None, None, SETTINGS, current()),
}


def prepare(root: Path) -> None:
    """Makes a sound run for each act, and does with a copy of it what is done with the hostile ones.

    What that imports, compiles and caches is no news afterwards.
    """
    sound = root / SOUND
    run(ModuleVAE, binary, {"epochs": 1}, run_dir=sound / "fit")
    with suppress(pv.EstimateError):
        pv.fit(normal_vae(), torch.full((8, 2), 1e30), run_dir=sound / "replay", epochs=1, progress=False, device="cpu")
    succeed("fit", *SMALL_VAE, *TINY, "--device", "cpu", "--compile", "no", "--run-dir", sound / "evaluate")
    for name, act in ACTS.items():
        act(shutil.copytree(sound / name, root / "again" / name))


def case(act: str, damage: Callable[[Path], object]) -> Case:
    """A copy of the sound run in which something is another thing."""

    def make(folder: Path) -> None:
        shutil.copytree(folder.parent / SOUND / act, folder)
        damage(folder)

    return Case(ACTS[act], make)


def swapped(name: str | Path, content: bytes | Callable[[Path], object]) -> Callable[[Path], None]:
    """One file, or folder, is another; checkpoints that it stands in have intact hashes all the same."""

    def damage(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
            if path.name in (TENSORS, STATE):
                sign(path.parent, step=int(path.parent.name.partition("-")[2]))

    return damage


def state(folder: Path, **changes: Any) -> Callable[[Path], None]:
    """A checkpoint under intact hashes whose plain values say something else."""

    def damage(root: Path) -> None:
        fields = json.loads((root / folder / STATE).read_bytes())
        swapped(folder / STATE, plain.encode(fields | changes))(root)

    return damage


def described(**changes: Any) -> Callable[[Path], None]:
    """A description under an intact hash; a dictionary changes a part of a part."""

    def damage(root: Path) -> None:
        fields = read(root / "run.json")
        parts = {n: fields[n] | value if isinstance(value, dict) else value for n, value in changes.items()}
        rewritten(root / "run.json", root / "run.json", **parts)

    return damage


def elsewhere(path: Path) -> None:
    """A link to a folder that is someone else's."""
    path.symlink_to(path.parents[1] / SOUND / "fit" / "checkpoints")


def with_objects(root: Path) -> None:
    (root / "x.npy").write_bytes(OBJECTS)
    described(data={"name": str(root / "x.npy"), "binarize": "none"})(root)


FITS: dict[str, Case] = {
    "a fit goes on: pickle as tensors": case("fit", swapped(CHECKPOINT / TENSORS, PICKLE)),
    "a fit goes on: pickle as state": case("fit", swapped(CHECKPOINT / STATE, PICKLE)),
    "a fit goes on: code among the values of programs": case("fit", state(CHECKPOINT, values={"x": CODE})),
    "a fit goes on: code in place of an optimiser": case("fit", state(CHECKPOINT, optimizer=CODE)),
    "a fit goes on: code in place of facts": case("fit", state(CHECKPOINT, facts=[CODE])),
    "a fit goes on: a type of NumPy that is code": case(
        "fit", state(CHECKPOINT, values={"x": {"bytes": [CODE, "00"]}})
    ),
    "a fit goes on: checkpoints elsewhere": case("fit", swapped("checkpoints", elsewhere)),
    "a fit goes on: bad steps elsewhere": case("fit", swapped("bad-steps", elsewhere)),
    "a fit goes on: pipe as lock": case("fit", swapped(".lock", os.mkfifo)),
    "a fit goes on: link as lock": case("fit", swapped(".lock", lambda path: path.symlink_to("../control"))),
    "replay: pickle as tensors": case("replay", swapped(BAD_STEP / TENSORS, PICKLE)),
    "replay: pickle as state": case("replay", swapped(BAD_STEP / STATE, PICKLE)),
    "replay: code in place of an objective": case("replay", state(BAD_STEP, objective=CODE)),
    "replay: code in place of a weight": case("replay", state(BAD_STEP, beta=CODE)),
    "replay: pipe as tensors": case("replay", swapped(BAD_STEP / TENSORS, os.mkfifo)),
    "evaluate: pickle as parameters": case("evaluate", swapped("parameters.safetensors", PICKLE)),
    "evaluate: link to zeros as parameters": case(
        "evaluate", swapped("parameters.safetensors", lambda path: path.symlink_to("/dev/zero"))
    ),
    "evaluate: a pair that is code": case("evaluate", described(pair={"name": "os:system"})),
    "evaluate: a pair that is a file": case("evaluate", described(pair={"name": "/tmp/code.py:run"})),
    "evaluate: data that are objects": case("evaluate", with_objects),
    "evaluate: data with a name of 300 characters": case("evaluate", described(data={"name": "x" * 300 + ".npy"})),
    "evaluate: figures elsewhere": case("evaluate", swapped("figures", elsewhere)),
    "evaluate: pipe as lock": case("evaluate", swapped(".lock-evaluation", os.mkfifo)),
}
