"""The data of a fit or an evaluation: one or several arrays with a row per datum, checked once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ppl_vae.errors import DataError, first_line, is_lack_of_memory
from ppl_vae.mapped import read_rows

__all__ = [
    "Rows",
    "as_numpy",
    "as_python",
    "as_rows",
    "check_numbers",
    "check_unmasked",
    "finite_array",
    "real_array",
    "squarable_array",
]

_BLOCK = 4096
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
_COMPUTED = {torch.bool, torch.uint8, *_INTEGERS, *_FLOATS}
_PADDED = "pad them to one shape, and pass a mask as a second array"
_MOST = 1e100  # whose square has room for sums of many, and for products of two


class Rows:
    """N rows of one or several arrays, in memory (torch) or memory-mapped (numpy); `take` gathers a batch."""

    def __init__(self, arrays: Sequence[Tensor | np.ndarray], dtype: torch.dtype | None = None) -> None:
        self.arrays = tuple(arrays)
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self.arrays[0])

    @property
    def mapped(self) -> bool:
        """Whether some array stays on disk."""
        return any(isinstance(a, np.ndarray) for a in self.arrays)

    def take(self, index: Tensor | slice, device: torch.device | None = None) -> tuple[Tensor, ...]:
        """Gathers rows onto a device."""
        return tuple(self._cast(_gather(a, index), device) for a in self.arrays)

    def blocks(self, size: int, device: torch.device | None = None) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Yields (first row, batch) for consecutive blocks of rows."""
        for start in range(0, len(self), size):
            yield start, self.take(slice(start, start + size), device)

    def to(self, device: torch.device) -> Rows:
        """Moves what is in memory to a device; memory-mapped arrays stay on disk.

        Raises:
            DataError: The device has not the memory.
        """
        try:
            moved = [a if isinstance(a, np.ndarray) else self._cast(a, device) for a in self.arrays]
        except Exception as error:
            if not is_lack_of_memory(error):
                raise
            raise DataError(
                f"expected data that the memory of {device} holds, found {len(self)} rows that it does not: pass "
                "np.load(..., mmap_mode='r'), of whose rows a few batches are there at a time"
            ) from error
        return Rows(moved, self.dtype)

    def with_dtype(self, dtype: torch.dtype | None) -> Rows:
        """The same rows, floating arrays converted to `dtype` when taken.

        Raises:
            DataError: A number becomes infinite: the array and the row are named.
        """
        if dtype is not None:
            for i, array in enumerate(self.arrays):
                _check_range(array, dtype, f"data[{i}]" if len(self.arrays) > 1 else "data")
        return Rows(self.arrays, dtype)

    def _cast(self, array: Tensor, device: torch.device | None) -> Tensor:
        dtype = self.dtype if array.is_floating_point() and self.dtype is not None else array.dtype
        return array.to(device=device, dtype=dtype)


def as_rows(data: Any) -> Rows:
    """Takes data in any accepted form and checks it: equal numbers of rows, at least one, every entry finite.

    Args:
        data: A tensor or numpy array (N, *event), a tuple or list of such with equal N, a memory-mapped array
            (kept on disk), a torch `Dataset` (stacked in memory), or `Rows`.

    Raises:
        DataError: Naming the array and the row.
    """
    if isinstance(data, Rows):
        return data
    parts = list(data) if isinstance(data, tuple | list) else [data]
    if len(parts) == 1 and isinstance(parts[0], torch.utils.data.Dataset):
        parts = _stack(parts[0])
    if not parts:
        raise DataError("data: expected at least one array, found an empty tuple")
    names = [f"data[{i}]" if len(parts) > 1 else "data" for i in range(len(parts))]
    rows = Rows([_as_array(part, name) for part, name in zip(parts, names, strict=True)])
    sizes = [len(a) for a in rows.arrays]
    if len(set(sizes)) > 1:
        raise DataError(f"data: expected arrays with equal numbers of rows, found {sizes}")
    if sizes[0] == 0:
        raise DataError("data: expected at least one row, found an empty array")
    for array, name in zip(rows.arrays, names, strict=True):
        _check_finite(array, name)
    return rows


