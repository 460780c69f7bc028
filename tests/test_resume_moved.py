"""A run directory that is moved, replaced or unlocked while a fit is at work in it: two runs never mix."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ppl_vae as pv
from ppl_vae.cli import training
from ppl_vae.errors import LockedError, StorageError
from ppl_vae.history import Record
from ppl_vae.rundir import RunDirectory, read_run
from ppl_vae.storage import LOCK, Hold, lent, locked, steps
from ppl_vae.svi.saving import Saving
from tests.commands import SMALL_VAE, call, succeed
from tests.pairs import ModuleVAE
from tests.resuming import binary, numbers, run, same

pytestmark = pytest.mark.usefixtures("blank_pictures")


def content(root: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def moved(root: Path) -> None:
    root.rename(root.with_name("moved"))


def replaced(root: Path) -> None:
    moved(root)
    root.with_name("other").rename(root)


def unlocked(root: Path) -> None:
    (root / LOCK).unlink()
    (root / LOCK).touch()  # by another process, which has begun there


def led_elsewhere(root: Path) -> None:
    root.unlink()
    root.symlink_to("other")


def after_epoch(number: int, act: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    append = RunDirectory.append_history

    def late(self: RunDirectory, record: Record) -> None:
        append(self, record)
        if record.epoch == number:
            act()

    patch.setattr(RunDirectory, "append_history", late)


@pytest.mark.parametrize("every", [1, 5, 99], ids=["at-a-checkpoint", "within-an-epoch", "at-the-end-of-an-epoch"])
@pytest.mark.parametrize("change", [moved, replaced, unlocked])
def test_a_fit_whose_directory_is_no_longer_its_own_writes_nothing_more(
    change: Callable[[Path], None], every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """F14."""
    root, before = tmp_path / "run", {}
    run(ModuleVAE, binary, {}, run_dir=tmp_path / "other")

    def act() -> None:
        change(root)
        before.update({path.name: content(path) for path in tmp_path.iterdir()})

    after_epoch(1, act, monkeypatch)
    with pytest.raises(LockedError, match=rf"{root}: .*the directory was moved or replaced.*resume the run where"):
        run(ModuleVAE, binary, {}, run_dir=root, checkpoint_every=every)
    assert {path.name: content(path) for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("every", [1, 99], ids=["at-a-checkpoint", "at-the-end"])
@pytest.mark.parametrize("name", ["checkpoints", "bad-steps"])
def test_a_folder_that_becomes_a_link_in_the_middle_of_a_fit_ends_it(
    name: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """F16: what it leads to is another run's, and stays."""
    root, other = tmp_path / "run", tmp_path / "other"
    run(ModuleVAE, binary, {}, run_dir=other, checkpoint_every=1)
    before = content(other)

    def act() -> None:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).symlink_to(other / "checkpoints")

    after_epoch(1, act, monkeypatch)
    with pytest.raises(StorageError, match=rf"{name}: expected a folder of the run, found a link"):
        run(ModuleVAE, binary, {}, run_dir=root, checkpoint_every=every)
    assert content(other) == before


def test_a_run_that_was_moved_goes_on_where_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = numbers(*run(ModuleVAE, binary, {}))
    with monkeypatch.context() as patch:
        after_epoch(2, lambda: moved(tmp_path / "run"), patch)
        with pytest.raises(LockedError):
            run(ModuleVAE, binary, {}, run_dir=tmp_path / "run", checkpoint_every=1)
    assert steps(tmp_path / "moved/checkpoints") == [5, 6]
    assert same(whole, numbers(*run(ModuleVAE, binary, {}, seed=1, run_dir=tmp_path / "moved", resume=True)))


def test_a_fit_stays_where_its_link_led_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("own", "other"):
        run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path / name)
    before = content(tmp_path / "other")
    (tmp_path / "run").symlink_to("own")
    after_epoch(2, lambda: led_elsewhere(tmp_path / "run"), monkeypatch)
    run(ModuleVAE, binary, {}, seed=1, run_dir=tmp_path / "run", resume=True)
    assert content(tmp_path / "other") == before
    assert (steps(tmp_path / "own/checkpoints")[-1], len(RunDirectory(tmp_path / "own").read_history())) == (9, 3)


