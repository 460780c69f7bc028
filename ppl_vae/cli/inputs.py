"""Data by their name on the command line, split for training, validation and test."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ppl_vae import data
from ppl_vae.errors import DataError
from ppl_vae.rng import key

__all__ = ["Binarization", "DataSpec", "Splits", "fingerprint", "load_splits"]

Binarization = Literal["dynamic", "fixed", "none"]

_SPLIT_SEED = 0
_HELD_OUT = 10  # one row in ten for validation, one for test


@dataclass(frozen=True)
class DataSpec:
    """Which data, as the user named them."""

    name: str
    """A data set of `ppl_vae.data.load`, or a `.npy` or `.npz` file."""
    binarize: Binarization
    """What becomes of grey levels: training draws them anew in each step, or once, or takes them as they are."""
    data_dir: str | None = None
    """Folder of the data sets."""

    @property
    def is_file(self) -> bool:
        """Whether the name is that of a file."""
        return Path(self.name).suffix != ""


@dataclass(frozen=True)
class Splits:
    """Data of a run; test data are binary whenever the training is."""

    title: str
    """Name of the data and what was made of them, for headings."""
    train: Tensor
    """Training data (N, *event); probabilities where binarisation is dynamic."""
    validation: Tensor
    """Validation data (N, *event); probabilities where binarisation is dynamic."""
    test: Tensor
    """Test data (N, *event)."""
    image_shape: tuple[int, int, int] | None
    """Channels, height and width of a datum that is an image."""

    @property
    def event_size(self) -> int:
        """Number of entries of a datum."""
        return self.test[0].numel()


def load_splits(spec: DataSpec) -> Splits:
    """Load and split the data; binary data are drawn by seeds that belong to the data, whatever the run's.

    A file with one array is split at random, by a fixed seed, into 80 % training, 10 % validation and 10 % test; a
    `.npz` with the arrays `train`, `validation` and `test` is taken as it is.

    Raises:
        DataError: The data cannot be had, or cannot be binarised; the row is named.
    """
    splits = _from_file(Path(spec.name)) if spec.is_file else _from_name(spec)
    if spec.binarize == "none":
        return splits
    train, validation, test = (data.binarize(x, key(0, i)) for i, x in enumerate(_parts(splits)))
    if spec.binarize == "fixed":
        return replace(splits, title=f"{splits.title}, binarised", train=train, validation=validation, test=test)
    return replace(splits, title=f"{splits.title}, binarised", test=test)


def fingerprint(x: Tensor) -> str:
    """Return a hash of shape and values, the same for the same data only."""
    head = str(tuple(x.shape)).encode()
    return hashlib.sha256(head + x.to(torch.float64).contiguous().numpy().tobytes()).hexdigest()


def _parts(splits: Splits) -> tuple[Tensor, Tensor, Tensor]:
    return splits.train, splits.validation, splits.test


def _from_name(spec: DataSpec) -> Splits:
    loaded = data.load(spec.name, data_dir=spec.data_dir)
    return Splits(spec.name, loaded.train, loaded.validation, loaded.test, loaded.event_shape)


def _from_file(path: Path) -> Splits:
    if path.suffix == ".npz" and (named := _named_arrays(path)) is not None:
        train, validation, test = named
    else:
        x = _floating(data.load_array(path))
        held_out = len(x) // _HELD_OUT
        if not held_out:
            raise DataError(f"{path}: expected at least {_HELD_OUT} rows to split, found {len(x)}")
        # The legacy generator, as in the named data sets: its stream is frozen, so the split outlives versions.
        order = np.random.RandomState(_SPLIT_SEED).permutation(len(x))
        test, validation, train = (x[np.sort(part)] for part in np.split(order, [held_out, 2 * held_out]))
    return Splits(path.name, train, validation, test, _image_shape(tuple(train.shape[1:])))


def _named_arrays(path: Path) -> tuple[Tensor, Tensor, Tensor] | None:
    """The arrays `train`, `validation` and `test`; None where there is no `train`."""
    try:
        train = data.load_array(path, "train")
    except DataError:
        return None
    parts = [_floating(a) for a in (train, data.load_array(path, "validation"), data.load_array(path, "test"))]
    shapes = [tuple(part.shape[1:]) for part in parts]
    if len(set(shapes)) > 1:
        raise DataError(f"{path}: expected train, validation and test rows of one shape, found {shapes}")
    return parts[0], parts[1], parts[2]


def _floating(array: np.ndarray) -> Tensor:
    """A copy in memory: float64 stays, everything else becomes float32."""
    if array.ndim < 2:
        raise DataError(
            f"expected one row per datum, (N, *event), found shape {array.shape}: reshape a column to (N, 1)"
        )
    return torch.from_numpy(np.array(array, dtype=np.float64 if array.dtype == np.float64 else np.float32))


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    return shape if len(shape) == 3 and shape[0] in (1, 3) else None
