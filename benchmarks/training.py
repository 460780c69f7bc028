"""Time of a training step: `fit` beside Pyro's SVI, PyTorch by hand, NumPyro and pythae, on the same network and data.

Every side trains a fresh copy of the same network on shuffled batches of the same binary images. The time of a step is
the difference of two runs of different length, set-up included, over the difference of their steps, or for `fit` the
time after its first epoch: no side's set-up counts, and the public functions are measured as users call them. For `fit`
that leaves all that it does in a step, with the guard against numbers that are not finite, the norm of the gradient and
the averages of ELBO, distortion and rate. SVI stands as it comes, and with its validation off: `fit` validates once,
before the first step. NumPyro takes all steps in one compiled loop, and pythae those of its own
trainer, each in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks import peer
from benchmarks.others import LEARNING_RATE, by_hand, compiled_by_hand, svi
from benchmarks.setting import Setting
from benchmarks.timing import Case, Limit, Unavailable, elapsed, marginal
from benchmarks.workload import IMAGE, images, make_vae, svi_programs
from ppl_vae.objectives import Objective

__all__ = ["COMPILED", "SVI", "WRITTEN", "Task", "fit_time", "trainers", "training_case"]

WRITTEN, COMPILED = "ppl_vae fit", "ppl_vae fit, compiled"
BY_HAND, BY_HAND_COMPILED = "PyTorch by hand", "PyTorch by hand, compiled"
SVI, SVI_UNCHECKED = "Pyro SVI", "Pyro SVI, no validation"
NUMPYRO, PYTHAE, PRODUCTS = "NumPyro SVI, lax.scan", "pythae", "matrix products"
LIMITS = {
    128: (
        Limit(WRITTEN, SVI, 0.85),
        Limit(COMPILED, SVI, 0.6),
        Limit(COMPILED, BY_HAND_COMPILED, 0.95),
        Limit(COMPILED, NUMPYRO, 1.0),
        Limit(COMPILED, PRODUCTS, 1.35),
    ),
    20: (
        Limit(WRITTEN, SVI, 0.85),
        Limit(COMPILED, BY_HAND, 0.75),
        Limit(COMPILED, BY_HAND_COMPILED, 0.75),
        Limit(COMPILED, NUMPYRO, 1.25),
    ),
}


@dataclass(frozen=True)
class Task:
    """A pair to train, on what, and for how long."""

    make: Callable[[torch.device], Any]
    """Makes the pair on a device, with the same parameters each time."""
    x: Tensor
    """Data, on the device."""
    batch_size: int
    """Rows a step."""
    few: int
    """Steps of the short run."""
    many: int
    """Steps of the long run."""
    objective: Objective = pv.ELBO()
    """What is maximised."""


def training_case(name: str, batch_size: int, setting: Setting) -> Case:
    """Time of a step of the usual network at one batch size."""
    few, many = (50, 500) if batch_size <= 20 else (25, 200)
    few, many = setting.choose(few, 2), setting.choose(many, 4)
    x = images(setting.choose(100 * batch_size if batch_size > 128 else 12_800, 2 * batch_size), setting.device)
    task = Task(make_vae, x, batch_size, few, many)
    sides: dict[str, Callable[[], float]] = {
        WRITTEN: partial(fit_time, task, False),
        COMPILED: partial(fit_time, task, True),
    }
    others = trainers(task)
    for label in (SVI, SVI_UNCHECKED, BY_HAND, BY_HAND_COMPILED):
        sides[label] = partial(marginal, others[label], few, many)
    for label, script in ((NUMPYRO, peer.NUMPYRO), (PYTHAE, peer.PYTHAE)):
        sides[label] = _peer_side(script, task, setting)
    sides[PRODUCTS] = partial(_products_time, task)
    title = f"Training step of the 784-200-200-50 Bernoulli VAE, batch {batch_size}"
    limits = LIMITS.get(batch_size, ())
    return Case(name, title, "step", sides, reference=SVI, floor=PRODUCTS, limits=limits)


def trainers(task: Task) -> dict[str, Callable[[int], pv.VAE]]:
    """Return label -> function that makes the usual network, trains it for so many steps, and returns it."""

    def start() -> pv.VAE:
        return task.make(task.x.device)

    def by_pyro(validate: bool, steps: int) -> pv.VAE:
        vae = start()
        svi(*svi_programs(vae), task.x, task.batch_size, steps, validate=validate)
        return vae

    return {
        WRITTEN: lambda steps: _fit(task, task.x, steps, steps, False)[0],
        COMPILED: lambda steps: _fit(task, task.x, steps, steps, True)[0],
        SVI: partial(by_pyro, True),
        SVI_UNCHECKED: partial(by_pyro, False),
        BY_HAND: lambda steps: by_hand(start(), task.x, task.batch_size, steps),
        BY_HAND_COMPILED: compiled_by_hand(start(), task.x, task.batch_size),
    }


def fit_time(task: Task, compile: bool) -> float:
    """Time of a step after the first epoch, which holds what a fit costs once: checks, set-up, compiling."""
    rows = task.x[: task.few * task.batch_size]
    _, result = _fit(task, rows, task.many // task.few, None, compile)
    if result.compiled is not compile:
        raise Unavailable("the fit runs uncompiled; its warning says why")
    seconds = result.history["seconds"]
    return float(seconds[-1] - seconds[0]) / (result.steps - task.few)


def _fit(task: Task, x: Tensor, epochs: int, steps: int | None, compile: bool) -> tuple[Any, pv.Fit]:
    pair = task.make(x.device)
    result = pv.fit(
        pair,
        x,
        objective=task.objective,
        epochs=epochs,
        steps=steps,
        batch_size=task.batch_size,
        learning_rate=LEARNING_RATE,
        device=x.device,
        compile=compile,
        progress=False,
    )
    return pair, result


def _peer_side(script: Path, task: Task, setting: Setting) -> Callable[[], float]:
    """Time of a step in a process that the first call starts."""
    start = cache(lambda: peer.start_peer(script, setting.stack, task.x, task.batch_size))
    return lambda: start().ask(train=task.many)["seconds"] / task.many


@torch.no_grad()
def _products_time(task: Task) -> float:
    """Time of the matrix products of a step: forward, and backward to the weights and to the inputs that train."""
    layers = [module for module in task.make(task.x.device).modules() if isinstance(module, nn.Linear)]
    inputs = [task.x.new_ones(task.batch_size, layer.in_features) for layer in layers]
    outputs = [task.x.new_ones(task.batch_size, layer.out_features) for layer in layers]

    def work() -> None:
        for _ in range(task.many):
            for layer, a, b in zip(layers, inputs, outputs, strict=True):
                a @ layer.weight.T
                b.T @ a
                if layer.in_features != IMAGE:
                    b @ layer.weight

    return elapsed(work) / task.many
