"""Data by their name on the command line, split for training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppl_vae import data
from ppl_vae.errors import DataError
from ppl_vae.rng import key
from ppl_vae.rundir import DataSpec

__all__ = ["Batch", "Splits", "load_splits", "random_rows"]

Batch = tuple[Tensor, ...]

_HELD_OUT = 10  # one row in ten for validation, one for test
_WHOLE_IN_SINGLE, _WHOLE_IN_DOUBLE = 2**24, 2**53  # up to here a floating type has every whole number
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Splits:
    """Data of a run, each part the arguments of the programs; test data are binary whenever the training is."""

    title: str
    """Name of the data and what was made of them, for headings."""
    train: Batch
    """Training data, arrays (N, *event); probabilities where binarisation is dynamic."""
    validation: Batch
    """Validation data; probabilities where binarisation is dynamic."""
    test: Batch
    """Test data."""
    image_shape: tuple[int, int, int] | None
    """Channels, height and width of a datum that is an image."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """The numbers that are drawn black and white, where a datum is an image."""


def load_splits(spec: DataSpec) -> Splits:
    """Load and split the data; what is drawn from them has seeds that belong to the data, whatever the run's.

    A file is split at random, always in the same way, into 80 % training, 10 % validation and 10 % test; a `.npz`
    with the arrays `train`, `validation` and `test` is taken as it is.

    Raises:
        DataError: The data cannot be had, or cannot be binarised; file and row are named.
    """
    splits = _from_file(Path(spec.name), spec.arrays) if spec.is_file else _from_name(spec)
    if spec.dequantize is None and spec.quantize is None and spec.binarize == "none":
        return splits
    train, validation, test = (_drawn(splits, part, spec) for part in _PARTS)
    if spec.binarize == "dynamic":
        return replace(splits, title=f"{splits.title}, binarised", test=test)
    if spec.quantize is not None:
        title = f"{splits.title} in {spec.quantize} levels"
        splits = replace(splits, title=title, value_range=(0.0, spec.quantize - 1.0))
    else:
        done = "binarised" if spec.dequantize is None else "dequantised"
        splits = replace(splits, title=f"{splits.title}, {done}")
    return replace(splits, train=train, validation=validation, test=test)


def random_rows(batch: Batch, limit: int | None) -> Batch:
    """Return at most `limit` rows, chosen at random but always the same: those of a smaller limit are among them."""
    if limit is None or limit >= len(batch[0]):
        return batch
    rows = torch.from_numpy(data.split_rows(len(batch[0]), limit)[1])
    return tuple(x[rows] for x in batch)


def _drawn(splits: Splits, part: str, spec: DataSpec) -> Batch:
    """One part of the data with its first array binarised, dequantised or quantised."""
    first, *others = getattr(splits, part)
    seed = key(0, _PARTS.index(part))
    try:
        if spec.dequantize is not None:
            x = data.dequantize(first, spec.dequantize, seed)
        else:
            x = data.binarize(first, seed) if spec.quantize is None else data.quantize(first, spec.quantize)
    except DataError as error:
        raise DataError(f"{splits.title}, {part.replace('train', 'training')} data, {error}") from error
    return (x, *others)


def _from_name(spec: DataSpec) -> Splits:
    if spec.arrays:
        raise DataError(f"{spec.name}: expected FILE.npz to take the arrays {', '.join(spec.arrays)} from")
    loaded = data.load(spec.name, data_dir=spec.data_dir)
    return Splits(spec.name, (loaded.train,), (loaded.validation,), (loaded.test,), loaded.event_shape)


def _from_file(path: Path, arrays: tuple[str, ...]) -> Splits:
    names = data.array_names(path) if path.suffix == ".npz" else []
    if arrays or len(names) < 2:
        train, validation, test = _split(path, _read(path, arrays or tuple(names)))
    else:
        train, validation, test = _as_named(path, names)
    return Splits(path.name, train, validation, test, _image_shape(tuple(train[0].shape[1:])), _value_range(train[0]))


def _read(path: Path, names: tuple[str, ...]) -> Batch:
    """The arrays of these names, or the only one; the first holds floating numbers, others may be labels."""
    loaded = [data.load_array(path, name) for name in names or (None,)]
    if len({len(array) for array in loaded}) > 1:
        raise DataError(f"{path}: expected arrays of equal length, found {[len(array) for array in loaded]}")
    return (_floating(path, loaded[0]), *(torch.from_numpy(np.array(array)) for array in loaded[1:]))


def _split(path: Path, batch: Batch) -> list[Batch]:
    size = len(batch[0])
    held_out = size // _HELD_OUT
    if not held_out:
        raise DataError(f"{path}: expected at least {_HELD_OUT} rows to split, found {size}")
    # Test first, as the split has always been: `split_rows` names the rest first, then parts in their order.
    train, test, validation = (torch.from_numpy(rows) for rows in data.split_rows(size, held_out, held_out))
    return [tuple(x[rows] for x in batch) for rows in (train, validation, test)]


def _as_named(path: Path, names: list[str]) -> list[Batch]:
    """The arrays `train`, `validation` and `test`."""
    missing = [part for part in _PARTS if part not in names]
    if missing and len(missing) < len(_PARTS):
        raise DataError(
            f"{path}: expected {', '.join(_PARTS)}, found {', '.join(names)}: add an array named "
            f"{' and one named '.join(missing)}"
        )
    if missing:
        raise DataError(
            f"{path}: expected one array, or {', '.join(_PARTS)}; found {', '.join(names)}, without "
            f"{', '.join(missing)}: name the arguments of your programs in order, such as --arrays "
            f"{','.join(names[:2])}"
        )
    parts = [_floating(path, data.load_array(path, part)) for part in _PARTS]
    shapes = [tuple(part.shape[1:]) for part in parts]
    if len(set(shapes)) > 1:
        raise DataError(f"{path}: expected train, validation and test rows of one shape, found {shapes}")
    return [(part,) for part in parts]


def _floating(path: Path, array: np.ndarray) -> Tensor:
    """A copy in memory, its numbers as they are: in float64 if it was, or where float32 rounds, else in float32."""
    if array.ndim < 2:
        raise DataError(
            f"{path}: expected one row per datum, (N, *event), found shape {array.shape}: reshape a column to (N, 1)"
        )
    return torch.from_numpy(np.array(array, dtype=_type_for(path, array)))


def _type_for(path: Path, array: np.ndarray) -> type[np.floating]:
    """The floating type that takes numbers as they are; what it costs the pair to round them is judged later."""
    if array.dtype.kind not in "iu":
        return np.float64 if array.dtype == np.float64 else np.float32
    lowest, highest = int(array.min()), int(array.max())
    if max(-lowest, highest) > _WHOLE_IN_DOUBLE:
        row = int(np.argmax((array > _WHOLE_IN_DOUBLE) | (array < -_WHOLE_IN_DOUBLE))) // (array.size // len(array))
        raise DataError(
            f"{path}, row {row}: expected whole numbers from -2^53 to 2^53, which float64 has, found one beyond: "
            "subtract a number from all of them"
        )
    return np.float64 if max(-lowest, highest) > _WHOLE_IN_SINGLE else np.float32


def _value_range(x: Tensor) -> tuple[float, float]:
    """Black and white: 0 and 1, or from 0 to the extremes of data that leave [0, 1], such as levels."""
    lowest, highest = (float(bound) for bound in torch.aminmax(x)) if x.numel() else (0.0, 1.0)
    return (0.0, 1.0) if lowest >= 0 and highest <= 1 else (min(lowest, 0.0), max(highest, 0.0))


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    return shape if len(shape) == 3 and shape[0] in (1, 3) else None
