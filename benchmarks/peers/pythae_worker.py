"""A process that trains the VAE of the benchmark with pythae, and answers one JSON line on each one that it reads.

As `numpyro_worker`, it imports nothing of this project. After its first line it understands

    {"train": n}    n steps of its trainer, from the start    -> {"seconds", "loss": mean over the steps}

with the loss in nats per datum. The time is that of the trainer's epoch over n batches of its loader.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor, nn

HIDDEN, LATENT, LEARNING_RATE = 200, 50, 1e-3


class Encoder(BaseEncoder):
    """784-200-200, then mean and logarithm of the variance."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
        self.moments = nn.Linear(HIDDEN, 2 * LATENT)

    def forward(self, x: Tensor) -> ModelOutput:
        """Return what pythae wants of an encoder."""
        loc, log_variance = self.moments(self.layers(x)).chunk(2, -1)
        return ModelOutput(embedding=loc, log_covariance=log_variance)


class Decoder(BaseDecoder):
    """50-200-200-784, the probability of each pixel."""

    def __init__(self, size: int) -> None:
        super().__init__()
        layers = [nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, size)]
        self.layers = nn.Sequential(*layers, nn.Sigmoid())

    def forward(self, z: Tensor) -> ModelOutput:
        """Return what pythae wants of a decoder."""
        return ModelOutput(reconstruction=self.layers(z))


def train(x: Tensor, batch_size: int, steps: int) -> dict[str, Any]:
    """Train a new network for so many steps."""
    rows = x[torch.arange(steps * batch_size) % len(x)]
    config = VAEConfig(input_dim=(x.shape[1],), latent_dim=LATENT, reconstruction_loss="bce")
    model = VAE(config, Encoder(x.shape[1]), Decoder(x.shape[1]))
    with tempfile.TemporaryDirectory() as folder:
        options = BaseTrainerConfig(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            learning_rate=LEARNING_RATE,
            num_epochs=1,
            no_cuda=True,
        )
        trainer = BaseTrainer(model, BaseDataset(rows, torch.zeros(len(rows))), training_config=options)
        trainer.prepare_training()
        start = time.perf_counter()
        loss = trainer.train_step(1)
        return {"seconds": time.perf_counter() - start, "loss": float(loss)}


def main(path: str, batch_size: int, binarize: bool) -> None:
    """Answer until the input ends."""
    if binarize:
        raise SystemExit("pythae trains on data as they are")
    logging.disable(logging.WARNING)
    x = torch.from_numpy(np.load(path, allow_pickle=False))
    versions = {name: importlib.metadata.version(name) for name in ("pythae", "torch")}
    print(json.dumps({"versions": versions, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(train(x, batch_size, json.loads(line)["train"])), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
