"""Damage of every kind is found in whatever byte it is."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppl_vae import storage
from ppl_vae.errors import CheckpointError
from ppl_vae.storage import calls, files
from tests.faults import Flip, Recorder, fault, holds, save, tensors_of, values_of


@pytest.fixture
def small(fast_path: Path) -> Path:
    """A checkpoint of about 4 kB in all."""
    save(fast_path, 7, num_bytes=3200)
    return fast_path / "step-000000007"


def is_noticed(path: Path) -> bool:
    try:
        storage.read(path)
    except CheckpointError:
        return True
    return False


def unnoticed(path: Path, changed: Iterator[tuple[str, int, bytes]]) -> list[tuple[str, int, bytes]]:
    """Those of the changes (file, position, bytes there) that a reader takes for what was written."""
    assert not is_noticed(path)
    handles = {file.name: file.open("r+b", buffering=0) for file in path.iterdir()}
    left = []
    for name, position, there in changed:
        file = handles[name].fileno()
        before = os.pread(file, len(there), position)
        os.pwrite(file, there, position)
        if not is_noticed(path):
            left.append((name, position, there))
        os.pwrite(file, before, position)
    for handle in handles.values():
        handle.close()
    assert not is_noticed(path)
    return left


def flips(path: Path) -> Iterator[tuple[str, int, bytes]]:
    for file in sorted(path.iterdir()):
        for position, byte in enumerate(file.read_bytes()):
            for bit in range(8):
                yield file.name, position, bytes([byte ^ 1 << bit])


def random_flips(path: Path, number: int, chance: random.Random) -> Iterator[tuple[str, int, bytes]]:
    contents = {file.name: file.read_bytes() for file in sorted(path.iterdir())}
    for _ in range(number):
        name = chance.choices([*contents], [len(content) for content in contents.values()])[0]
        position = chance.randrange(len(contents[name]))
        yield name, position, bytes([contents[name][position] ^ 1 << chance.randrange(8)])


def swaps(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """Neighbouring bytes exchanged, where they differ."""
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for position in range(len(content) - 1):
            if content[position] != content[position + 1]:
                yield file.name, position, content[position : position + 2][::-1]


def test_every_flip_of_a_bit_is_noticed(small: Path):
    changed = list(flips(small))
    assert len(changed) == 8 * sum(file.stat().st_size for file in small.iterdir())
    assert 30_000 < len(changed) < 40_000
    assert unnoticed(small, iter(changed)) == []


@pytest.mark.parametrize("number", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_flips_in_a_megabyte_are_noticed(number: int, fast_path: Path, seed: int):
    save(fast_path, 7, num_bytes=10**6)
    path = fast_path / "step-000000007"
    assert unnoticed(path, random_flips(path, number, random.Random(seed))) == []


@pytest.mark.parametrize("operation", [os.write, os.read], ids=["write", "read"])
def test_a_checkpoint_is_read_back_before_it_gets_its_name(operation: Callable[..., Any], fast_path: Path):
    save(fast_path, 1)
    recorder = Recorder()
    with fault(recorder):
        save(fast_path, 2)
    shutil.rmtree(fast_path / "step-000000002")
    total = sum(call.name == operation.__name__ for call in recorder.calls)
    assert total >= 3  # one for each file
    for at in range(total):
        with fault(Flip(operation, at)), pytest.raises(CheckpointError, match="found other bytes"):
            save(fast_path, 2)
        assert files.listed(fast_path) == ["step-000000001"], f"{operation.__name__} {at} of {total}"


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"abc"], True),
        ([b"a", b"", b"bc"], True),
        ([b"ab"], False),
        ([b"abcd"], False),
        ([b"abd"], False),
        ([], False),
    ],
)
def test_what_a_file_holds_is_compared_to_its_end(chunks: list[bytes], expected: bool, tmp_path: Path):
    files.create(tmp_path / "file", [b"abc"])
    with calls.opened(tmp_path / "file", os.O_RDONLY) as file:
        assert calls.holds(file, chunks) is expected


def test_bytes_in_another_order_are_noticed(small: Path):
    assert unnoticed(small, swaps(small)) == []


def test_every_length_but_the_right_one_is_noticed(small: Path):
    for file in sorted(small.iterdir()):
        content = file.read_bytes()
        for length in reversed(range(len(content))):
            os.truncate(file, length)
            assert is_noticed(small), f"{file.name} cut to {length} of {len(content)} bytes"
        for more in (b"\0", b" ", b"\n", content):
            file.write_bytes(content + more)
            assert is_noticed(small)
        file.write_bytes(content)
    assert not is_noticed(small)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_bodies_of_two_checkpoints_exchanged_are_noticed(name: str, fast_path: Path):
    paths = [storage.write(fast_path, step, tensors_of(step), values_of(step)) for step in (1, 2)]
    bodies = [(path / name).read_bytes() for path in paths]
    for path, body in zip(paths, bodies[::-1], strict=True):
        (path / name).write_bytes(body)
        assert is_noticed(path)


def test_every_missing_file_is_noticed(small: Path):
    for file in sorted(small.iterdir()):
        content = file.read_bytes()
        file.unlink()
        assert is_noticed(small)
        file.write_bytes(content)
    shutil.rmtree(small)
    assert is_noticed(small)


def test_what_is_not_damaged_is_what_was_written(small: Path):
    assert holds(storage.read(small), num_bytes=3200)
