"""Files of a run that do not lie: damage of any byte is noticed, and a pair of files is one or is none."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ppl_vae.errors import DataError, PplVaeError
from ppl_vae.history import Record
from ppl_vae.pair import Pair, as_pair
from ppl_vae.rundir import (
    DataSpec,
    PairSpec,
    RunDirectory,
    RunRecord,
    read_arrays,
    read_evaluation,
    read_run,
    write_evaluation,
    write_run,
)
from ppl_vae.rundir.records import write_record
from ppl_vae.storage import plain
from tests.evaluations import evaluated, evaluation, result

RECORD = RunRecord(("ppl-vae",), PairSpec("vae"), DataSpec("digits"), "0" * 64, "cpu", 3)
ARRAYS = ("value", "stderr", "trusted")


def pair(start: float = 0.5) -> Pair:
    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((3,), start))

        def model(self, x: torch.Tensor) -> None: ...
        def guide(self, x: torch.Tensor) -> None: ...

    return as_pair(Linear())


def write_parameters(root: Path) -> None:
    RunDirectory(root).write_parameters(pair())


def read_parameters(root: Path) -> None:
    RunDirectory(root).read_parameters(pair())


FILES: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "parameters.safetensors": (write_parameters, read_parameters),
    "run.json": (lambda root: write_run(root, RECORD), read_run),
    "evaluation.json": (evaluated, read_evaluation),
    "evaluation.npz": (evaluated, lambda root: read_arrays(root, ARRAYS)),
}


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, fast_path: Path) -> tuple[Path, Callable[[Path], object]]:
    """A file of a run, and what reads it."""
    write, read = FILES[request.param]
    write(fast_path)
    read(fast_path)
    return fast_path / request.param, read


def is_noticed(path: Path, read: Callable[[Path], object]) -> bool:
    try:
        read(path.parent)
    except DataError:
        return True
    return False


def test_a_number_out_of_range_is_told_the_range(tmp_path: Path):
    record = RunRecord(("ppl-vae",), PairSpec("vae"), DataSpec("digits"), "0" * 64, "cpu", 2**70)
    write_record(tmp_path / "run.json", record)
    told = rf"expected num_parameters to be a whole number from -{2**63 - 1} to {2**63 - 1}, found"
    with pytest.raises(DataError, match=told):
        read_run(tmp_path)


def test_every_flip_of_a_bit_in_a_file_of_a_run_is_noticed(file: tuple[Path, Callable[[Path], object]]):
    path, read = file
    flipped(path, read, range(path.stat().st_size))


def flipped(path: Path, read: Callable[[Path], object], positions: range) -> None:
    """Flips every bit of some bytes of a file, one after the other; reading it has to fail each time."""
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as handle:
        for position in positions:
            for bit in range(8):
                os.pwrite(handle.fileno(), bytes([content[position] ^ 1 << bit]), position)
                assert is_noticed(path, read), f"bit {bit} of byte {position} of {len(content)}"
            os.pwrite(handle.fileno(), content[position : position + 1], position)
    read(path.parent)


def test_every_flip_of_a_bit_in_a_line_of_the_history_is_noticed(fast_path: Path):
    """But one that tears the last line off, which is what a kill may leave."""
    run = RunDirectory(fast_path)
    for epoch in (1, 2, 3):
        run.append_history(Record(epoch, 7, -100.0, -100.0, 90.0, 10.0, 0.5, 1.0, 0.1, 1.0, math.nan))
    path = fast_path / "history.jsonl"
    size = path.stat().st_size // 3
    flipped(path, lambda root: RunDirectory(root).read_history(), range(size, 2 * size))
    assert [record["epoch"] for record in run.read_history()] == [1, 2, 3]


def test_every_other_length_and_every_exchange_of_bytes_is_noticed(file: tuple[Path, Callable[[Path], object]]):
    path, read = file
    content = path.read_bytes()
    others = [content[:length] for length in range(len(content))]
    others += [content + more for more in (b"\0", b" ", b"\n", content)]
    for at in range(len(content) - 1):
        if content[at] != content[at + 1]:
            others.append(content[:at] + content[at : at + 2][::-1] + content[at + 2 :])
    for other in others:
        path.write_bytes(other)
        assert is_noticed(path, read)


@pytest.mark.parametrize("mean", [-1.0, -2.0])
def test_bodies_of_two_files_exchanged_are_noticed(mean: float, tmp_path: Path):
    """Also where the records tell the same mean."""
    for name, own, error in (("a", mean, 0.1), ("b", -2.0, 0.2)):
        (tmp_path / name).mkdir()
        found = SimpleNamespace(**vars(result(own)) | {"stderr": np.full(3, error)})
        write_evaluation(tmp_path / name, evaluation(mean=own), found)
    (tmp_path / "a" / "evaluation.npz").replace(tmp_path / "b" / "evaluation.npz")
    with pytest.raises(DataError, match=r"of evaluation\.json, found damage .*: run `ppl-vae evaluate"):
        read_arrays(tmp_path / "b", ARRAYS)


def test_parameters_are_a_file_of_safetensors_with_its_hash(tmp_path: Path):
    write_parameters(tmp_path)
    (found,) = load_file(tmp_path / "parameters.safetensors").values()
    assert found.tolist() == [0.5] * 3
    (tmp_path / "parameters.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="expected the SHA-256 of the file in its header, found none"):
        read_parameters(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": np.zeros(4)}, r"expected shape \(3,\), found \(4,\)"),
        ({"value": np.array(["a"] * 3)}, "expected real numbers"),
    ],
)
def test_arrays_of_another_form_are_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    write_evaluation(tmp_path, evaluation(), SimpleNamespace(**vars(result()) | changes))
    with pytest.raises(DataError, match=message):
        read_arrays(tmp_path, ARRAYS)


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda j: st.lists(j) | st.dictionaries(st.text(), j),
    max_leaves=8,
)
SEALED = {
    "run.json": (2, read_run),
    "evaluation.json": (2, read_evaluation),
    "history.jsonl": (None, lambda root: RunDirectory(root).read_history()),
}


@pytest.mark.parametrize("name", SEALED)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_sealed_file_says_it_is_read_or_refused_by_a_typed_error(name: str, fast_path: Path, data: Any):
    """Whoever writes it puts the right hash in, and anything in the place of any field, at any depth."""
    indent, read = SEALED[name]
    write_run(fast_path, RECORD)
    evaluated(fast_path)
    RunDirectory(fast_path).write_history([])
    RunDirectory(fast_path).append_history(Record(1, 2, 0.1, *([-1.0] * (len(Record._fields) - 3))))
    path = fast_path / name
    place = fields = plain.unseal(path.read_bytes(), path, indent)
    key = data.draw(st.sampled_from(sorted(fields)))
    if isinstance(place[key], dict) and data.draw(st.booleans()):
        place, key = place[key], data.draw(st.sampled_from(sorted(place[key])))
    place[key] = data.draw(JSON)
    path.write_bytes(plain.seal(fields, indent))
    with suppress(PplVaeError):
        read(fast_path)
