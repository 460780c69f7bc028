"""The data sets by name, each with a split that never changes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data import levels
from ppl_vae.data.origins import IDX, data_root, files_of, omniglot, read_idx
from ppl_vae.errors import DataError
from ppl_vae.rng import key

__all__ = ["ImageData", "Labels", "is_there", "load", "split_rows"]

_SPLIT_SEED = 0
_NUM_VALIDATION = {"digits": 180, "mnist": 5000, "fashion-mnist": 5000, "omniglot": 2000}


class Labels(NamedTuple):
    """Class of each datum, int64."""

    train: Tensor
    """Classes of the training data (N,)."""
    validation: Tensor
    """Classes of the validation data (N,)."""
    test: Tensor
    """Classes of the test data (N,)."""


@dataclass(frozen=True)
class ImageData:
    """Grey images in [0, 1], flat, float32: 0 is background, 1 is full ink."""

    name: str
    """Name of the data set, as `load` takes it."""
    event_shape: tuple[int, int, int]
    """Shape of one image: (channels, height, width), D pixels."""
    train: Tensor
    """Training data (N, D)."""
    validation: Tensor
    """Validation data (N, D), a part of the original training set."""
    test: Tensor
    """Test data (N, D), in the original order where there is an official test set."""
    labels: Labels
    """Classes, by split."""


def load(name: str, *, data_dir: str | Path | None = None, binarize: Literal["fixed"] | None = None) -> ImageData:
    """Load a data set with its fixed split into training, validation and test data.

    | name | images | training, validation, test | origin |
    |---|---|---|---|
    | digits | 8 x 8, 17 grey levels | 1,257, 180, 360 | scikit-learn, embedded |
    | mnist | 28 x 28 | 55,000, 5,000, 10,000 | LeCun, Cortes and Burges (1998) |
    | fashion-mnist | 28 x 28 | 55,000, 5,000, 10,000 | Xiao, Rasul and Vollgraf (2017) |
    | omniglot | 28 x 28, box-averaged from 105 x 105 | 17,280, 2,000, 13,180 | Lake, Salakhutdinov, Tenenbaum (2015) |

    Files are sought in data_dir/name, and downloaded to it where they are missing; their decompressed bytes are
    checked by SHA-256 every time.

    Args:
        name: Name of the data set.
        data_dir: Folder of the data sets; default $PPL_VAE_DATA, else ~/.cache/ppl_vae.
        binarize: "fixed" draws every pixel once, as `binarize` does. Draws anew in every step are `fit`'s part.

    Raises:
        DataError: Unknown name or option, files that cannot be had or have other bytes than published.

    Example:
        >>> digits = load("digits")
        >>> digits.train.shape, digits.event_shape
        (torch.Size([1257, 64]), (1, 8, 8))
    """
    if binarize not in (None, "fixed"):
        raise DataError(f'binarize expected None or "fixed", found {binarize!r}: "dynamic" is an option of fit')
    if name == "digits":
        data = _digits()
    elif name in IDX:
        data = _idx(name, data_root(data_dir) / name)
    elif name == "omniglot":
        data = _omniglot(data_root(data_dir) / name)
    else:
        known = ", ".join(_NUM_VALIDATION)
        raise DataError(f"expected a data set among {known}, found {name!r}: load_array reads files of your own")
    return data if binarize is None else _binarized(data)


def is_there(name: str, data_dir: str | Path | None = None) -> bool:
    """Return whether `load` finds all files of a data set where it looks for them, and so downloads and writes none.

    Example:
        >>> is_there("digits"), is_there("mnist", "/nowhere")
        (True, False)
    """
    folder = data_root(data_dir) / name
    with suppress(OSError):  # a name that can be none
        return all(any((folder / file).is_file() for file in either) for either in files_of(name))
    return False


def split_rows(n: int, *sizes: int) -> tuple[np.ndarray, ...]:
    """Split the rows 0..n-1 at random, always in the same way.

    Args:
        n: Number of rows.
        sizes: Sizes of the parts after the first, which gets the rest.

    Returns:
        The rows of each part, in ascending order: the rest, then one array for each size.

    Example:
        >>> [part.tolist() for part in split_rows(6, 1, 2)]
        [[0, 3, 4], [5], [1, 2]]
    """
    # The legacy generator: its stream is frozen by numpy's policy, so the split outlives versions.
    order = np.random.RandomState(_SPLIT_SEED).permutation(n)
    *parts, rest = np.split(order, np.cumsum(sizes))
    return tuple(np.sort(part) for part in (rest, *parts))


def _digits() -> ImageData:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rest, test = split_rows(len(images), 360)
    return _image_data("digits", (images[rest] / 16, labels[rest]), (images[test] / 16, labels[test]), 8)


def _idx(name: str, folder: Path) -> ImageData:
    images, labels, test_images, test_labels = (read_idx(folder, file, IDX[name]) for file in IDX[name].sha256)
    return _image_data(name, (images, labels), (test_images, test_labels), 28)


def _omniglot(folder: Path) -> ImageData:
    images, alphabet, character, test = omniglot(folder)
    labels = np.unique(np.stack([test, alphabet, character]), axis=1, return_inverse=True)[1]
    return _image_data("omniglot", (images[~test], labels[~test]), (images[test], labels[test]), 28)


def _image_data(
    name: str, rest: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], side: int
) -> ImageData:
    x, labels = _tensors(*rest)
    test_x, test_labels = _tensors(*test)
    train, validation = (torch.from_numpy(rows) for rows in split_rows(len(x), _NUM_VALIDATION[name]))
    all_labels = Labels(labels[train], labels[validation], test_labels)
    return ImageData(name, (1, side, side), x[train], x[validation], test_x, all_labels)


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Flatten images to float32 (N, D), bytes scaled to [0, 1], and labels to int64."""
    scale = 255 if images.dtype == np.uint8 else 1
    x = torch.tensor(images.reshape(len(images), -1), dtype=torch.float32).div_(scale)
    return x, torch.tensor(labels, dtype=torch.int64)


def _binarized(data: ImageData) -> ImageData:
    parts = (data.train, data.validation, data.test)
    train, validation, test = (levels.binarize(x, key(0, i)) for i, x in enumerate(parts))
    return replace(data, train=train, validation=validation, test=test)