def as_numpy(values: ArrayLike | Tensor) -> NDArray[Any]:
    """The numbers of a tensor, with or without gradient, on any device, or of an array or nested list."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def as_python(value: Any) -> Any:
    """A scalar of NumPy, or an array or tensor without dimensions, as Python's own number; anything else as it is.

    Example:
        >>> as_python(np.float32(0.5)), as_python(np.array(3)), as_python("x")
        (0.5, 3, 'x')
    """
    is_one = isinstance(value, np.generic) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 0)
    found = value.item() if is_one else value
    return repr(found) if isinstance(found, np.generic) else found  # of a precision that Python lacks


def check_numbers(name: str, tensor: Tensor) -> None:
    """Refuses what holds no real, dense numbers of a type that torch computes with.

    Raises:
        DataError: Naming the tensor, with its type and what to make of it.
    """
    if tensor.is_nested:
        raise DataError(f"{name}: expected rows of one shape, found a nested tensor: {_PADDED}")
    if tensor.layout != torch.strided:
        raise DataError(f"{name}: expected real dense numbers, found layout {tensor.layout}: pass x.to_dense()")
    if tensor.dtype not in _COMPUTED:
        mend = "x.dequantize()" if tensor.is_quantized else "x.real and x.imag" if tensor.is_complex() else "x.float()"
        raise DataError(f"{name}: expected real dense numbers, found {tensor.dtype}: convert it to a real type, {mend}")
    if tensor.is_meta:
        raise DataError(f"{name}: expected numbers, found a tensor on the device meta, which holds none: make it anew")


def check_unmasked(name: str, array: object) -> None:
    """Refuses a masked array: what computes with it does not look at its mask.

    Raises:
        DataError: Some of its entries are masked.
    """
    if np.ma.is_masked(array):
        raise DataError(
            f"{name}: expected numbers everywhere, found a masked array with {np.ma.count_masked(array)} entries "
            "masked: put a number in their place, x.filled(0), and let programs take ~x.mask as a second array"
        )


def real_array(name: str, values: ArrayLike | Tensor) -> NDArray[np.float64]:
    """The same in float64.

    Raises:
        DataError: They are no real numbers, or make no array, or some are masked: its name is said.
    """
    check_unmasked(name, values)
    try:
        array = as_numpy(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{name}: expected an array of real numbers: {first_line(error)}") from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name}: expected an array of real numbers, found dtype {array.dtype}")
    return array.astype(np.float64, copy=False)


def finite_array(name: str, values: ArrayLike | Tensor, dimensions: int) -> NDArray[np.float64]:
    """Float64 numbers of so many dimensions, at least one, all finite.

    Raises:
        DataError: Naming the array, and the row.
    """
    array = real_array(name, values)
    if array.ndim != dimensions or not array.size:
        raise DataError(f"{name}: expected an array of {dimensions} dimensions that is not empty, found {array.shape}")
    if not (rows := np.isfinite(array).reshape(len(array), -1).all(1)).all():
        raise DataError(f"{name}, row {int(rows.argmin())}: expected finite numbers, found NaN or infinity")
    return array


def squarable_array(name: str, values: ArrayLike | Tensor, dimensions: int) -> NDArray[np.float64]:
    """As `finite_array`, and small enough for variances, distances, and products of two of them.

    Raises:
        DataError: Naming the array, and the row.
    """
    array = finite_array(name, values, dimensions)
    size = np.abs(array).reshape(len(array), -1).max(1)
    if size.max() > _MOST:
        raise DataError(
            f"{name}, row {int(size.argmax())}: expected numbers of size {_MOST:g} at most, whose squares can be "
            f"summed, found one of {size.max():.3g}: rescale them"
        )
    return array


def _as_array(part: Any, name: str) -> Tensor | np.ndarray:
    if isinstance(part, np.memmap):
        return _checked_numpy(part, name)
    if isinstance(part, np.ndarray):
        part = torch.from_numpy(np.require(_checked_numpy(part, name), requirements=["C", "W"]))
    if not isinstance(part, Tensor):
        raise DataError(f"{name}: expected a tensor, a numpy array or a torch Dataset, found {type(part).__name__}")
    check_numbers(name, part)
    if part.dim() == 0:
        raise DataError(f"{name}: expected one row per datum, found a scalar")
    return part.detach().contiguous()


def _checked_numpy(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name}: expected real numbers, found dtype {array.dtype}")
    if array.dtype.char == "g":
        raise DataError(
            f"{name}: expected real numbers of a type that torch has, found dtype {array.dtype}: pass x.astype('f8')"
        )
    check_unmasked(name, array)
    if array.ndim == 0:
        raise DataError(f"{name}: expected one row per datum, found a scalar")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _stack(dataset: Any) -> list[Tensor]:
    """The items of a torch `Dataset`, stacked: one array for each part of an item."""
    if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__"):
        raise DataError(
            f"data: expected a Dataset with a length and items by number, found {type(dataset).__name__}: every epoch "
            "takes each row once in an order of its own; collect its items in a tensor"
        )
    if len(dataset) == 0:
        raise DataError("data: expected at least one row, found an empty Dataset")
    items = [_item(dataset, i) for i in range(len(dataset))]
    shapes = [[tuple(value.shape) for value in item] for item in items]
    if (row := next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)) is not None:
        raise DataError(
            f"data, item {row} of the Dataset: expected tensors of shapes {shapes[0]} as in item 0, found "
            f"{shapes[row]}; {_PADDED}"
        )
    return [torch.stack(column) for column in zip(*items, strict=True)]


def _item(dataset: Any, position: int) -> list[Tensor]:
    try:
        item = dataset[position]
        parts = item if isinstance(item, tuple | list) else (item,)
        for part in parts:
            check_unmasked("it", part)
        return [torch.as_tensor(part) for part in parts]
    except Exception as error:
        raise DataError(
            f"data, item {position} of the Dataset: expected a tensor or a tuple of tensors: {first_line(error)}"
        ) from error


def _gather(array: Tensor | np.ndarray, index: Tensor | slice) -> Tensor:
    if isinstance(array, Tensor):
        return array[index] if isinstance(index, slice) else array.index_select(0, index.to(array.device))
    rows = index if isinstance(index, slice) else index.cpu().numpy()
    return torch.from_numpy(read_rows(array, rows) if isinstance(array, np.memmap) else np.array(array[rows]))


def _check_range(array: Tensor | np.ndarray, dtype: torch.dtype, name: str) -> None:
    most = torch.finfo(dtype).max
    if (kind := _gather(array, slice(0, 1)).dtype) not in _FLOATS or torch.finfo(kind).max <= most:
        return
    for start in range(0, len(array), _BLOCK):
        block = _gather(array, slice(start, start + _BLOCK))
        bad = block.to(dtype).isinf().reshape(len(block), -1)
        if bad.any():
            row = int(bad.any(1).nonzero()[0])
            found = float(block.reshape(len(block), -1)[row][bad[row]][0])
            raise DataError(
                f"{name}, row {start + row}: expected numbers that {dtype}, the type of the parameters, can hold, "
                f"of size {most:.3g} at most, found {found:.6g}; rescale the data, or compute in more digits: "
                "pair.double()"
            )


def _check_finite(array: Tensor | np.ndarray, name: str) -> None:
    for start in range(0, len(array), _BLOCK):
        block = _gather(array, slice(start, start + _BLOCK))
        if not block.is_floating_point():
            return
        bad = ~torch.isfinite(block).flatten(1).all(1) if block.dim() > 1 else ~torch.isfinite(block)
        if bad.any():
            row = start + int(bad.nonzero()[0])
            raise DataError(
                f"{name}, row {row}: expected finite numbers, found NaN or infinity; "
                "drop the row, or put a number in the place of what is missing, pass a mask as a second array, and use "
                "it in both programs"
            )
