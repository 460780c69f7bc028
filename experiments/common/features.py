"""Features of images for distances between sets of them: what a classifier, trained here on these data, sees."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae.networks import ConvEncoder
from ppl_vae.rng import key, permutation, seeded

__all__ = ["Classifier", "classifier"]

_DIM, _STEPS, _BATCH, _BLOCK = 64, 600, 128, 1000


@dataclass(frozen=True)
class Classifier:
    """Maps images to the layer before the last of a classifier.

    Call it with images (N, D), grey levels in [0, 1] or means of p(x given z); it returns features (N, 64).
    """

    body: nn.Module
    """Image to features, before the last activation."""
    accuracy: float
    """Share of a tenth of the data, not trained on, that the classifier gets right."""

    def __call__(self, x: Tensor) -> np.ndarray:
        """Features of images (N, D) or (N, C, H, W), float32, (N, 64)."""
        with torch.inference_mode():
            return torch.cat([self.body(block.flatten(1)) for block in x.split(_BLOCK)]).numpy()


def classifier(train: Tensor, labels: Tensor, shape: tuple[int, int, int], seed: int = 0) -> Classifier:
    """Train two convolutions and a layer of 64 features on labelled images, 600 steps: seconds.

    No weights from elsewhere: distances compare within these data only, not with published ones.

    Args:
        train: Images in [0, 1], (N, D) with D pixels.
        labels: Their classes, (N,), from 0.
        shape: Shape of one image (channels, height, width); sides divisible by 4.
        seed: Of initial weights and of the order of the data.
    """
    held_out = len(train) // 10
    x, y = train[held_out:].flatten(1), labels[held_out:]
    with seeded(key(seed, 0xFEA7)):
        body = ConvEncoder(shape, [16, 32], _DIM)
        network = nn.Sequential(body, nn.ReLU(), nn.Linear(_DIM, int(labels.max()) + 1))
    optimizer = torch.optim.Adam(network.parameters(), 2e-3, fused=True)
    batches = (rows for epoch in count() for rows in permutation(len(x), seed, epoch).split(_BATCH))
    for rows in islice(batches, _STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.inference_mode():
        right = (network(train[:held_out].flatten(1)).argmax(-1) == labels[:held_out]).float().mean()
    return Classifier(body.eval(), float(right))
