"""Fits of many kinds, small, and what they leave: for tests of fits that go on."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import ppl_vae as pv
from ppl_vae.pair import as_pair
from ppl_vae.schedules import Cosine, Linear
from tests.pairs import ModuleVAE, binary_rows
from tests.training import fresh
from tests.zoo import autoencoder, batch_norm, labelled_flows, positive_parameters, spline_vamp

# As a script, `resuming.py FOLDER COMPILE STEP,STEP NAME...`, it goes on in a process of its own from checkpoints of
# fits that another one has left, and prints what they leave in turn.
ROWS = 11  # batches of four: the last one of an epoch is smaller


class Moody(ModuleVAE):
    """A pair whose programs draw from Python and NumPy, and keep a number and a tensor of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen = 0, [torch.zeros(1)]

    def model(self, x):
        self.calls += 1
        self.seen[0] += 0.01
        noise = random.random() + np.random.random() + self.calls / 100 + self.seen[0]  # noqa: NPY002
        mood = noise if self.training else 1.0  # a density in evaluation
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=mood * self.decoder(z)).to_event(1), obs=x)


class Rounding:
    """Stands for a compiled step: it gives slightly other numbers."""

    def __init__(self, function, examples, pair):
        self.function = function
        function(*examples[0])  # to know which parameters it reaches

    def __call__(self, *arguments):
        metrics, *gradients = self.function(*arguments)
        return metrics, *(gradient * 1.001 for gradient in gradients)

    def outdated(self):
        return None


def score_with_running_mean() -> pv.ELBO:
    return pv.ELBO(2, kl="sampled", gradient="score", baseline="running")


real = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(0))
binary = binary_rows(ROWS)
CASES = {
    "defaults": (ModuleVAE, binary, {}),
    "importance weights": (ModuleVAE, binary, {"objective": pv.IWAE(3, gradient="dreg")}),
    "buffers and dropout": (batch_norm, real, {}),
    "the best of a validation": (ModuleVAE, binary, {"validation": binary[:5], "learning_rate": 0.3}),
    "patience": (ModuleVAE, binary, {"validation": binary[:5], "learning_rate": 1.0, "patience": 1, "epochs": 9}),
    "momentum and a schedule": (
        ModuleVAE,
        binary,
        {
            "optimizer": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
            "schedule": Cosine(1.0, 0.1, 9),
            "learning_rate": 1e-2,
        },
    ),
    "clipped": (ModuleVAE, binary, {"optimizer": torch.optim.RMSprop, "clip_norm": 0.5}),
    "a running baseline": (ModuleVAE, binary, {"objective": score_with_running_mean()}),
    "beta that grows": (ModuleVAE, binary, {"objective": pv.ELBO(beta=Linear(0.0, 1.0, 9))}),
    "binary data drawn anew": (ModuleVAE, binary * 0.5 + 0.2, {"binarize": "dynamic"}),
    "constrained parameters of Pyro": (positive_parameters, real, {}),
    "an end within an epoch": (ModuleVAE, binary, {"steps": 8, "epochs": None}),
    "weight decay": (ModuleVAE, binary, {"optimizer": torch.optim.AdamW}),
    "VampPrior of a spline flow": (spline_vamp, real, {"objective": pv.IWAE(2, gradient="dreg")}),
    "classes in part, flow and MADE": (
        labelled_flows,
        (binary, torch.arange(ROWS) % 4 - 1),
        {"objective": lambda pair: pv.Supervised(pv.ELBO(discrete="enumerate"), pair.log_label, weight=2.0)},
    ),
    "autoencoder": (autoencoder, real, {}),
}

MOODY = {"moody": (Moody, binary, {})}


def run(make, x, options, seed=0, **more):
    """A pair made from a seed, and its fit."""
    pair = fresh(seed, make)
    kept = {"epochs": 3, "batch_size": 4, "seed": 7, "progress": False, "device": "cpu", "compile": False}
    options = {name: of(pair) if name == "objective" and callable(of) else of for name, of in options.items()}
    return pair, pv.fit(pair, x, **(kept | options | more))


def numbers(pair, fit):
    """All that a fit leaves but the seconds."""
    tensors = {name: tensor.clone() for name, tensor in as_pair(pair).named_parameters()}
    tensors |= {name: tensor.clone() for name, tensor in as_pair(pair).named_buffers()}
    records = [repr(record._replace(seconds=0.0)) for record in fit.history]
    return tensors, records, fit.steps, fit.best_step, fit.stopped_early, fit.skipped, fit.rolled_back


def same(one, other):
    (tensors, *rest), (found, *others) = one, other
    return rest == others and tensors.keys() == found.keys() and all(map(torch.equal, tensors.values(), found.values()))


def only(checkpoint: Path, to: Path) -> Path:
    """A run directory with one checkpoint of another."""
    shutil.copytree(checkpoint, to / "checkpoints" / checkpoint.name)
    return to


def mapped_rows(folder: Path) -> np.memmap:
    """Rows of a file that is there once, for all processes."""
    path = folder / "rows.npy"
    if not path.exists():
        np.save(path, binary.numpy())
    return np.load(path, mmap_mode="r", allow_pickle=False)


def left(folder: Path, compile: bool, at: int | None, name: str) -> str:
    """What a fit leaves, in a line: whole, keeping every checkpoint, or gone on from that of so many steps."""
    make, x, options = (CASES | MOODY)[name.removesuffix(" on disk")]
    random.seed(1 if at is None else 5), np.random.seed(1 if at is None else 5)  # noqa: NPY002
    x = mapped_rows(folder) if name.endswith(" on disk") else x
    root = folder / name.replace(" ", "-")
    if at is None:
        done = run(make, x, options, run_dir=root, checkpoint_every=1, compile=compile)
    else:
        one = only(root / "checkpoints" / f"step-{at:09d}", folder / f"{at}-{root.name}")
        done = run(make, x, options, seed=1, run_dir=one, resume=True, compile=compile)
    tensors, *rest = numbers(*done)
    digest = hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors.values())).hexdigest()
    return json.dumps([name, digest, done[1].compiled, *map(str, rest)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, compile, steps, *names = sys.argv[1:]
    for at in steps.split(","):
        for name in names:
            print(left(Path(folder), compile == "True", int(at), name))
