"""Whole runs, with all that they cost once: 20 epochs of MNIST, MNIST to a given test ELBO, 5 epochs of digits.

A run of MNIST is a process of its own with an empty cache of compiled code, so that every round compiles anew; the
time starts when libraries and data are loaded. All sides see 60,000 images x 784, drawn anew as binary data in each
step, in shuffled batches of 128, and start from the same parameters (NumPyro from the same distribution). Where the
test ELBO is wanted, each computes it after every epoch, on the same binary test images, and that time counts too.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ppl_vae as pv
from benchmarks.others import LEARNING_RATE, batches, by_hand_step
from benchmarks.peer import NUMPYRO as NUMPYRO_WORKER
from benchmarks.peer import start_peer
from benchmarks.setting import Setting
from benchmarks.timing import Case, Limit, Unavailable, elapsed
from benchmarks.workload import by_hand_loss, images, make_vae
from ppl_vae.data.origins import data_root

__all__ = ["curve", "digits_case", "mnist_case", "time_of"]

OURS, BY_HAND, BY_HAND_COMPILED = "ppl_vae fit", "PyTorch by hand", "PyTorch by hand, compiled"
NUMPYRO = "NumPyro SVI, lax.scan"
AUTO, WRITTEN = 'ppl_vae fit, compile="auto"', "ppl_vae fit, compile=False"
BATCH_SIZE, TARGET = 128, -108.0
BLOCK = 500  # test data at once of the sides by hand


def mnist_case(name: str, setting: Setting) -> Case:
    """Time of 20 epochs of MNIST, or of as many as reach the test ELBO `TARGET`.

    Raises:
        Unavailable: MNIST is not in the data directory.
    """
    x, test = _digits_for(setting)
    to_target = name == "mnist-elbo"
    folder = setting.stack.enter_context(tempfile.TemporaryDirectory())
    np.save(Path(folder) / "x.npy", x.numpy())
    np.save(Path(folder) / "test.npy", test.numpy())
    epochs = setting.choose(20, 2)
    target = (-math.inf if setting.quick else TARGET) if to_target else None
    sides = {
        label: partial(_cold_time, label, folder, epochs, target, setting)
        for label in (OURS, BY_HAND, BY_HAND_COMPILED)
    }
    sides[NUMPYRO] = partial(_numpyro_time, x, folder, epochs, target, setting)
    what = f"MNIST to a test ELBO of {TARGET:g} nats per datum" if to_target else f"{epochs} epochs of MNIST"
    limits = () if to_target else (Limit(OURS, BY_HAND_COMPILED, 0.9),)
    return Case(
        name,
        f"{what}, batch {BATCH_SIZE}, compiling included",
        "run",
        sides,
        reference=BY_HAND_COMPILED,
        limits=limits,
        max_rounds=3,
        warm_up=False,
    )


def digits_case(name: str, setting: Setting) -> Case:
    """Time of a fit so short that compiling never pays: "auto" must not cost anything."""
    x, repeats = pv.data.load("digits").train, setting.choose(5, 1)

    def run(compile: Any) -> None:
        decoder = pv.decoders.Bernoulli.mlp(50, [200, 200], 64)
        vae = pv.VAE(pv.priors.StandardNormal(50), decoder, pv.encoders.DiagonalNormal.mlp(64, [200, 200], 50))
        pv.fit(vae, x, epochs=5, binarize="dynamic", device=setting.device, compile=compile, progress=False)

    def timed(compile: Any) -> float:
        return elapsed(lambda: [run(compile) for _ in range(repeats)]) / repeats

    sides = {AUTO: partial(timed, "auto"), WRITTEN: partial(timed, False)}
    title, limits = "5 epochs of digits, batch 128", (Limit(AUTO, WRITTEN, 1.05),)
    return Case(name, title, "run", sides, reference=WRITTEN, limits=limits)


def time_of(seconds: list[float], elbos: list[float], target: float | None) -> float:
    """Return the time of the last epoch, or of the first one whose test ELBO reaches a target.

    Raises:
        RuntimeError: None reaches it.
    """
    if target is None:
        return seconds[-1]
    for second, elbo in zip(seconds, elbos, strict=True):
        if elbo >= target:
            return second
    raise RuntimeError(f"the test ELBO expected to reach {target:g} nats per datum, found {max(elbos):g} at most")


def curve(
    label: str, x: Tensor, test: Tensor | None, epochs: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Train from the start and return, for each epoch, the seconds so far and the test ELBO, if there are test data."""
    if label == OURS:
        result = pv.fit(
            make_vae(),
            x,
            epochs=epochs,
            batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            binarize="dynamic",
            validation=test,
            device=device,
            progress=False,
        )
        elbos = [] if test is None else result.history["validation_elbo"].tolist()
        return result.history["seconds"].tolist(), elbos
    return _curve_by_hand(x, test, epochs, device, compile=label == BY_HAND_COMPILED)


