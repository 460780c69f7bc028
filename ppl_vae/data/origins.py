"""Where public data sets come from, and how their bytes are checked."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from ppl_vae.data.readers import as_data_error, bounded_bytes, load_array, parse_idx
from ppl_vae.errors import DataError
from ppl_vae.storage.arrays import check_archive
from ppl_vae.storage.calls import inflated

__all__ = ["IDX", "Drawings", "IdxOrigin", "data_root", "files_of", "omniglot", "read_idx"]

T = TypeVar("T")

_MAX_IDX = 2**26
_MAX_ZIP = 2**27
_OMNIGLOT_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_OMNIGLOT_FILE = "omniglot_28x28_area_u8.npz"
_OMNIGLOT_SHA256 = "35968d5ba120845e440ddc505d8465722380499b12c9e5cfb186088919c7490e"


class IdxOrigin(NamedTuple):
    """A data set in four IDX files."""

    url: str
    """Address of the folder with the files, each as `name.gz`."""
    sha256: dict[str, str]
    """SHA-256 of the decompressed bytes by file name: training images and labels, test images and labels."""


IDX = {
    "mnist": IdxOrigin(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion-mnist": IdxOrigin(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
}


class Drawings(NamedTuple):
    """Omniglot, box-averaged from 105 x 105 to 28 x 28; sorted by evaluation, alphabet, character."""

    images: np.ndarray
    """Ink (N, 28, 28), unsigned bytes: 0 is paper, 255 ink everywhere in the pixel."""
    alphabet: np.ndarray
    """Which of the 50 alphabets, in the order of their names (N,)."""
    character: np.ndarray
    """Number of the character in its alphabet, from 1 (N,)."""
    evaluation: np.ndarray
    """Whether the alphabet belongs to the official evaluation set (N,)."""


def data_root(data_dir: str | Path | None) -> Path:
    """Return the folder of data sets: the argument, else $PPL_VAE_DATA, else ~/.cache/ppl_vae."""
    return Path(data_dir or os.environ.get("PPL_VAE_DATA") or Path.home() / ".cache" / "ppl_vae")


def files_of(name: str) -> list[tuple[str, ...]]:
    """Return the files of a data set as they are once it is there; of those in one tuple, one is enough."""
    if name == "omniglot":
        return [(_OMNIGLOT_FILE,)]
    return [(file, f"{file}.gz") for file in IDX[name].sha256] if name in IDX else []


def read_idx(folder: Path, name: str, origin: IdxOrigin) -> np.ndarray:
    """Read folder/name or folder/name.gz, downloaded if neither is there; the bytes are checked by their hash."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), folder / f"{name}.gz")

    def read(source: Path) -> np.ndarray:
        content = bounded_bytes(source, _MAX_IDX)
        _check_hash(hashlib.sha256(content).hexdigest(), origin.sha256[name], source)
        return parse_idx(content, source)

    return _found_or_downloaded(origin.url + path.name, path, read)


def omniglot(folder: Path) -> Drawings:
    """Read Omniglot from folder, built from the published images if it is not there; checked by its hash."""
    path = folder / _OMNIGLOT_FILE
    if path.exists():
        return _checked(Drawings(*(load_array(path, key) for key in Drawings._fields)), path)
    zips = [folder / "images_background.zip", folder / "images_evaluation.zip"]
    background, evaluation = (_found_or_downloaded(_OMNIGLOT_URL + zip.name, zip, _read_zip) for zip in zips)
    drawings = _checked(_drawings(background, evaluation), path)
    with as_data_error(path), _complete_or_absent(path) as part:
        np.savez_compressed(part, **drawings._asdict())
    return drawings


def _checked(drawings: Drawings, path: Path) -> Drawings:
    order = np.lexsort((drawings.character, drawings.alphabet, drawings.evaluation))
    drawings = Drawings(*(array[order] for array in drawings))
    _check_hash(hashlib.sha256(b"".join(array.tobytes() for array in drawings)).hexdigest(), _OMNIGLOT_SHA256, path)
    return drawings


def _drawings(background: dict[str, np.ndarray], evaluation: dict[str, np.ndarray]) -> Drawings:
    names = [name.split("/") for name in (*background, *evaluation)]
    return Drawings(
        np.stack([*background.values(), *evaluation.values()]),
        np.unique([name[-3] for name in names], return_inverse=True)[1].astype(np.uint8),
        np.array([int(name[-2].removeprefix("character")) for name in names], np.uint8),
        np.repeat([False, True], [len(background), len(evaluation)]),
    )


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    """Read a published zip: images by path `.../alphabet/character01/0108_01.png`, in the order of the paths."""
    with as_data_error(path), zipfile.ZipFile(path) as archive:
        check_archive(archive, _MAX_ZIP)
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        return {name: _averaged(inflated(archive, archive.getinfo(name))) for name in names}


def _averaged(png: bytes) -> np.ndarray:
    """Average the ink of a 105 x 105 drawing over 28 x 28 boxes, in integers: a box is 3.75 x 3.75 pixels."""
    from PIL import Image

    if struct.unpack_from(">II", png, 16) != (105, 105):
        raise DataError(f"expected drawings of 105 x 105 pixels, found {struct.unpack_from('>II', png, 16)}")
    ink = 1 - np.asarray(Image.open(io.BytesIO(png), formats=("PNG",)).convert("1"), dtype=np.int64)
    edges = np.arange(106) * 4
    left, right = np.arange(28)[:, None] * 15, np.arange(1, 29)[:, None] * 15
    quarters = np.clip(np.minimum(edges[1:], right) - np.maximum(edges[:-1], left), 0, 4)
    sixteenths = quarters @ ink @ quarters.T
    return ((34 * sixteenths + 15) // 30).astype(np.uint8)


def _found_or_downloaded(url: str, path: Path, read: Callable[[Path], T]) -> T:
    return read(path) if path.exists() else _download(url, path, read)


def _download(url: str, path: Path, read: Callable[[Path], T]) -> T:
    """Download to a temporary name, read and check; only what passed gets its name."""
    import pooch

    try:
        with _complete_or_absent(path) as part:
            part.parent.mkdir(parents=True, exist_ok=True)
            pooch.HTTPDownloader()(url, str(part), None)
            return read(part)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: not found, and not downloaded from {url} ({error}): put the file there") from error


@contextmanager
def _complete_or_absent(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` that becomes `path` if the block succeeds."""
    part = path.with_name(f"part-{os.getpid()}-{path.name}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check_hash(found: str, expected: str, path: Path) -> None:
    if found != expected:
        raise DataError(
            f"{path}: expected SHA-256 {expected} of the decompressed bytes, found {found}: "
            "delete the file, and it is downloaded anew"
        )
