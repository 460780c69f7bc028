"""What stands on disk when a run is killed, refused, or read back by another pair."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

import ppl_vae as pv
from ppl_vae.errors import DataError, LockedError, PplVaeError, StorageError
from ppl_vae.history import Record
from ppl_vae.pair import as_pair
from ppl_vae.rundir import (
    DataSpec,
    PairSpec,
    RunDirectory,
    RunRecord,
    described,
    described_again,
    fingerprint,
    read_arrays,
    read_evaluation,
    read_run,
    write_run,
)
from ppl_vae.rundir import directory as module
from ppl_vae.schedules import Constant
from ppl_vae.storage import files, locked, plain
from ppl_vae.svi import FitSettings
from tests.faults import Fail, count, fault

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

RECORD = RunRecord(("ppl-vae",), PairSpec("vae"), DataSpec("digits"), "0" * 64, "cpu", 3)


def small(latent_dim: int = 2) -> pv.Pair:
    decoder, encoder = pv.decoders.Bernoulli.mlp(latent_dim, [], 4), pv.encoders.DiagonalNormal.mlp(4, [], latent_dim)
    return as_pair(pv.VAE(pv.priors.StandardNormal(latent_dim), decoder, encoder))


def break_off(root: Path, error: type[BaseException]) -> None:
    """A fit that ends in the middle of a line of its history."""
    with described(root, RECORD):
        assert read_run(root) == RECORD
        RunDirectory.create(root, FitSettings())
        (root / "history.jsonl").write_text(line(step=7, seconds=1.5) + line(step=9, seconds=2.0)[:16])
        raise error


def line(**fields: float) -> str:
    """A line of a history."""
    return plain.seal(fields).decode()


def test_a_description_is_written_first_and_says_how_it_ended(tmp_path: Path):
    for error, status in ((KeyboardInterrupt, "interrupted"), (ArithmeticError, "failed")):
        root = tmp_path / "deep" / status
        with pytest.raises(error):
            break_off(root, error)
        assert (read_run(root).status, read_run(root).steps, read_run(root).seconds) == (status, 7, 1.5)


def test_a_fit_refused_before_it_begins_leaves_nothing(tmp_path: Path):
    kept = tmp_path / "kept"
    kept.mkdir()
    for root in (tmp_path / "deep" / "er", kept):
        with pytest.raises(ZeroDivisionError), described(root, RECORD):
            raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert not list(kept.iterdir())


def begin(root: Path, number: int) -> str:
    """A fit of one process as `ppl-vae fit` makes it; returns how it ended."""
    record = replace(RECORD, command=(f"process {number}",))
    try:
        with described(root, record):
            with locked(root):
                RunDirectory.create(root, FitSettings())
                time.sleep(0.02)
            if read_run(root) != record:
                return "robbed"
            write_run(root, replace(record, status="finished"))
    except PplVaeError as error:
        return type(error).__name__
    return "finished"


def in_child(work: Callable[[], str], path: Path) -> Callable[[], str]:
    """Does a piece of work in a forked process; what is returned waits for it and tells what it said."""
    child = os.fork()
    if child == 0:
        try:
            path.write_text(work())
        finally:
            os._exit(0)

    def end() -> str:
        os.waitpid(child, 0)
        return path.read_text()

    return end


def test_a_fit_that_finds_another_at_work_touches_nothing(tmp_path: Path):
    write_run(tmp_path, RECORD)
    before = (tmp_path / "run.json").read_bytes()
    with locked(tmp_path), pytest.raises(LockedError), described_again(tmp_path, replace(RECORD, steps=5)):
        raise AssertionError
    assert (tmp_path / "run.json").read_bytes() == before
    (tmp_path / "new").mkdir()
    with locked(tmp_path / "new"), pytest.raises(LockedError), described(tmp_path / "new", RECORD):
        raise AssertionError
    assert not list((tmp_path / "new").iterdir())


def test_a_run_that_goes_on_has_its_new_description_from_the_start(tmp_path: Path):
    """Options that may change are those of the process that is at work, also if it is killed."""
    write_run(tmp_path, replace(RECORD, status="failed", steps=5))
    again = replace(RECORD, command=("ppl-vae", "resume"))
    with described_again(tmp_path, again) as hold:
        assert read_run(tmp_path).status == "failed"
        hold.begin()
        assert read_run(tmp_path) == again


def test_of_processes_that_begin_in_one_directory_one_goes_on_undisturbed(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All of them pass the first look at the directory, which is empty, before one of them goes on."""
    several, endings, check = 3, set(), module.check_free
    for trial in range(8):
        root, ready, go = fast_path / str(trial), os.pipe(), os.pipe()

        def look(path: Path, allowed: Collection[str] = (), ready=ready, go=go) -> None:
            check(path, allowed)
            monkeypatch.setattr(module, "check_free", check)
            os.close(go[1])
            os.write(ready[1], b"x")
            os.read(go[0], 1)

        monkeypatch.setattr(module, "check_free", look)
        ended = [in_child(lambda root=root, n=n: begin(root, n), fast_path / f"{trial}-{n}") for n in range(several)]
        monkeypatch.setattr(module, "check_free", check)
        for _ in ended:
            os.read(ready[0], 1)
        os.close(go[1])
        said = [end() for end in ended]
        assert said.count("finished") == 1, said
        assert {*said} <= {"finished", "LockedError", "PplVaeError"}
        assert read_run(root).command == (f"process {said.index('finished')}",)
        assert read_run(root).status == "finished"
        endings |= {*said}
        for file in (*ready, go[0]):
            os.close(file)
    assert "LockedError" in endings


