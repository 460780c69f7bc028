"""Checkpoints: what is written is read back to the bit, what cannot be is refused, old ones go when they may."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ppl_vae import storage
from ppl_vae.errors import CheckpointError, StorageError
from ppl_vae.storage import checkpoint, files, plain, tensors
from ppl_vae.storage.exact import exact, of_exact
from ppl_vae.storage.manifest import FORMAT, Manifest
from tests.faults import holds, save

DTYPES = [*tensors._NAMES]


def bits(x: torch.Tensor) -> bytes:
    return x.clone().view(torch.uint8).numpy().tobytes()


def round_trip(root: Path, **named: torch.Tensor) -> dict[str, torch.Tensor]:
    storage.write(root, 1, named, {})
    return storage.newest(root).tensors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape_is_read_back(dtype: torch.dtype, tmp_path: Path, generator: torch.Generator):
    x = torch.randint(0, 2 if dtype is torch.bool else 100, (4, 3, 2), generator=generator).to(dtype)
    named = {"whole": x, "scalar": x[0, 0, 0], "empty": x[:0], "turned": x.mT, "strided": x[:, ::2], "shared": x[1:]}
    found = round_trip(tmp_path, **named, parameter=torch.nn.Parameter(torch.ones(3)))
    assert all(torch.equal(found[name], value) and found[name].dtype is dtype for name, value in named.items())
    assert all(found[name].shape == value.shape for name, value in named.items())


def test_bit_patterns_are_kept(tmp_path: Path):
    patterns = torch.tensor([0x7FC00001, 0x7F800001, -(2**31), 1, 0x7F800000], dtype=torch.int32)
    x = patterns.view(torch.float32)
    found = round_trip(tmp_path, x=x, conjugate=torch.tensor([1 + 2j]).conj(), negative=torch.tensor([1j]).conj().imag)
    assert bits(found["x"]) == bits(x)
    assert found["conjugate"].item() == 1 - 2j
    assert found["negative"].item() == -1


def test_tensors_come_back_on_the_processor(device: torch.device, tmp_path: Path):
    found = round_trip(tmp_path, x=torch.arange(5.0, device=device))
    assert torch.equal(found["x"], torch.arange(5.0))


def test_the_file_is_one_of_safetensors(tmp_path: Path, generator: torch.Generator):
    named = {
        "b": torch.rand(3, 5, generator=generator),
        "a": torch.tensor(True),
        "c": torch.tensor(2, dtype=torch.int64),
    }
    path = storage.write(tmp_path, 1, named, {})
    found = load_file(path / checkpoint.TENSORS)
    assert all(torch.equal(found[name], value) for name, value in named.items())
    save_file(named, tmp_path / "theirs.safetensors")
    theirs = tensors.from_bytes((tmp_path / "theirs.safetensors").read_bytes(), tmp_path)
    assert all(torch.equal(theirs[name], value) for name, value in named.items())
    assert (tmp_path / "theirs.safetensors").read_bytes() == (path / checkpoint.TENSORS).read_bytes()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("", torch.ones(1), "names of 1 to 1000"),
        ("__metadata__", torch.ones(1), "names of 1 to 1000"),
        ("x" * 1001, torch.ones(1), "names of 1 to 1000"),
        (
            "x",
            torch.ones(1, dtype=torch.complex128),
            "'x': expected a dense tensor of dtype float64.* found .*complex128",
        ),
        ("x", torch.eye(2).to_sparse(), "found torch.float32, torch.sparse_coo"),
        ("x", torch.ones(1, device="meta"), "on meta"),
        ("x" + chr(0xD800), torch.ones(1), r"names that UTF-8 can encode, found 'x\\ud800'"),
        ("x", torch.ones([1] * 65), "'x': expected at most 64 dimensions, found 65"),
    ],
)
def test_tensors_that_have_no_place_are_refused(name: str, tensor: torch.Tensor, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        storage.write(tmp_path / "new", 1, {name: tensor}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"state\.deep\[1\]: expected a finite number, found nan: keep it as a tensor"),
        ((1, 2), "found tuple"),
        ({3: 4}, "keys that are strings of whole characters, found 3"),
        (Path("x"), "what JSON can hold, found PosixPath"),
    ],
)
def test_values_that_json_would_change_are_refused(value: object, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        storage.write(tmp_path, 1, {}, {"deep": [0, value]})
    assert not list(tmp_path.iterdir())


def test_values_too_deep_or_too_many_are_refused_when_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    deep: list = []
    for _ in range(plain.MAX_DEPTH):
        deep = [deep]
    with pytest.raises(ValueError, match="at most 32 levels"):
        storage.write(tmp_path, 1, {}, {"deep": deep})
    monkeypatch.setattr(checkpoint, "MAX_STATE", 100)
    with pytest.raises(CheckpointError, match="at most 100 bytes"):
        storage.write(tmp_path, 1, {}, {"long": "x" * 100})
    with pytest.raises(ValueError, match="step: expected at least 0"):
        storage.write(tmp_path, -1, {}, {})
    assert not list(tmp_path.iterdir())


def test_plain_values_are_equal_to_the_last_digit(tmp_path: Path):
    values = {"x": [0.1, 1e-320, 2**70, -0.0, "é\ud800\0", None, True, {"": {}}]}
    storage.write(tmp_path, 1, {}, values)
    found = storage.newest(tmp_path).plain
    assert found == values
    assert math.copysign(1, found["x"][3]) == -1


@pytest.mark.parametrize("name", ["float", "complex", "bytes", "whole", "text", "dict"])
def test_a_dictionary_that_looks_like_a_number_stays_one(name: str):
    for value in (
        {name: "1.5"},
        {name: {name: math.inf}},
        [{name: ["<f4", "0000803f"]}],
        {name: {}},
        {name: 1, "x": 2},
    ):
        assert of_exact(exact(value)) == value
    assert of_exact({"float": "-inf"}) == -math.inf  # as earlier versions wrote it


def test_the_newest_is_that_of_the_largest_step_whatever_the_clock_says(tmp_path: Path):
    for step in (9, 1200, 300):
        save(tmp_path, step)
    for name, year in (("step-000000009", 2100), ("step-000001200", 1971)):
        os.utime(tmp_path / name, (year * 3e7, year * 3e7))
    assert storage.newest(tmp_path).step == 1200
    assert storage.steps(tmp_path) == [9, 300, 1200]
    assert storage.prune(tmp_path, keep_last=1) == [tmp_path / "step-000000009", tmp_path / "step-000000300"]
    assert holds(storage.newest(tmp_path))


def test_the_last_ones_are_kept(tmp_path: Path):
    for step in range(1, 7):
        save(tmp_path, step)
        storage.prune(tmp_path, keep_last=2)
    assert storage.steps(tmp_path) == [5, 6]
    assert storage.prune(tmp_path, keep_last=1) == [tmp_path / "step-000000005"]
    with pytest.raises(ValueError, match="keep_last: expected at least 1"):
        storage.prune(tmp_path, keep_last=0)


def test_a_step_that_is_saved_again_does_not_touch_the_first(tmp_path: Path):
    save(tmp_path, 1)
    first = storage.write(tmp_path, 2, {}, {"attempt": 1})
    (first / checkpoint.STATE).write_bytes(b"{}")
    found = storage.newest(tmp_path)
    assert (found.step, len(found.skipped)) == (1, 1)
    again = storage.write(tmp_path, 2, {}, {"attempt": 2})
    assert again.name == "step-000000002.2"
    assert storage.newest(tmp_path).plain == {"attempt": 2}
    assert storage.prune(tmp_path, keep_last=2) == [first]
    assert storage.steps(tmp_path) == [1, 2]


def test_a_run_that_goes_back_gives_up_what_came_later(tmp_path: Path):
    for step in (1, 2, 2, 3):
        save(tmp_path, step)
    given_up = storage.discard_after(tmp_path / "step-000000002")
    assert [path.name for path in given_up] == ["step-000000002.2", "step-000000003"]
    assert storage.newest(tmp_path).path.name == "step-000000002"
    assert storage.discard_after(tmp_path / "step-000000002") == []
    with pytest.raises(CheckpointError, match=r"step-000000001\.2: expected the checkpoint that was read, found none"):
        storage.discard_after(tmp_path / "step-000000001.2")
    assert storage.steps(tmp_path) == [1, 2]


def test_damage_falls_back_and_says_so(tmp_path: Path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-000000003" / checkpoint.MANIFEST).unlink()
    (tmp_path / "step-000000002" / checkpoint.STATE).write_bytes(b"{}")
    found = storage.newest(tmp_path)
    assert found.step == 1
    assert holds(found)
    assert "step-000000003/manifest.json: cannot be read (No such file" in found.skipped[0]
    assert "step-000000002/state.json: expected 72 bytes, found 2" in found.skipped[1]
    (tmp_path / "step-000000001" / checkpoint.TENSORS).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"(?s)can be used, found\n.*003/manif.*\n.*002/state.*\n.*001/tensors"):
        storage.newest(tmp_path)


def test_no_checkpoint_at_all_is_an_error(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "absent"):
        assert storage.steps(folder) == []
        with pytest.raises(CheckpointError, match="expected a checkpoint that can be used, found none"):
            storage.newest(folder)


def rewritten(path: Path, **changes: object) -> None:
    """A manifest that is intact and says something else."""
    fields = json.loads((path / checkpoint.MANIFEST).read_bytes()) | changes
    fields.pop("sha256")
    sha = hashlib.sha256(plain.encode(fields)).hexdigest()
    (path / checkpoint.MANIFEST).write_bytes(plain.encode(fields | {"sha256": sha}))


def test_a_newer_format_is_refused_and_both_versions_said(tmp_path: Path):
    for step in (1, 2):
        save(tmp_path, step)
    rewritten(tmp_path / "step-000000002", format=FORMAT + 1, library="9.9", other="fields")
    with pytest.raises(CheckpointError, match=rf"format {FORMAT} or older, found format {FORMAT + 1}, .* ppl_vae 9\.9"):
        storage.newest(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"format": 0}, {"format": True}, {"step": -1}, {"step": 1.0}, {"library": 3}, {"files": {}}, {"x": 1}]
)
def test_a_manifest_of_other_fields_is_refused(changes: dict, tmp_path: Path):
    save(tmp_path, 1)
    rewritten(tmp_path / "step-000000001", **changes)
    with pytest.raises(CheckpointError, match=r"manifest\.json: expected"):
        storage.read(tmp_path / "step-000000001")


def test_the_manifest_says_what_is_there(tmp_path: Path):
    path = storage.write(tmp_path, 12, {"x": torch.ones(2)}, {"a": 1})
    found = Manifest.from_bytes((path / checkpoint.MANIFEST).read_bytes(), path)
    assert (found.format, found.step) == (FORMAT, 12)
    assert {name: file.num_bytes for name, file in found.files.items()} == {
        name: (path / name).stat().st_size for name in (checkpoint.TENSORS, checkpoint.STATE)
    }


def test_a_checkpoint_under_the_name_of_another_step_is_refused(tmp_path: Path):
    save(tmp_path, 1)
    (tmp_path / "step-000000001").rename(tmp_path / "step-000000002")
    with pytest.raises(CheckpointError, match="expected step 2, found 1"):
        storage.newest(tmp_path)


def test_sizes_are_bounded_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 1, num_bytes=10_000)
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "MAX_BYTES", 5000)
        with pytest.raises(CheckpointError, match=r"tensors.safetensors: expected at most 5000 bytes, found 1\d{4}"):
            storage.newest(tmp_path)
    with (tmp_path / "step-000000001" / checkpoint.STATE).open("ab") as file:
        file.truncate(2**42)  # a file with a hole takes no room
    with pytest.raises(CheckpointError, match=rf"state.json: expected at most \d+ bytes, found {2**42}"):
        storage.newest(tmp_path)


# Single files


def test_a_file_is_replaced_whole_and_under_its_own_name(tmp_path: Path):
    path = tmp_path / "run.json"
    for text in (b"one", b"two"):
        files.replace(path, [text[:1], text[1:], b""])
        assert files.read(path, 3) == text
    assert files.listed(tmp_path) == ["run.json"]
    with pytest.raises(StorageError, match="at most 2 bytes, found 3"):
        files.read(path, 2)


def test_lines_are_added(tmp_path: Path):
    path = tmp_path / "history.jsonl"
    for line in ("one\n", "zwölf\n", "torn"):
        files.append(path, line)
    assert path.read_text() == "one\nzwölf\ntorn"


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path):
    def interrupted():
        yield b"half"
        raise KeyboardInterrupt

    files.replace(tmp_path / "x", [b"before"])
    with pytest.raises(KeyboardInterrupt):
        files.replace(tmp_path / "x", interrupted())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"before"}


def test_folders_are_made_with_those_above(tmp_path: Path):
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / "nul\0", tmp_path / ("x" * 300)):
        with pytest.raises(StorageError):
            files.make_folder(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file"]


def test_more_than_is_read_back_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 1)
    monkeypatch.setattr(tensors, "MAX_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"expected at most 100 bytes of tensors, found 104"):
        storage.write(tmp_path, 2, {"x": torch.zeros(26)}, {})
    assert files.listed(tmp_path) == ["step-000000001"]


def test_debris_alone_is_removed(tmp_path: Path):
    save(tmp_path, 1)
    (tmp_path / ".tmp-mine").mkdir()
    (tmp_path / ".tmp-mine" / "thesis.tex").touch()
    part = files.temporary(tmp_path / "x")
    part.mkdir()
    (part / checkpoint.TENSORS).write_bytes(b"half")
    files.temporary(tmp_path / "x").write_bytes(b"half")
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    (outside / "thesis.tex").touch()
    files.temporary(tmp_path / "x").symlink_to(outside)
    assert storage.remove_debris(tmp_path, lambda name: name != "x") == []
    assert len(storage.remove_debris(tmp_path, lambda name: name == "x")) == 3
    assert files.listed(tmp_path) == [".tmp-mine", "step-000000001"]
    assert (outside / "thesis.tex").exists()
    assert (tmp_path / ".tmp-mine" / "thesis.tex").exists()


def test_folders_that_others_have_made_in_a_checkpoint_go_with_it(tmp_path: Path):
    """Jupyter, and a file server, leave folders wherever someone looks."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.tex").touch()
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        save(folder, step)
        path = folder / f"step-{step:09d}"
        (path / ".ipynb_checkpoints" / "deeper").mkdir(parents=True)
        (path / ".ipynb_checkpoints" / "deeper" / "state.json").touch()
        (path / ".ipynb_checkpoints" / "link").symlink_to(outside)
    part = files.temporary(folder / "step-000000003")
    (folder / "step-000000002").rename(part)
    save(folder, 3)
    assert storage.prune(folder, keep_last=1) == [folder / "step-000000001"]
    assert storage.remove_debris(folder) == [part.name]
    assert files.listed(folder) == ["step-000000003"]
    assert (outside / "thesis.tex").exists()


def test_names_that_no_file_can_have_are_typed_errors(tmp_path: Path):
    for act in (files.where_links_lead, files.make_folder, files.listed, files.is_file):
        with pytest.raises(StorageError, match=r"x\\ud800': .*: expected a name that the system can have"):
            act(tmp_path / ("x" + chr(0xD800)))


def test_nothing_but_regular_files_is_read_or_written(tmp_path: Path):
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    target.write_bytes(b"secret")
    link.symlink_to(target)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # without a reader, a pipe refuses writers by itself
    for act in (lambda path: files.read(path, 100), lambda path: files.append(path, "x")):
        with pytest.raises(StorageError, match="pipe: expected a regular file"):
            act(pipe)
        with pytest.raises(StorageError, match="link: cannot be"):
            act(link)
    os.close(reader)
    assert target.read_bytes() == b"secret"
    files.replace(link, [b"new"])
    assert (link.read_bytes(), link.is_symlink(), target.read_bytes()) == (b"new", False, b"secret")
