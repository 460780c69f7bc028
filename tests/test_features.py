"""The classifier whose features samples are compared in."""

from __future__ import annotations

import numpy as np
import torch

from experiments.common.features import classifier
from experiments.common.images import images
from ppl_vae.quality import frechet_distance
from tests.statistical import assert_close


def test_a_classifier_tells_digits_apart_and_noise_is_far_from_them():
    digits = images("digits")
    found = classifier(digits.train, digits.train_labels, digits.shape)
    assert found.accuracy > 0.95
    again = classifier(digits.train, digits.train_labels, digits.shape)
    half, other = found(digits.test[::2]), found(digits.test[1::2])
    assert half.shape == (180, 64)
    assert_close(half, again(digits.test[::2]), dtype=torch.float32, scale=float(np.abs(half).max()))
    noise = found(torch.rand(180, 64, generator=torch.Generator().manual_seed(0)))
    assert frechet_distance(half, other) < frechet_distance(half, noise) / 4
