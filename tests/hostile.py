"""Files made to run code, to lie or to exhaust; `hostile.py FOLDER` reads them all and prints what happened.

Nothing may be run, and nothing written, but by what goes on with a run, in its own folder.

Those of checkpoints stand under intact hashes, as whoever writes one can make them.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ppl_vae import storage
from ppl_vae.data import load_array
from ppl_vae.errors import PplVaeError
from ppl_vae.rundir import (
    DataSpec,
    PairSpec,
    RunRecord,
    read_arrays,
    read_evaluation,
    read_run,
    write_run,
)
from tests.bombs import (
    DEEP,
    MANIFEST,
    PICKLE,
    SIGN,
    STATE,
    TENSORS,
    Bomb,
    Case,
    Gadget,
    archive,
    of_numpy,
    of_torch,
    sign,
)
from tests.evaluations import evaluated
from tests.faults import save
from tests.hostile_fits import FITS, prepare
from tests.hostile_runs import RUNS


def checkpoint(name: str, content: bytes | Callable[[Path], None], signed: bool = True) -> Case:
    """A checkpoint in which one file is another."""

    def make(folder: Path) -> None:
        save(folder, 1)
        path = folder / "step-000000001" / name
        if callable(content):
            path.unlink()
            content(path)
        else:
            path.write_bytes(content)
        if signed and name != MANIFEST:
            sign(path.parent)

    return Case(storage.newest, make)


def manifest(**changes: Any) -> Case:
    """A checkpoint whose manifest is intact and says something else."""

    def make(folder: Path) -> None:
        save(folder, 1)
        sign(folder / "step-000000001", **changes)

    return Case(storage.newest, make)


def whole(make: Callable[[Path], object]) -> Case:
    """Something else in the place of a checkpoint."""
    return Case(storage.newest, lambda folder: (folder.mkdir(), make(folder / "step-000000001"), None)[-1])


def header(text: bytes | dict[str, Any], body: bytes = bytes(16), size: int | None = None) -> Case:
    """A file of safetensors with a header of one's own."""
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return checkpoint(TENSORS, struct.pack("<Q", len(text) if size is None else size) + text + body)


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16), **others: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | others


