"""Time of a training step: `fit` beside Pyro's SVI and PyTorch by hand, on the same network and data.

Every side trains a fresh copy of the same network on shuffled batches of the same binary images. The time of a step is
the difference of two runs of different length, set-up included, over the difference of their steps, or for `fit` the
time after its first epoch: no side's set-up counts, and the public functions are measured as users call them. For `fit`
that leaves all that it does in a step, with the guard against numbers that are not finite, the norm of the gradient and
the averages of ELBO, distortion and rate. SVI stands as it comes, and with its validation off: `fit` validates once,
before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pyro
import torch
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks.timing import Case, Limit, elapsed, marginal
from benchmarks.workload import IMAGE, by_hand_loss, images, make_vae, svi_programs

__all__ = ["Sizes", "trainers", "training_case"]

LEARNING_RATE = 1e-3
WRITTEN, COMPILED, BY_HAND, BY_HAND_COMPILED = (
    "ppl_vae fit",
    "ppl_vae fit, compiled",
    "PyTorch by hand",
    "PyTorch by hand, compiled",
)
SVI, PRODUCTS = "Pyro SVI", "matrix products"
LIMITS = {
    128: (
        Limit(WRITTEN, SVI, 0.85),
        Limit(COMPILED, SVI, 0.6),
        Limit(COMPILED, BY_HAND_COMPILED, 0.95),
        Limit(COMPILED, PRODUCTS, 1.35),
    ),
    20: (Limit(WRITTEN, SVI, 0.85), Limit(COMPILED, BY_HAND, 0.75), Limit(COMPILED, BY_HAND_COMPILED, 0.75)),
}


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
    x = images(sizes.num_data)
    by_hand_compiled = compiled_by_hand(x, batch_size)
    sides: dict[str, Callable[[], float]] = {
        WRITTEN: partial(_fit_time, x, batch_size, sizes, False),
        COMPILED: partial(_fit_time, x, batch_size, sizes, True),
        SVI: partial(marginal, partial(_svi, x, batch_size, True), sizes.few, sizes.many),
        "Pyro SVI, no validation": partial(marginal, partial(_svi, x, batch_size, False), sizes.few, sizes.many),
        BY_HAND: partial(marginal, partial(_by_hand, x, batch_size), sizes.few, sizes.many),
        BY_HAND_COMPILED: partial(marginal, by_hand_compiled, sizes.few, sizes.many),
        PRODUCTS: partial(_products, batch_size, sizes.many),
    }
    title = f"Training step of the 784-200-200-50 Bernoulli VAE, batch {batch_size}"
    return Case(name, title, "step", sides, reference=SVI, floor=PRODUCTS, limits=LIMITS[batch_size])


def trainers(x: Tensor, batch_size: int) -> dict[str, Callable[[int], pv.VAE]]:
    """Return label -> function that makes the network, trains it for so many steps, and returns it."""
    return {
        WRITTEN: lambda steps: _fit(x, batch_size, steps, steps, False)[0],
        COMPILED: lambda steps: _fit(x, batch_size, steps, steps, True)[0],
        SVI: partial(_svi, x, batch_size, True),
        BY_HAND: partial(_by_hand, x, batch_size),
        BY_HAND_COMPILED: compiled_by_hand(x, batch_size),
    }


def _fit_time(x: Tensor, batch_size: int, sizes: Sizes, compile: bool) -> float:
    """Time of a step after the first epoch, which holds what a fit costs once: checks, set-up, compiling."""
    _, result = _fit(x[: sizes.few * batch_size], batch_size, sizes.many // sizes.few, None, compile)
    seconds = result.history["seconds"]
    return float(seconds[-1] - seconds[0]) / (result.steps - sizes.few)


def _fit(x: Tensor, batch_size: int, epochs: int, steps: int | None, compile: bool) -> tuple[pv.VAE, pv.Fit]:
    vae = make_vae()
    result = pv.fit(
        vae,
        x,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        device="cpu",
        compile=compile,
        progress=False,
    )
    return vae, result


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


def compiled_by_hand(x: Tensor, batch_size: int) -> Callable[[int], pv.VAE]:
    """The same with the loss under `torch.compile`; compiled once, so the network goes on from run to run."""
    vae = make_vae()
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE, fused=True)
    loss = torch.compile(by_hand_loss)

    def train(steps: int) -> pv.VAE:
        for batch in _batches(x, batch_size, steps):
            optimizer.zero_grad(set_to_none=True)
            loss(vae, batch).backward()
            optimizer.step()
        return vae

    return train


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
