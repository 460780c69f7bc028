"""The images of an experiment: digits for the small form and for fresh machines, 28 x 28 images for the full one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae import data

__all__ = ["Images", "images"]


class Images(NamedTuple):
    """Grey images in [0, 1], flat, float32; each part in a random order that never changes."""

    shape: tuple[int, int, int]
    """Shape of one image (channels, height, width), D pixels."""
    train: Tensor
    """Training data (N, D)."""
    validation: Tensor
    """Validation data (N, D)."""
    test: Tensor
    """Test data (N, D)."""
    train_labels: Tensor
    """Classes of the training data (N,)."""
    test_labels: Tensor
    """Classes of the test data (N,)."""


def images(name: str, num_train: int | None = None, num_test: int | None = None) -> Images:
    """Load a data set, or a random part of it that never changes.

    Args:
        name: digits, mnist, fashion-mnist or omniglot; all but digits from $PPL_VAE_DATA, or downloaded.
        num_train: Training data to take; None takes all. Also the most validation data.
        num_test: Test data to take; None takes all.
    """
    found = data.load(name)
    train, validation, test = (_order(part) for part in (found.train, found.validation, found.test))
    train, validation, test = train[:num_train], validation[:num_train], test[:num_test]
    return Images(
        found.event_shape,
        found.train[train],
        found.validation[validation],
        found.test[test],
        found.labels.train[train],
        found.labels.test[test],
    )


def _order(x: Tensor) -> Tensor:
    return torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
