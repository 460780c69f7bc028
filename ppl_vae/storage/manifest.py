"""The manifest of a checkpoint: what its files must be, to the byte, and what it must be itself."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppl_vae.errors import CheckpointError, StorageError
from ppl_vae.storage.files import Written
from ppl_vae.storage.plain import seal, unseal

__all__ = ["FORMAT", "MAX_MANIFEST", "Manifest"]

FORMAT = 1
MAX_MANIFEST = 2**16
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Its last field is the SHA-256 of the text before it, and the text is the only one that says the same: any change of
    a bit is seen. A reader of another format can rely on this, on `format` and on `library`; on nothing else.
    """

    format: int
    """Version of the format."""
    library: str
    """Version of ppl_vae that wrote it."""
    step: int
    """Number of steps done."""
    files: dict[str, Written]
    """Size and SHA-256 of each file by name."""

    def to_bytes(self) -> bytes:
        """Returns the text of the file."""
        fields = asdict(self) | {"files": {name: written._asdict() for name, written in self.files.items()}}
        return seal(fields)

    @classmethod
    def from_bytes(cls, content: bytes, path: Path) -> Manifest:
        """Reads the text of a file.

        Raises:
            StorageError: It is damaged.
            NewerFormatError: A newer version of the library wrote it.
        """
        fields = unseal(content, path)
        _check_format(fields, path)
        if not _is_valid(fields):
            raise StorageError(f"{path}: expected format, library, step and files, found other fields or values")
        return cls(**fields | {"files": {name: Written(**file) for name, file in fields["files"].items()}})


class NewerFormatError(CheckpointError):
    """The checkpoint is intact, but only a newer version of the library can read it."""


def _check_format(fields: dict[str, Any], path: Path) -> None:
    found = fields.get("format")
    if type(found) is int and found > FORMAT:
        raise NewerFormatError(
            f"{path}: expected a checkpoint of format {FORMAT} or older, found format {found}, written by ppl_vae "
            f"{str(fields.get('library'))[:40]}: update ppl_vae to read it"
        )


def _is_valid(fields: dict[str, Any]) -> bool:
    kinds = {name: type(value) for name, value in fields.items()}
    if kinds != {"format": int, "library": str, "step": int, "files": dict} or fields["format"] != FORMAT:
        return False
    return fields["step"] >= 0 and all(_is_file(file) for file in fields["files"].values())


def _is_file(file: Any) -> bool:
    if type(file) is not dict or {name: type(value) for name, value in file.items()} != {
        "num_bytes": int,
        "sha256": str,
    }:
        return False
    return file["num_bytes"] >= 0 and _SHA256.fullmatch(file["sha256"]) is not None
