"""A fit that goes on among directories, data, functions and machines of others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_vae.arrays import as_rows
from ppl_vae.errors import CheckpointError, PplVaeError, StorageError
from ppl_vae.storage import steps
from ppl_vae.svi import facts
from tests.pairs import ModuleVAE
from tests.resuming import binary, numbers, only, run, same
from tests.training import fresh


def names(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in root.rglob("*")]


def test_a_folder_of_someone_else_stays_as_it_is(tmp_path: Path):
    (tmp_path / ".tmp-mine").mkdir()
    (tmp_path / ".tmp-mine" / "thesis.tex").touch()
    (tmp_path / ".tmp-0123456789abcdef-step").mkdir()
    (tmp_path / "notes.txt").touch()
    before = sorted(names(tmp_path))
    with pytest.raises(PplVaeError, match="expected a new or empty directory"):
        run(ModuleVAE, binary, {}, run_dir=tmp_path, resume="auto")
    assert sorted(set(names(tmp_path)) - {"lock"}) == before


def test_a_run_directory_may_be_a_link(tmp_path: Path):
    """To a larger disk, say: the user has named it."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path / "run")
    longer = numbers(*run(ModuleVAE, binary, {"epochs": 2}, seed=1, run_dir=tmp_path / "run", resume=True))
    assert same(longer, numbers(*run(ModuleVAE, binary, {"epochs": 2})))
    assert (tmp_path / "run").is_symlink()
    assert steps(tmp_path / "disk/checkpoints") == [3, 6]


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_run_whose_checkpoints_are_lost_is_not_begun_anew(folder: str, tmp_path: Path):
    """Its history and parameters would be overwritten."""
    run(ModuleVAE, binary, {"epochs": 2}, run_dir=tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    if folder == "empty":
        (tmp_path / "checkpoints").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(
        CheckpointError, match="expected a checkpoint of the run, which has left parameters and had got to step 6"
    ):
        run(ModuleVAE, binary, {}, run_dir=tmp_path, resume="auto")
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew_and_says_so(tmp_path: Path):
    run(ModuleVAE, binary, {"epochs": 2}, run_dir=tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "parameters.safetensors").unlink()
    with pytest.warns(UserWarning, match="found no checkpoint of the run, which had got to step 6: it begins anew"):
        found = numbers(*run(ModuleVAE, binary, {}, run_dir=tmp_path, resume="auto"))
    assert same(found, numbers(*run(ModuleVAE, binary, {})))


@pytest.mark.parametrize("name", ["checkpoints", "bad-steps"])
def test_folders_of_a_run_that_are_links_are_refused_and_what_they_lead_to_stays(name: str, tmp_path: Path):
    """F16: what a fit writes and removes there would be another run's."""
    run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path / "run")
    run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path / "other")
    if name == "checkpoints":
        shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run" / name).symlink_to(tmp_path / "other" / "checkpoints")
    (tmp_path / "other" / "checkpoints" / ".tmp-0123456789abcdef-step").mkdir()  # of who is at work there
    before = sorted(names(tmp_path / "other"))
    with pytest.raises(StorageError, match=rf"{name}: expected a folder of the run, found a link"):
        run(ModuleVAE, binary, {}, run_dir=tmp_path / "run", resume=True)
    assert sorted(names(tmp_path / "other")) == before


def test_a_directory_that_cannot_be_looked_at_is_no_place_to_resume(tmp_path: Path):
    with pytest.raises(CheckpointError, match="File name too long"):
        run(ModuleVAE, binary, {}, run_dir=tmp_path / ("x" * 300), resume=True)


def rows(n: int = 5000) -> torch.Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(0))


def test_every_row_in_memory_counts():
    x, other = rows(), rows()
    other[4321, 1] += 0.5
    assert facts.fingerprint(as_rows(x)) == facts.fingerprint(as_rows(x.numpy().copy()))
    assert facts.fingerprint(as_rows(x)) != facts.fingerprint(as_rows(other))
    assert facts.fingerprint(as_rows(x)) != facts.fingerprint(as_rows((x, x)))


def test_a_file_is_not_resumed_as_an_array(tmp_path: Path):
    """Rows of a large file come in another order."""
    np.save(tmp_path / "rows.npy", binary.numpy())
    file = np.load(tmp_path / "rows.npy", mmap_mode="r", allow_pickle=False)
    run(ModuleVAE, file, {"epochs": 1}, run_dir=tmp_path / "run")
    with pytest.raises(CheckpointError, match="began with data on disk = True, found False"):
        run(ModuleVAE, binary, {}, run_dir=tmp_path / "run", resume=True)


