"""Tensors by name as a file of safetensors: written as a stream without a copy, read with distrust of its header."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ppl_vae.errors import StorageError
from ppl_vae.storage.calls import failing, summed
from ppl_vae.storage.plain import decode, encode

__all__ = ["MAX_BYTES", "check_writable", "from_bytes", "from_sealed", "sealed", "to_chunks", "under"]

MAX_BYTES = 2**35
_MAX_HEADER = 2**24
_MAX_NAME = 1000
_MAX_DIMENSIONS = 64
_ALIGNMENT = 8
_METADATA = "__metadata__"
_OPENING = b'{"__metadata__":{"sha256":"'
_NO_DIGITS = b"0" * 64
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def to_chunks(tensors: Mapping[str, Tensor]) -> Iterable[Any]:
    """Returns the bytes of a safetensors file in pieces, as often as they are asked for.

    The pieces are the header after its size, and the numbers of each tensor. A tensor is taken to the processor when
    its turn comes, and copied only if it is not contiguous. Tensors that share memory are written once each.

    Raises:
        ValueError: A name is empty or too long, something is no tensor, a dtype has no place in the format, or a tensor
            is not dense.
    """
    named = _ordered(tensors)
    return _Chunks(_header(named), [*named.values()])


def sealed(tensors: Mapping[str, Tensor]) -> Iterable[Any]:
    """Returns what `to_chunks` does, of a file whose metadata hold its SHA-256: `from_sealed` sees any change of it.

    The hash is that of all bytes of the file, with zeros in the place of its own 64 digits.

    Raises:
        ValueError: As `to_chunks`.
    """
    named = _ordered(tensors)
    blank = _Chunks(_header(named, {_METADATA: {"sha256": _NO_DIGITS.decode()}}), [*named.values()])
    digits = summed(blank).sha256.encode()
    return _Chunks(blank.header.replace(_OPENING + _NO_DIGITS, _OPENING + digits, 1), blank.tensors)


def from_bytes(content: bytes, path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file, on the processor, bit by bit as they were.

    Raises:
        StorageError: The header is damaged, or does not describe exactly the bytes behind it; or memory ran out.
    """
    _check_header(content, path)
    try:
        with failing("cannot be read", path):
            return load(content)
    except (SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise StorageError(f"{path}: expected readable tensors, found damage ({error})") from error


def from_sealed(content: bytes, path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file that `sealed` has made, and believes none that its hash does not bear out.

    Raises:
        StorageError: It is another file, or damaged.
    """
    start = 8 + len(_OPENING)
    end = start + len(_NO_DIGITS)
    if content[8:start] != _OPENING:
        raise StorageError(f"{path}: expected the SHA-256 of the file in its header, found none")
    whole = memoryview(content)
    found = summed([whole[:start], _NO_DIGITS, whole[end:]]).sha256
    if content[start:end] != found.encode():
        raise StorageError(f"{path}: expected the SHA-256 that its header states, found {found}: the file is damaged")
    return from_bytes(content, path)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _ordered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Large items first: so every tensor begins at a multiple of the size of its items, as safetensors wants it."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"{name!r}: expected a tensor, found {type(tensor).__name__}: let get_extra_state return a tensor, "
                "or keep it as an attribute and leave get_extra_state out"
            )
    return {name: tensors[name] for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))}


@dataclass(frozen=True)
class _Chunks(Iterable[Any]):
    header: bytes
    tensors: list[Tensor]

    def __iter__(self) -> Iterator[Any]:
        yield struct.pack("<Q", len(self.header)) + self.header
        yield from map(_bytes, self.tensors)


def _bytes(tensor: Tensor) -> Any:
    plain = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    flat = plain.as_strided((plain.numel(),), (1,))  # a dimension of one entry may have any stride
    return flat.view(torch.uint8).numpy()


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> bytes:
    described: dict[str, Any] = dict(metadata or {})
    end = 0
    for name, tensor in tensors.items():
        check_writable(name, tensor)
        start, end = end, end + tensor.numel() * tensor.element_size()
        described[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = encode(described, "tensors").rstrip()
    if len(header) > _MAX_HEADER - _ALIGNMENT:
        raise ValueError(f"tensors: expected names and shapes of at most {_MAX_HEADER} bytes, found {len(header)}")
    return header + b" " * (-len(header) % _ALIGNMENT)


def check_writable(name: str, tensor: Tensor) -> None:
    """Refuses a tensor, or a name, that has no place in the format.

    Raises:
        ValueError: As `to_chunks`.
    """
    if not name or len(name) > _MAX_NAME or name == _METADATA:
        raise ValueError(f"tensors: expected names of 1 to {_MAX_NAME} characters, found {name[:40]!r}")
    if name != name.encode(errors="replace").decode():
        raise ValueError(f"tensors: expected names that UTF-8 can encode, found {name[:40]!r}: no reader takes it")
    if not _is_sizes([*tensor.shape]):
        raise ValueError(f"tensor {name!r}: expected at most {_MAX_DIMENSIONS} dimensions, found {tensor.dim()}")
    if tensor.dtype not in _NAMES or tensor.layout is not torch.strided or tensor.is_meta:
        raise ValueError(
            f"tensor {name!r}: expected a dense tensor of dtype {', '.join(str(d)[6:] for d in _NAMES)}, found "
            f"{tensor.dtype}, {tensor.layout} on {tensor.device}"
        )


def _check_header(content: bytes, path: Path) -> None:
    """Checks all that safetensors checks, and keys that stand twice, fields it does not know, and sizes before use."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(_MAX_HEADER, len(content) - 8):
        raise StorageError(f"{path}: expected a header within the file, found one of {size} bytes in {len(content)}")
    header = decode(content[8 : 8 + size].rstrip(b" "), path)
    if type(header) is not dict:
        raise StorageError(f"{path}: expected a header by names, found {type(header).__name__}")
    spans = sorted(_span(name, entry, path) for name, entry in header.items() if name != _METADATA)
    end = 0
    for start, stop, name in spans:
        if start != end:
            raise StorageError(f"{path}: {name!r}: expected its numbers from byte {end} on, found {start}")
        end = stop
    if end != len(content) - 8 - size:
        raise StorageError(f"{path}: expected {end} bytes of numbers, found {len(content) - 8 - size}")


def _span(name: str, entry: Any, path: Path) -> tuple[int, int, str]:
    """Where the numbers of a tensor are, from its entry in the header."""
    where = f"{path}: {name[:40]!r}"
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"} or not 0 < len(name) <= _MAX_NAME:
        raise StorageError(f"{where}: expected dtype, shape and data_offsets of a named tensor, found others")
    if type(entry["dtype"]) is not str or entry["dtype"] not in _DTYPES:
        raise StorageError(f"{where}: expected dtype {', '.join(_DTYPES)}, found {str(entry['dtype'])[:40]!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not all(_is_sizes(x) for x in (shape, offsets)):
        raise StorageError(f"{where}: expected a shape and offsets of whole numbers from 0, found others")
    if len(offsets) != 2 or prod(shape) * _DTYPES[entry["dtype"]].itemsize != offsets[1] - offsets[0]:
        raise StorageError(f"{where}: expected offsets that fit {entry['dtype']} of its shape, found {offsets[:2]}")
    return offsets[0], offsets[1], name


def _is_sizes(value: Any) -> bool:
    few = type(value) is list and len(value) <= _MAX_DIMENSIONS
    return few and all(type(n) is int and 0 <= n < 2**62 for n in value)