CASES: dict[str, Case] = {
    **{
        f"pickle of protocol {protocol} as {name}": checkpoint(name, pickle.dumps(Bomb(), protocol))
        for protocol in range(6)
        for name in (TENSORS, STATE, MANIFEST)
    },
    "file of torch.save as tensors": checkpoint(TENSORS, of_torch({"x": Gadget()})),
    "old file of torch.save as tensors": checkpoint(
        TENSORS, of_torch({"x": Gadget()}, _use_new_zipfile_serialization=False)
    ),
    "zip with a pickle as tensors": checkpoint(TENSORS, archive(data__pkl=PICKLE)),
    "zip behind tensors": header(json.dumps({"x": entry()}).encode(), bytes(16) + archive(data__pkl=PICKLE)),
    "code as state": checkpoint(STATE, f"__import__('os').mkdir({SIGN!r})".encode()),
    "tags of yaml as state": checkpoint(STATE, f"!!python/object/apply:os.mkdir [{SIGN}]".encode()),
    "list as state": checkpoint(STATE, b"[1]\n"),
    "deep state": checkpoint(STATE, b'{"x":' + DEEP + b"}"),
    "state at the limit of recursion": checkpoint(STATE, b'{"x":' + b"[" * 100 + b"]" * 100 + b"}"),
    "state with a key that stands twice": checkpoint(STATE, b'{"step":1,"step":2}\n'),
    "NaN in state": checkpoint(STATE, b'{"x":NaN}\n'),
    "infinity in state": checkpoint(STATE, b'{"x":1e999}\n'),
    "number of 5,000 digits in state": checkpoint(STATE, b'{"x":' + b"9" * 5000 + b"}\n"),
    "bytes that are no text as state": checkpoint(STATE, b'{"\xff":1}\n'),
    "deep manifest": checkpoint(MANIFEST, b'{"x":' + DEEP[:60_000] + b"}"),
    "large manifest": checkpoint(MANIFEST, b" " * 2**17),
    "manifest of files elsewhere": manifest(files={"../../etc/passwd": {"num_bytes": 1, "sha256": "0" * 64}}),
    "manifest of 2^60 bytes": manifest(
        files={name: {"num_bytes": 2**60, "sha256": "0" * 64} for name in (TENSORS, STATE)}
    ),
    "manifest of -1 bytes": manifest(files={n: {"num_bytes": -1, "sha256": "0" * 64} for n in (TENSORS, STATE)}),
    "manifest of a later format": manifest(format=2**70, library="os.system"),
    "header of 2^60 bytes": header({"x": entry()}, size=2**60),
    "header of 2^64 - 1 bytes": header({"x": entry()}, size=2**64 - 1),
    "header beyond the file": header({"x": entry()}, size=1000),
    "no header": checkpoint(TENSORS, b"\1\0\0"),
    "deep header": header(b'{"x":' + DEEP + b"}"),
    "tensor that stands twice": header(b'{"x":%b,"x":%b}' % ((json.dumps(entry()).encode(),) * 2)),
    "tensors that overlap": header({"x": entry(), "y": entry()}),
    "tensors with a gap": header({"x": entry(shape=[1], offsets=[0, 4]), "y": entry(shape=[2], offsets=[8, 16])}),
    "bytes behind the tensors": header({"x": entry()}, bytes(17)),
    "tensor beyond the file": header({"x": entry(shape=[2**40], offsets=[0, 2**42])}),
    "shape that overflows": header({"x": entry(shape=[2**61, 2**61, 0], offsets=[0, 0])}, b"\0"),
    "shape of 10,000 dimensions": header({"x": entry(shape=[1] * 10_000, offsets=[0, 4])}, bytes(4)),
    "negative shape": header({"x": entry(shape=[-2, -2])}),
    "offsets backwards": header({"x": entry(shape=[0], offsets=[16, 0])}),
    "shape of true": header({"x": entry("U8", [True], [0, 1])}, b"\0"),
    "shape of NaN": header(b'{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'),
    "dtype os.system": header({"x": entry("os.system")}),
    "dtype that is a list": header({"x": entry(["F32"])}),
    "dtype of objects": header({"x": entry("O")}),
    "field of another kind": header({"x": entry(module="os")}),
    "entry that is a name": header({"x": "os.system"}),
    "tensor without a name": header({"": entry()}),
    "pipe as tensors": checkpoint(TENSORS, os.mkfifo, signed=False),
    "pipe as state": checkpoint(STATE, os.mkfifo, signed=False),
    "pipe as manifest": checkpoint(MANIFEST, os.mkfifo),
    "folder as tensors": checkpoint(TENSORS, os.mkdir, signed=False),
    "link to zeros as tensors": checkpoint(TENSORS, lambda path: path.symlink_to("/dev/zero"), signed=False),
    "link to a secret as state": checkpoint(
        STATE,
        lambda path: ((path.parent / "secret").write_text("{}"), path.symlink_to("secret"), sign(path.parent), None)[
            -1
        ],
    ),
    "link to nothing as manifest": checkpoint(MANIFEST, lambda path: path.symlink_to("absent")),
    "pipe as checkpoint": whole(os.mkfifo),
    "file as checkpoint": whole(lambda path: path.write_bytes(PICKLE)),
    "link to a checkpoint elsewhere": whole(
        lambda path: (save(path.parent / "elsewhere", 1), path.symlink_to("elsewhere/step-000000001"))
    ),
    "empty folder as checkpoint": whole(os.mkdir),
    **RUNS,
    **FITS,
}