def test_a_directory_is_named_by_a_string_too(tmp_path: Path):
    pair = small()
    RunDirectory.create(str(tmp_path / "run"), FitSettings()).write_parameters(pair)
    RunDirectory(str(tmp_path / "run")).read_parameters(pair)


def test_a_directory_with_more_than_a_description_is_refused(tmp_path: Path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(PplVaeError, match="expected a new or empty directory"):
        RunDirectory.create(tmp_path, FitSettings())
    assert not (tmp_path / "config.json").exists()


def test_the_configuration_tells_the_device_it_is_given(tmp_path: Path):
    settings = FitSettings(schedule=Constant(math.inf))
    RunDirectory.create(tmp_path / "run", settings, torch.device("cpu"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["schedule"]["value"] == "inf"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["device"] == "cpu"


def test_a_kill_while_saving_keeps_the_parameters_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, pair = RunDirectory(tmp_path), small()
    run.write_parameters(pair)
    before = {name: tensor.clone() for name, tensor in pair.state_dict().items()}

    def torn(state: object) -> Iterator[bytes]:
        yield b"half of it"
        raise KeyboardInterrupt

    monkeypatch.setattr(module.tensors, "sealed", torn)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(1.0)
    with pytest.raises(KeyboardInterrupt):
        run.write_parameters(pair)
    run.read_parameters(pair)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pair.state_dict().items())


@pytest.mark.parametrize("name", ["nul\0", "x" * 300, "file/run"])
def test_a_directory_that_cannot_be_is_a_typed_error(name: str, tmp_path: Path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(PplVaeError, match=r"run directory .*: choose another run_dir"),
        described(tmp_path / name, RECORD),
    ):
        raise AssertionError
    with pytest.raises(PplVaeError):
        RunDirectory.create(tmp_path / name, FitSettings())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_torn_last_line_is_dropped_and_other_damage_is_an_error(tmp_path: Path):
    run = RunDirectory(tmp_path)
    assert run.read_history() == []
    whole = line(step=7) + line(step=9)
    for torn in ("", line(step=11)[:7], line(step=11)[:-1], "\x80"):
        (tmp_path / "history.jsonl").write_text(whole + torn)
        assert run.read_history() == [{"step": 7}, {"step": 9}]
    for damaged in (line(step=7)[:9] + "\n" + line(step=9), "[9]\n", "\n", '{"step":7}\n', whole.replace("9", "8", 1)):
        (tmp_path / "history.jsonl").write_text(damaged)
        with pytest.raises(DataError, match=r"history\.jsonl, line \d: expected"):
            run.read_history()


def test_a_damaged_history_does_not_hide_what_ended_a_fit(tmp_path: Path):
    def fail() -> None:
        with described(tmp_path / "run", replace(RECORD, steps=5)):
            RunDirectory.create(tmp_path / "run", FitSettings())
            (tmp_path / "run" / "history.jsonl").write_text(line(step=7).replace("7", "8", 1))
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert (read_run(tmp_path / "run").status, read_run(tmp_path / "run").steps) == ("failed", 5)


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "description": read_run,
    "evaluation": read_evaluation,
    "arrays": lambda root: read_arrays(root, ["value"]),
    "history": lambda root: RunDirectory(root).read_history(),
    "parameters": lambda root: RunDirectory(root).read_parameters(small()),
    "whether there are parameters": lambda root: RunDirectory(root).has_parameters,
    "a new run": lambda root: RunDirectory.create(root, FitSettings()),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_the_system_does_not_let_one_look_at_is_a_typed_error(what: str, tmp_path: Path):
    """F3 and F16: a name of 300 characters, and folders and disks that refuse."""
    with pytest.raises(PplVaeError, match="File name too long"):
        UNREADABLE[what](tmp_path / ("x" * 300))

    for code in (errno.EACCES, errno.EIO):

        def refuse(operation: Callable[..., Any], *arguments: Any, code: int = code) -> Any:
            if operation in (os.stat, os.lstat, os.listdir):
                raise OSError(code, os.strerror(code))
            return operation(*arguments)

        with fault(refuse), pytest.raises(PplVaeError, match=os.strerror(code)):
            UNREADABLE[what](tmp_path)


def test_a_description_that_the_disk_refuses_is_a_typed_error_and_the_file_is_whole(fast_path: Path):
    """F3: run.json is the old one, or the new one where only its name could not be made durable."""
    new = replace(RECORD, steps=5)
    total = count(lambda: write_run(fast_path, RECORD))
    assert total > 5
    for code in (errno.ENOSPC, errno.EIO, errno.EROFS):
        found = []
        for at in range(total):
            write_run(fast_path, RECORD)
            with fault(Fail(at, code)), pytest.raises(StorageError, match=os.strerror(code)):
                write_run(fast_path, new)
            found.append(read_run(fast_path))
            assert not [name for name in files.listed(fast_path) if files.is_debris(name)]
        assert found[0] == RECORD
        assert found == sorted(found, key=lambda record: record.steps)
        assert {record.steps for record in found} == {0, 5}


def test_a_record_that_is_not_finite_is_kept_as_json(tmp_path: Path):
    record = Record(1, 7, 0.5, math.nan, math.inf, -math.inf, 0.0, 1.0, 0.1, 1.0, math.nan)
    RunDirectory(tmp_path).append_history(record)
    (found,) = RunDirectory(tmp_path).read_history()
    assert [found[name] for name in ("objective", "elbo", "distortion", "rate")] == [0.5, None, "inf", "-inf"]


def test_parameters_of_another_pair_name_the_first_difference(tmp_path: Path):
    run = RunDirectory(tmp_path)
    with pytest.raises(PplVaeError, match="found no such file"):
        run.read_parameters(small())
    run.write_parameters(small(2))
    with pytest.raises(
        DataError,
        match=r"do not fit the pair: expected programs.* of shape \(4, 3\), found programs.* of shape \(4, 2\)",
    ):
        run.read_parameters(small(3))
    (tmp_path / "parameters.safetensors").write_bytes(b"damage")
    with pytest.raises(DataError, match="expected readable parameters, found damage"):
        run.read_parameters(small())


def test_parameters_are_those_of_the_object_that_was_trained(tmp_path: Path):
    def make() -> pv.VAE:
        prior, decoder = pv.priors.StandardNormal(2), pv.decoders.Bernoulli.mlp(2, [], 4)
        return pv.VAE(prior, decoder, pv.encoders.DiagonalNormal.mlp(4, [], 2))

    first, second = make(), make()
    RunDirectory(tmp_path).write_parameters(pv.as_pair(first))
    RunDirectory(tmp_path).read_parameters(second)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    RunDirectory(tmp_path).write_parameters(second)
    RunDirectory(tmp_path).read_parameters(first)


@pytest.mark.parametrize(
    ("kept", "own", "mend"),
    [
        (torch.float64, torch.float32, r"pair\.double\(\)"),
        (torch.float32, torch.float64, r"pair\.float\(\)"),
        (torch.bfloat16, torch.float32, r"pair\.to\(torch\.bfloat16\)"),
    ],
)
def test_parameters_of_another_dtype_are_not_rounded(kept: torch.dtype, own: torch.dtype, mend: str, tmp_path: Path):
    """F12: a number that is read back is the one that was written."""
    run, pair = RunDirectory(tmp_path), small().to(own)
    run.write_parameters(small().to(kept))
    before = {name: tensor.clone() for name, tensor in pair.state_dict().items()}
    with pytest.raises(DataError, match=rf"expected programs.* in {own}, found {kept}, .*: call {mend} first"):
        run.read_parameters(pair)
    with pytest.raises(PplVaeError, match=f"load_state_dict: .*call {mend} first"):
        pair.load_state_dict(small().to(kept).state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in pair.state_dict().items())
    run.read_parameters(pair.to(kept))


def test_parameters_made_on_first_use_are_read_into_a_pair_that_has_not_run(tmp_path: Path):
    def make(start: float) -> pv.Pair:
        def model(x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                loc = pyro.param("loc", torch.tensor(start))
                pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=x)

        return pv.Pair(model, lambda x: None)

    first, second = make(3.0), make(0.0)
    first.prepare(torch.zeros(2))
    RunDirectory(tmp_path).write_parameters(first)
    RunDirectory(tmp_path).read_parameters(second)
    assert second.param("loc").item() == 3.0


def test_fingerprints_tell_values_shapes_and_order():
    x, y = torch.zeros(4, 2), torch.ones(4)
    prints = {fingerprint(x), fingerprint(x.reshape(2, 4)), fingerprint(x, y), fingerprint(y, x), fingerprint(x + 1e-6)}
    assert len(prints) == 5
    assert fingerprint(x) == fingerprint(x.double())
    large = torch.tensor([2**53])
    assert fingerprint(large - 1) == fingerprint((large - 1).double())
    assert len({fingerprint(large), fingerprint(large + 1), fingerprint(large + 2), fingerprint(-large - 1)}) == 4
