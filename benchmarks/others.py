"""The same training with Pyro's SVI, and with nothing but PyTorch, as one writes it by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyro
import torch
from torch import Tensor

import ppl_vae as pv
from benchmarks.workload import by_hand_loss

__all__ = ["LEARNING_RATE", "batches", "by_hand", "by_hand_step", "compiled_by_hand", "svi"]

LEARNING_RATE = 1e-3


def svi(
    model: Callable[[Tensor], object],
    guide: Callable[[Tensor], object],
    x: Tensor,
    batch_size: int,
    steps: int,
    elbo: pyro.infer.ELBO | None = None,
    validate: bool = True,
) -> None:
    """Take steps of Pyro's SVI as its own examples do; the ELBO is `Trace_ELBO` unless another is given."""
    with pyro.get_param_store().scope(), pyro.validation_enabled(validate):
        optimizer = pyro.optim.Adam({"lr": LEARNING_RATE})
        stepper = pyro.infer.SVI(model, guide, optimizer, elbo or pyro.infer.Trace_ELBO())
        for batch in batches(x, batch_size, steps):
            stepper.step(batch)


def by_hand(vae: pv.VAE, x: Tensor, batch_size: int, steps: int) -> pv.VAE:
    """Take steps with PyTorch alone, and fused Adam."""
    step = by_hand_step(vae, compile=False)
    for batch in batches(x, batch_size, steps):
        step(batch)
    return vae


def compiled_by_hand(vae: pv.VAE, x: Tensor, batch_size: int) -> Callable[[int], pv.VAE]:
    """The same with the loss under `torch.compile`; compiled once, so the network goes on from run to run."""
    step = by_hand_step(vae, compile=True)

    def train(steps: int) -> pv.VAE:
        for batch in batches(x, batch_size, steps):
            step(batch)
        return vae

    return train


def by_hand_step(vae: pv.VAE, compile: bool) -> Callable[[Tensor], None]:
    """Return a step of fused Adam on a batch."""
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE, fused=True)
    loss = torch.compile(by_hand_loss) if compile else by_hand_loss

    def step(batch: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(vae, batch).backward()
        optimizer.step()

    return step


def batches(x: Tensor, batch_size: int, steps: int) -> Iterator[Tensor]:
    """Shuffled batches, as many as steps."""
    while True:
        for index in torch.randperm(len(x), device=x.device).split(batch_size):
            if not steps:
                return
            steps -= 1
            yield x[index]