class Broken(pv.ELBO):
    """No step is finite."""

    def evaluate(self, pair, batch, layout, beta):
        values = super().evaluate(pair, batch, layout, beta)
        return values._replace(loss=values.loss * float("nan"))


@pytest.mark.parametrize("moment", ["at_start", "after_bad_step", "close"])
def test_a_directory_that_is_replaced_just_before_something_is_left_there_stays_as_it_is(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root, after = tmp_path / "run", getattr(Saving, moment)
    options = {"on_nonfinite": "skip", "objective": Broken() if moment == "after_bad_step" else pv.ELBO()}
    for name in ("other", "run"):
        run(ModuleVAE, binary, {"steps": 2, "objective": pv.ELBO()}, run_dir=tmp_path / name, checkpoint_every=1)
    if moment == "after_bad_step":
        shutil.rmtree(root)
    (tmp_path / "other" / "checkpoints" / "step-000000009").mkdir()  # damaged, and after the one that it goes on from
    before = content(tmp_path / "other")

    def late(self: Saving, *arguments: Any) -> None:
        if root.with_name("other").exists():
            replaced(root)
        after(self, *arguments)

    monkeypatch.setattr(Saving, moment, late)
    with pytest.raises(LockedError):
        run(ModuleVAE, binary, options, run_dir=root, resume="auto")
    assert content(root) == before
    assert (root / "checkpoints" / "step-000000009").exists()


def test_a_lock_that_is_lent_is_the_same_one(tmp_path: Path):
    with lent(tmp_path) as outer, locked(tmp_path) as inner:
        assert inner is outer
        inner.check()


def test_a_lock_that_is_lost_is_left_to_the_one_who_has_it(tmp_path: Path):
    with locked(tmp_path) as lost:
        unlocked(tmp_path)
        with locked(tmp_path) as hold:
            assert (lost.lasts, hold.lasts) == (False, True)
    assert not (tmp_path / LOCK).exists()
    with locked(tmp_path) as lost:
        unlocked(tmp_path)
    assert (tmp_path / LOCK).exists()


def test_a_hold_of_what_has_gone_does_not_last(tmp_path: Path):
    assert not Hold(tmp_path / "absent" / LOCK, 0).lasts


def ready(folder: Path, command: str, epochs: int, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple, Any]:
    """The command that fits or resumes `run`, interrupted before a resume, and what the run `other` holds."""
    fit = ("fit", *SMALL_VAE, "--eval-samples", "0", "--epochs")
    succeed(*fit, "1", "--run-dir", folder / "other")
    whole = (*fit, str(epochs), "--run-dir", folder / "run")
    if command == "resume":
        with monkeypatch.context() as patch:
            after_epoch(1, _interrupt, patch)
            call(*whole)
    return (("resume", folder / "run") if command == "resume" else whole), content(folder / "other")


@pytest.mark.parametrize("command", ["fit", "resume"])
def test_a_command_whose_directory_is_replaced_describes_nothing_there(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begin, before = ready(tmp_path, command, 3, monkeypatch)
    root = tmp_path / "run"
    after_epoch(2, lambda: replaced(root), monkeypatch)
    result = call(*begin)
    assert result.exit_code == 1
    assert "the directory was moved or replaced" in " ".join(result.stderr.split())
    assert content(root) == before
    assert read_run(tmp_path / "moved").status == "training"


@pytest.mark.parametrize("command", ["fit", "resume"])
def test_a_run_whose_directory_is_replaced_after_its_last_step_is_not_called_finished(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begin, before = ready(tmp_path, command, 2, monkeypatch)
    root = tmp_path / "run"

    def late(*arguments: Any, **named: Any) -> pv.Fit:
        done = pv.fit(*arguments, **named)
        replaced(root)
        return done

    monkeypatch.setattr(training, "fit", late)
    result = call(*begin)
    assert result.exit_code == 1
    assert "the directory was moved or replaced" in " ".join(result.stderr.split())
    assert content(root) == before


def test_a_command_stays_where_its_link_led_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "run").symlink_to("own")
    after_epoch(1, lambda: led_elsewhere(tmp_path / "run"), monkeypatch)
    succeed("fit", *SMALL_VAE, "--epochs", "2", "--eval-samples", "0", "--run-dir", tmp_path / "run")
    assert read_run(tmp_path / "own").status == "finished"
    assert not list((tmp_path / "other").iterdir())


def _interrupt() -> None:
    raise KeyboardInterrupt