FORBIDDEN = (
    *("exec", "pickle.find_class", "marshal.loads", "code.__new__", "import", "ctypes.dlopen", "os.system", "os.exec"),
    *("os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "subprocess.Popen", "socket.connect"),
)
CHANGING = (
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *("shutil.rmtree", "shutil.move", "shutil.copyfile"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


# What code that runs would do: the watch sees each of them, or it watches nothing.
CONTROLS: dict[str, Callable[[], object]] = {
    "pickle": lambda: pickle.loads(pickle.dumps(Harmless())),
    "code of a file": lambda: compile("1", "file.py", "eval"),
    "folder": lambda: Path("control").mkdir(),
    "file": lambda: Path("control.txt").write_text("x"),
    "other name": lambda: Path("control.txt").rename("control.old"),
    "file that goes": lambda: Path("control.old").unlink(),
    "link": lambda: Path("link").symlink_to("control"),
    "file that is a link": lambda: Path("own", "file").write_text("x"),
    "file behind a link": lambda: Path("own", "link", "x").write_text("x"),
    "process": lambda: subprocess.run(["true"], check=True),
    "import": lambda: __import__("no_such_module"),
}


class Harmless:
    """Calls `exec` where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("1",)


def main(root: Path) -> None:
    """Makes and reads everything; what the interpreter does meanwhile is watched from the first file on."""
    os.chdir(root)
    _warm_up(root)
    for number, case in enumerate(CASES.values()):
        case.make(root / str(number))
    seen: list[str] = []
    home: list[Path] = []
    outcomes = {}
    sys.addaudithook(lambda event, arguments: _note(seen, home, event, arguments))
    for number, (name, case) in enumerate(CASES.items()):
        seen.clear()
        home[:] = [root / str(number)] if name in FITS else []
        try:
            case.read(root / str(number))
            outcome = "nothing"
        except PplVaeError as error:
            outcome = str(error)
        except BaseException as error:
            outcome = f"untyped {type(error).__name__}: {error}"
        outcomes[name] = {"outcome": outcome, "events": list(seen)}
    controls = {}
    home[:] = [root / "own"]
    for name, act in CONTROLS.items():
        seen.clear()
        with suppress(ImportError):
            act()
        controls[name] = list(seen)
    print(json.dumps({"cases": outcomes, "controls": controls}))


def _warm_up(root: Path) -> None:
    """Reads sound files first: what the readers import, and evaluate of their own annotations, is not news."""
    (root / "sound.npy").write_bytes(of_numpy(np.ones((2, 2))))
    (root / "sound.npz").write_bytes(archive(x__npy=of_numpy(np.ones((2, 2)))))
    load_array(root / "sound.npy")
    load_array(root / "sound.npz")
    write_run(root, RunRecord(("ppl-vae",), PairSpec("vae"), DataSpec("digits"), "0" * 64, "cpu", 3))
    read_run(root)
    evaluated(root)
    read_evaluation(root)
    read_arrays(root, ["value"])
    (root / "own").mkdir()
    (root / "own" / "link").symlink_to(root)
    (root / "own" / "file").symlink_to(root / "control.txt")
    prepare(root)


def _note(seen: list[str], home: list[Path], event: str, arguments: tuple[Any, ...]) -> None:
    if (event in CHANGING or (event == "open" and arguments[2] & WRITING)) and _is_outside(event, arguments, home):
        seen.append(f"{event} {str(arguments)[:200]}")
    # numpy parses a header as a literal, by `compile` without a file; only an `exec` would run what it gives.
    if event in FORBIDDEN or (event == "compile" and arguments[1] not in (None, "<unknown>", b"<unknown>")):
        seen.append(f"{event} {str(arguments)[:200]}")


def _is_outside(event: str, arguments: tuple[Any, ...], home: list[Path]) -> bool:
    """Whether a call changes something that is not below a folder; links are followed where the call does it."""
    paths = [Path(path) for path in arguments[:2] if isinstance(path, str | os.PathLike) and "\0" not in str(path)]
    follows = event == "open" and not arguments[2] & os.O_NOFOLLOW
    places = [path.resolve() if follows else path.parent.resolve() for path in paths if str(path) != os.devnull]
    return any(not home or home[0].resolve() not in (place, *place.parents) for place in places)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