def scaled(factor: float):
    return lambda step: factor


@pytest.mark.parametrize("other", [scaled(0.25), lambda step: 0.5 * (step > 0)], ids=["closure", "code"])
def test_a_function_of_the_same_name_is_another_one_by_its_code(other, tmp_path: Path):
    other.__qualname__ = scaled(0.5).__qualname__
    run(ModuleVAE, binary, {"schedule": scaled(0.5), "epochs": 1}, run_dir=tmp_path)
    run(ModuleVAE, binary, {"schedule": scaled(0.5), "epochs": 1}, run_dir=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="began with code of schedule = "):
        run(ModuleVAE, binary, {"schedule": other}, run_dir=tmp_path, resume=True)


def test_other_versions_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path)
    monkeypatch.setattr(facts, "version_of", {"ppl-vae": "99.0", "pyro-ppl": "2.0"}.get)
    with pytest.warns(UserWarning, match=r"not bit by bit.*: ppl_vae was .* and is '99\.0'.*pyro was .* and is '2\.0'"):
        run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path, resume=True)


MACHINES = {
    "instructions of the CPU": (torch.backends.cpu, "get_cpu_capability", lambda: "NO AVX"),
    "precision of float32": (torch, "get_float32_matmul_precision", lambda: "medium"),
    "build of torch": (torch.version, "git_version", "abc"),
    "default type": (torch, "get_default_dtype", lambda: torch.float64),
    "kernels of oneDNN": (torch.backends.mkldnn, "enabled", False),
    "search for kernels of cuDNN": (torch.backends.cudnn, "benchmark", True),
}


@pytest.mark.parametrize("what", MACHINES)
def test_another_machine_is_warned_of(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path)
    monkeypatch.setattr(*MACHINES[what])
    with pytest.warns(UserWarning, match=f"not bit by bit.*: {what} was "):
        run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path, resume=True)


def test_small_numbers_that_become_zero_are_warned_of(tmp_path: Path):
    run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor keeps subnormal numbers")
    try:
        with pytest.warns(UserWarning, match="not bit by bit.*: subnormal numbers was True and is False"):
            run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path, resume=True)
    finally:
        torch.set_flush_denormal(False)


def test_another_generator_of_numpy_is_refused_before_the_first_step(tmp_path: Path):
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    try:
        with pytest.raises(CheckpointError, match=r"expected that of MT19937.*found PCG64"):
            run(ModuleVAE, binary, {}, run_dir=tmp_path / "run")
    finally:
        np.random.set_bit_generator(before)
    assert not (tmp_path / "run").exists()


def test_fewer_steps_than_are_done_end_the_fit_at_once_and_are_said(tmp_path: Path):
    run(ModuleVAE, binary, {"steps": 5, "epochs": None}, run_dir=tmp_path)
    run(ModuleVAE, binary, {"steps": 5, "epochs": None}, run_dir=tmp_path, resume=True)  # as many: no warning
    with pytest.warns(UserWarning, match="has done 5 steps, and epochs= or steps= ask for 2: no step is taken"):
        _, fit = run(ModuleVAE, binary, {"steps": 2, "epochs": None}, run_dir=tmp_path, resume=True)
    assert (fit.steps, [record.step for record in fit.history]) == (5, [3, 5])


def test_fewer_steps_than_are_done_end_an_epoch_that_has_begun(tmp_path: Path):
    run(ModuleVAE, binary, {"steps": 5, "epochs": None}, run_dir=tmp_path / "whole", checkpoint_every=1)
    root = only(tmp_path / "whole" / "checkpoints" / "step-000000004", tmp_path / "part")
    with pytest.warns(UserWarning, match="has done 4 steps, and epochs= or steps= ask for 2: no step is taken"):
        _, fit = run(ModuleVAE, binary, {"steps": 2, "epochs": None}, run_dir=root, resume=True)
    assert (fit.steps, [record.step for record in fit.history]) == (4, [3, 4])


def test_a_pair_is_left_as_it_was_by_a_refusal(tmp_path: Path):
    run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path)
    pair = fresh(seed=3)
    before = [p.clone() for p in pair.parameters()]
    with pytest.raises(CheckpointError, match="began with data ="):
        run(lambda: pair, 1 - binary, {}, run_dir=tmp_path, resume=True)
    assert all(map(torch.equal, before, pair.parameters()))
