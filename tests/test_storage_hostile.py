"""Files made by strangers run no code, block nobody, and are refused in words."""

from __future__ import annotations

import json
import math
import os
import resource
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppl_vae import storage
from ppl_vae.errors import CheckpointError, StorageError
from ppl_vae.storage import arrays, plain, tensors
from ppl_vae.storage.exact import of_exact
from ppl_vae.storage.manifest import Manifest
from tests.bombs import SIGN, of_numpy, zipped
from tests.hostile import CASES, CONTROLS, STATE, sign

ROOT = Path(__file__).resolve().parents[1]
MEMORY = 2**33
SAYS = ("expected", "claim", "cannot be read", "cannot be made", "only if you name it", "began with")


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a process of its own met while it read them all, with a bound on its memory."""
    folder = tmp_path_factory.mktemp("hostile")
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile", str(folder)],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.rglob(SIGN))
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_refused_and_runs_nothing(name: str, met: dict[str, dict[str, Any]]):
    found = met["cases"][name]
    assert found["events"] == []
    assert any(word in found["outcome"] for word in SAYS), found["outcome"]
    assert not found["outcome"].startswith(("untyped", "nothing"))
    assert len(found["outcome"]) < 1000


@pytest.mark.parametrize("name", CONTROLS)
def test_code_that_runs_is_seen(name: str, met: dict[str, dict[str, Any]]):
    """The control: where the watch is blind, nothing of the above says anything."""
    assert met["controls"][name]


def test_hostile_files_are_of_many_kinds():
    kinds = {name.split(" of protocol ")[0] for name in CASES}  # a pickle is one kind, whatever its protocol and place
    assert len(kinds) >= 90


def test_strings_that_name_code_are_strings(tmp_path: Path):
    values = {"__class__": "os.system", "constraint": "builtins:exec", "$ref": "file:///etc/passwd"}
    storage.write(tmp_path, 1, {"../../etc/passwd": torch.ones(1), "os.system": torch.ones(1)}, values)
    found = storage.newest(tmp_path)
    assert found.plain == values
    assert set(found.tensors) == {"../../etc/passwd", "os.system"}


# Whatever stands in a file: the value it holds, or one kind of error

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NUMBERS = st.integers(-2, 20) | st.integers() | st.booleans() | st.floats() | st.text(max_size=3)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*tensors._DTYPES, "F8_E4M3", "", "os.system"]) | JSON,
        "shape": st.lists(NUMBERS, max_size=3) | JSON,
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | JSON,
    }
)
fuzz = settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck])


@fuzz
@given(value=st.dictionaries(st.text(), JSON, max_size=4))
def test_any_plain_value_is_read_back(value: dict[str, Any]):
    assert plain.decode(plain.encode(value), Path("x")) == value


def test_long_keys_are_read_once():
    """Each of a million entries would have copied the key, for the words of an error that nobody sees."""
    key = "a" * 2**20
    content = f'{{"{key}":[{",".join("0" * 2**20)}]}}'.encode()
    assert len(plain.decode(content, Path("x"))[key]) == 2**20
    with pytest.raises(ValueError, match=r"^state\.a{200}: expected a finite number"):
        plain.encode({key: math.inf})


def test_no_more_of_an_array_is_decompressed_than_its_archive_claims():
    numbers = of_numpy(np.arange(3.0))
    content = zipped(numbers + bytes(2**26), file_size=len(numbers), CRC=zlib.crc32(numbers))
    tracemalloc.start()
    (found,) = arrays.from_bytes(content, ["x"], (3,), Path("x.npz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tolist() == [0.0, 1.0, 2.0]
    assert peak < 2**20


@fuzz
@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_json_or_a_typed_error(content: bytes):
    try:
        value = plain.decode(content, Path("x"))
    except StorageError:
        return
    assert value == json.loads(content)


@fuzz
@given(
    header=st.dictionaries(st.text(max_size=3), ENTRY | JSON, max_size=3).map(lambda h: json.dumps(h).encode())
    | st.binary(max_size=100),
    body=st.binary(max_size=40),
    lie=st.none() | st.integers(0, 2**64 - 1),
)
def test_any_header_is_tensors_or_a_typed_error(header: bytes, body: bytes, lie: int | None):
    content = struct.pack("<Q", len(header) if lie is None else lie) + header + body
    try:
        found = tensors.from_bytes(content, Path("x"))
    except StorageError:
        return
    written = b"".join(bytes(memoryview(chunk)) for chunk in tensors.to_chunks(found))
    again = tensors.from_bytes(written, Path("x"))
    assert {name: (x.dtype, x.shape) for name, x in again.items()} == {n: (x.dtype, x.shape) for n, x in found.items()}
    assert sum(x.numel() * x.element_size() for x in found.values()) == len(body)


@fuzz
@given(content=st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()), signed=st.booleans())
def test_any_manifest_is_one_or_a_typed_error(content: bytes, signed: bool):
    if signed:
        content = content[:-1] + b',"sha256":"' + b"0" * 64 + b'"}'
    with pytest.raises(StorageError):
        Manifest.from_bytes(content, Path("x"))


@fuzz
@given(
    changes=st.fixed_dictionaries(
        {}, optional={"format": NUMBERS, "library": JSON, "step": NUMBERS, "files": JSON, "more": JSON}
    ),
    state=st.none() | st.binary(max_size=50) | JSON.map(lambda value: json.dumps(value).encode()),
)
def test_any_checkpoint_under_an_intact_hash_is_read_or_a_typed_error(
    changes: dict[str, Any], state: bytes | None, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("fuzz")
    path = storage.write(folder, 1, {"x": torch.ones(2)}, {"a": 1})
    if state is not None:
        (path / STATE).write_bytes(state)
    try:
        sign(path, **changes)
    except ValueError:  # NaN: no text says it
        return
    try:
        found = storage.newest(folder)
    except CheckpointError:
        return
    assert found.step == 1
    assert found.plain == json.loads((path / STATE).read_bytes())
    assert torch.equal(found.tensors["x"], torch.ones(2))


@fuzz
@given(name=st.text(max_size=120) | st.from_regex(r"[./\\~\x00-]*[A-Za-z./\x00\n ]{0,120}", fullmatch=True))
def test_any_text_gives_a_name_that_stays_in_its_folder(name: str):
    made = storage.as_name(name)
    assert storage.check_name(made) == made
    assert Path("root", made).resolve().parent == Path("root").resolve()


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../../b", "nul\0", "line\n", "x" * 101, "", ".", "..", "-x", ".hidden", "a/b", "a\\b", "é", "x "],
)
def test_names_that_are_no_names_are_refused(name: str):
    with pytest.raises(StorageError, match="expected 1 to 100 letters"):
        storage.check_name(name)


@pytest.mark.parametrize("kind", ["(,)f4", "O", "f4,f4", "<U9", "f99"])
def test_numbers_of_no_kind_are_refused(kind: str):
    with pytest.raises(CheckpointError, match="expected numbers as they were written"):
        of_exact({"bytes": [kind, "00"]})