def _curve_by_hand(
    x: Tensor, test: Tensor | None, epochs: int, device: torch.device, compile: bool
) -> tuple[list[float], list[float]]:
    start = time.perf_counter()
    vae, x = make_vae(device), x.to(device)
    step, loss = by_hand_step(vae, compile), torch.compile(by_hand_loss) if compile else by_hand_loss
    seconds, elbos = [], []
    for _ in range(epochs):
        for batch in batches(x, BATCH_SIZE, math.ceil(len(x) / BATCH_SIZE)):
            step(batch.bernoulli())
        if test is not None:
            with torch.no_grad():
                parts = [len(part) * loss(vae, part).item() for part in test.to(device).split(BLOCK)]
            elbos.append(-sum(parts) / len(test))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds, elbos


def _cold_time(label: str, folder: str, epochs: int, target: float | None, setting: Setting) -> float:
    """Time of a run in a process of its own, which finds no compiled code unless the run is a quick one."""
    options = {
        "label": label,
        "folder": folder,
        "epochs": epochs,
        "judged": target is not None,
        "device": str(setting.device),
    }
    command = [sys.executable, "-m", "benchmarks.whole", json.dumps(options)]
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ} | ({} if setting.quick else {"TORCHINDUCTOR_CACHE_DIR": empty})
        root = Path(__file__).parents[1]
        done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return time_of(*json.loads(done.stdout), target)


def _numpyro_time(x: Tensor, folder: str, epochs: int, target: float | None, setting: Setting) -> float:
    with ExitStack() as stack:
        peer = start_peer(NUMPYRO_WORKER, stack, x.to(setting.device), BATCH_SIZE, binarize=True)
        total, seconds, elbos = float(peer.ready["starting"]), [], []
        for _ in range(epochs):
            answers = [peer.ask(train=len(x) // BATCH_SIZE)]
            if target is not None:
                answers.append(peer.ask(evaluate=str(Path(folder) / "test.npy")))
                elbos.append(answers[-1]["elbo"])
            total += sum(answer["seconds"] + answer["compiling"] for answer in answers)
            seconds.append(total)
    return time_of(seconds, elbos, target)


def _digits_for(setting: Setting) -> tuple[Tensor, Tensor]:
    """Return grey training images and binary test images."""
    if setting.quick:
        return images(3 * BATCH_SIZE), images(BATCH_SIZE)
    if not (data_root(None) / "mnist").exists():
        raise Unavailable(f"no MNIST in {data_root(None)}: `ppl_vae.data.load('mnist')` downloads it")
    mnist = pv.data.load("mnist")
    return torch.cat([mnist.train, mnist.validation]), pv.data.binarize(mnist.test)


def _main(label: str, folder: str, epochs: int, judged: bool, device: str) -> None:
    x, test = (torch.from_numpy(np.load(Path(folder) / f"{name}.npy", allow_pickle=False)) for name in ("x", "test"))
    print(json.dumps(curve(label, x, test if judged else None, epochs, torch.device(device))))


if __name__ == "__main__":
    _main(**json.loads(sys.argv[1]))
