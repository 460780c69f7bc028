"""Time of a training step: `fit` beside Pyro's SVI and PyTorch by hand, on the same network and data.

Every side trains a fresh copy of the same network on shuffled batches of the same binary images. The time of a step is
the difference of two runs of different length, set-up included, over the difference of their steps: no side's set-up
counts, and the public functions are measured as users call them. For `fit` that leaves all that it does in a step, with
the guard against numbers that are not finite, the norm of the gradient and the averages of ELBO, distortion and rate.
SVI stands as it comes, and with its validation off: `fit` validates once, before the first step. By default
`fit` takes the KL in closed form; the row with a sampled KL computes what `Trace_ELBO` computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pyro
import torch
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks.timing import Case, elapsed, marginal
from benchmarks.workload import IMAGE, by_hand_loss, images, make_vae, svi_programs

__all__ = ["Sizes", "trainers", "training_case"]

LIMIT = 0.85
LEARNING_RATE = 1e-3


class Sizes(NamedTuple):
    """How much is run."""

    num_data: int
    """Rows of the data."""
    few: int
    """Steps of the short run."""
    many: int
    """Steps of the long run."""


def training_case(name: str, batch_size: int, sizes: Sizes) -> Case:
    """Time of a step at one batch size."""
    sides: dict[str, Callable[[], float]] = {
        label: partial(marginal, trainer, sizes.few, sizes.many)
        for label, trainer in trainers(images(sizes.num_data), batch_size).items()
    }
    sides["matrix products"] = partial(_products, batch_size, sizes.many)
    title = f"Training step of the 784-200-200-50 Bernoulli VAE, batch {batch_size}"
    return Case(name, title, "step", sides, reference="Pyro SVI", floor="matrix products", limit=LIMIT)


def trainers(x: Tensor, batch_size: int) -> dict[str, Callable[[int], pv.VAE]]:
    """Return label -> function that makes the network, trains it for so many steps, and returns it."""
    return {
        "ppl_vae fit": partial(_fit, x, batch_size, pv.ELBO()),
        "ppl_vae fit, sampled KL": partial(_fit, x, batch_size, pv.ELBO(kl="sampled")),
        "Pyro SVI": partial(_svi, x, batch_size, True),
        "Pyro SVI, no validation": partial(_svi, x, batch_size, False),
        "PyTorch by hand": partial(_by_hand, x, batch_size),
    }


def _fit(x: Tensor, batch_size: int, objective: pv.ELBO, steps: int) -> pv.VAE:
    vae = make_vae()
    pv.fit(
        vae,
        x,
        objective=objective,
        epochs=steps,
        steps=steps,
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        device="cpu",
        compile=False,
        progress=False,
    )
    return vae


def _svi(x: Tensor, batch_size: int, validate: bool, steps: int) -> pv.VAE:
    vae = make_vae()
    with pyro.get_param_store().scope(), pyro.validation_enabled(validate):
        optimizer = pyro.optim.Adam({"lr": LEARNING_RATE})
        svi = pyro.infer.SVI(*svi_programs(vae), optimizer, pyro.infer.Trace_ELBO())
        for batch in _batches(x, batch_size, steps):
            svi.step(batch)
    return vae


def _by_hand(x: Tensor, batch_size: int, steps: int) -> pv.VAE:
    vae = make_vae()
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE, fused=True)
    for batch in _batches(x, batch_size, steps):
        optimizer.zero_grad(set_to_none=True)
        by_hand_loss(vae, batch).backward()
        optimizer.step()
    return vae


@torch.no_grad()
def _products(batch_size: int, steps: int) -> float:
    """Time of the matrix products of a step: forward, and backward to the weights and to the inputs that train."""
    layers = [module for module in make_vae().modules() if isinstance(module, nn.Linear)]
    inputs = [torch.ones(batch_size, layer.in_features) for layer in layers]
    outputs = [torch.ones(batch_size, layer.out_features) for layer in layers]

    def work() -> None:
        for _ in range(steps):
            for layer, a, b in zip(layers, inputs, outputs, strict=True):
                a @ layer.weight.T
                b.T @ a
                if layer.in_features != IMAGE:
                    b @ layer.weight

    return elapsed(work) / steps


def _batches(x: Tensor, batch_size: int, steps: int) -> Iterator[Tensor]:
    """Shuffled batches, as many as steps."""
    while True:
        for index in torch.randperm(len(x)).split(batch_size):
            if not steps:
                return
            steps -= 1
            yield x[index]
