"""Evaluations of a run: none is overwritten, lost, or put together from two."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ppl_vae.cli.comparison import _Recorded
from ppl_vae.errors import DataError, LockedError, StorageError
from ppl_vae.evaluation import ranking
from ppl_vae.rundir import (
    RunDirectory,
    described_estimate,
    outdate_evaluation,
    read_arrays,
    read_evaluation,
    write_bounds,
    write_evaluation,
)
from ppl_vae.rundir import evaluations as module
from ppl_vae.storage import EVALUATION_LOCK, LOCK, files, locked
from tests.evaluations import bounded, bounds, evaluated, evaluation, result
from tests.faults import KILLED, Fail, Kill, count, fault, forked
from tests.pairs import ModuleVAE
from tests.resuming import binary, run

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def pairs(root: Path) -> dict[str, tuple[float, float]]:
    """The mean that a record tells and the one of its arrays, by name, of what is read without an error."""
    found = {}
    for path in root.glob("evaluation*.json"):
        folder = root / "seen" / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in (".json", ".npz"):
            (folder / f"evaluation{suffix}").unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                (folder / f"evaluation{suffix}").write_bytes(path.with_suffix(suffix).read_bytes())
        with suppress(DataError):
            found[path.stem] = read_evaluation(folder).mean, float(read_arrays(folder, ["value"])[0][0])
    return found


def test_evaluations_by_other_settings_are_all_kept(tmp_path: Path):
    for number, temperatures in enumerate((200, 1000, 2000, 4000)):
        evaluated(tmp_path, f"{temperatures} temperatures", -number)
    evaluated(tmp_path, "4000 temperatures", -9.0)
    assert outdate_evaluation(tmp_path, 7) == [tmp_path / "evaluation-ais-K10-N3-seed0-step7.json"]
    assert pairs(tmp_path) == {
        "evaluation-ais-K10-N3-seed0": (0.0, 0.0),
        "evaluation-ais-K10-N3-seed0-2": (-1.0, -1.0),
        "evaluation-ais-K10-N3-seed0-3": (-2.0, -2.0),
        "evaluation-ais-K10-N3-seed0-step7": (-9.0, -9.0),
    }
    assert outdate_evaluation(tmp_path, 7) == []


def test_bounds_of_parameters_that_a_run_goes_on_from_are_not_those_of_the_run(tmp_path: Path):
    bounded(tmp_path)
    found = [(tmp_path / f"bounds{suffix}").read_bytes() for suffix in (".json", ".npz")]
    assert outdate_evaluation(tmp_path, 7) == [tmp_path / "bounds-step7.json"]
    assert sorted(files.listed(tmp_path)) == ["bounds-step7.json", "bounds-step7.npz"]
    assert [(tmp_path / f"bounds-step7{suffix}").read_bytes() for suffix in (".json", ".npz")] == found


def test_what_is_found_of_parameters_that_a_run_has_left_behind_is_not_the_runs(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.write_parameters(ModuleVAE())
    was = run.parameters_sha256()
    write_evaluation(tmp_path, evaluation(parameters_sha256=was), result())
    assert read_evaluation(tmp_path).parameters_sha256 == was
    run.write_parameters(ModuleVAE())
    with pytest.raises(DataError, match="expected an evaluation of the parameters of the run, found one of others"):
        read_evaluation(tmp_path)
    evaluated(tmp_path, mean=-2.0)  # of the run
    for leave in (lambda: None, run.remove_parameters):
        leave()
        with pytest.raises(
            DataError, match=r"the training has gone on .* kept in evaluation-ais-K10-N3-seed0-of-other"
        ):
            write_evaluation(tmp_path, evaluation(mean=-1.0, parameters_sha256=was), result(-1.0))
        with pytest.raises(DataError, match=r"kept in bounds-of-other-parameters"):
            write_bounds(tmp_path, bounds(parameters_sha256=was), np.zeros(3), np.ones(3))
    assert pairs(tmp_path) == {
        "evaluation": (-2.0, -2.0),
        "evaluation-ais-K10-N3-seed0": (-1.5, -1.5),  # of the first parameters
        "evaluation-ais-K10-N3-seed0-of-other-parameters": (-1.0, -1.0),
        "evaluation-ais-K10-N3-seed0-of-other-parameters-2": (-1.0, -1.0),
    }
    assert not (tmp_path / "bounds.json").exists()


def test_arrays_of_an_earlier_version_are_not_called_exact(tmp_path: Path):
    evaluated(tmp_path)
    value, exact = read_arrays(tmp_path, ["value", "exact"])
    assert exact.tolist() == [False] * 3 == (value > 0).tolist()


def test_what_has_rounded_is_kept_and_wins_no_comparison(tmp_path: Path):
    """Such an estimate may be too high by any amount."""
    found = result(-1.0)
    found.rounded, found.trusted = np.ones(3, dtype=bool), np.zeros(3, dtype=bool)
    write_evaluation(tmp_path, evaluation(mean=-1.0), found)
    kept = _Recorded(*read_arrays(tmp_path, _Recorded._fields))
    assert kept.rounded.all()
    sound = kept._replace(value=np.full(3, -1.5), trusted=np.ones(3, dtype=bool), rounded=np.zeros(3, dtype=bool))
    assert ranking._credited(kept, sound, 0.0).tolist() == [0.0] * 3


def test_an_evaluation_with_an_impossible_draw_is_kept(tmp_path: Path):
    """Its weights are averaged, among which a zero counts; its ELBO is minus infinity, for which JSON has no word."""
    found = SimpleNamespace(
        **vars(result(-1.0)), elbo=np.array([-1.0, -np.inf, -1.0]), num_dimensions=4, share_untrusted=0.0, seconds=1.0
    )
    record = described_estimate(found, (torch.zeros(3, 4),), "data", "density", 0)
    write_evaluation(tmp_path, record, found)
    assert read_evaluation(tmp_path).elbo is None
    assert read_arrays(tmp_path, ["elbo"])[0].tolist() == [-1.0, -np.inf, -1.0]


def test_more_effective_samples_than_there_are_samples_are_no_record():
    """They were shown by `compare` as they stood in a forged one."""
    assert evaluation(num_samples=50, ess=50.00001).ess > 50
    with pytest.raises(DataError, match=r"ess: expected a number from 0 to 50.*, found 51"):
        evaluation(num_samples=50, ess=51.0)
    assert evaluation(num_samples=None, ess=51.0).ess == 51


def test_a_record_that_no_file_can_hold_is_refused_before_anything_is_written(tmp_path: Path):
    evaluated(tmp_path, mean=-1.0)
    before = files.listed(tmp_path)
    for settings in ("the guide as proposal", "another proposal"):
        with pytest.raises(StorageError, match="mean: expected finite numbers"):
            evaluated(tmp_path, settings, -np.inf)
        assert files.listed(tmp_path) == before
    assert pairs(tmp_path) == {"evaluation": (-1.0, -1.0)}


@pytest.mark.parametrize("act", ["write", "write the same", "outdate"])
def test_a_kill_or_a_refusal_at_any_call_loses_no_earlier_evaluation(act: str, fast_path: Path):
    old, new = (-1.0, -1.0), (-2.0, -2.0)

    def work(root: Path) -> None:
        if act == "outdate":
            outdate_evaluation(root, 7)
        else:
            evaluated(root, "new" if act == "write" else "old", new[0])

    def fresh(name: str) -> Path:
        (fast_path / name).mkdir()
        evaluated(fast_path / name, "old", old[0])
        return fast_path / name

    def assert_kept(root: Path, when: str) -> None:
        found = pairs(root)
        replaced = act == "write the same" and found.get("evaluation") == new
        assert replaced or old in found.values(), when
        assert {*found.values()} <= {old, new}, when

    root = fresh("all")
    total = count(lambda: work(root))
    assert total > 20
    for at in range(total):
        root = fresh(f"killed-{at}")
        with fault(Kill(at)):
            assert forked(lambda root=root: work(root)) == KILLED
        assert_kept(root, f"killed at call {at} of {total}")
        assert no_debris_after_the_next(root)
        root = fresh(f"refused-{at}")
        with fault(Fail(at, errno.ENOSPC, forever=True)), suppress(StorageError):
            work(root)
        assert_kept(root, f"refused at call {at} of {total}")


def no_debris_after_the_next(root: Path) -> bool:
    evaluated(root, "next", -3.0)
    return not [name for name in files.listed(root) if files.is_debris(name)]


def test_an_evaluation_removes_debris_of_evaluations_alone(tmp_path: Path):
    for name in ("evaluation.npz", "bounds.json", "history.jsonl"):
        files.temporary(tmp_path / name).touch()
    evaluated(tmp_path)
    (left,) = [name for name in files.listed(tmp_path) if files.is_debris(name)]
    assert left.endswith("-history.jsonl")


# Processes at the same time


@pytest.mark.parametrize("resume", ["auto", False])
def test_a_fit_that_starts_leaves_an_evaluation_that_is_being_written(resume: str | bool, tmp_path: Path):
    root = tmp_path / "run"
    root.mkdir()

    def meanwhile(operation: Callable[..., Any], *arguments: Any) -> Any:
        if operation is os.rename and str(arguments[1]) == str(root / "evaluation.npz"):
            run(ModuleVAE, binary, {"epochs": 1}, run_dir=root, resume=resume)
        return operation(*arguments)

    with fault(meanwhile):
        evaluated(root)
    assert (root / "config.json").is_file()
    assert [*pairs(root)] == ["evaluation"]


def test_evaluations_of_two_processes_are_pairs(fast_path: Path):
    """Calls that take a moment each, so that those of the two mix."""

    def slow(operation: Callable[..., Any], *arguments: Any) -> Any:
        time.sleep(0.001)
        return operation(*arguments)

    for trial in range(3):
        root, children = fast_path / str(trial), []
        root.mkdir()
        for means in ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)):
            child = os.fork()
            if child == 0:
                with suppress(BaseException), fault(slow):
                    for mean in means:
                        evaluated(root, f"settings {mean}", mean)
                    os._exit(0)
                os._exit(1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        assert sorted(pairs(root).values()) == [(mean, mean) for mean in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
        assert not (root / EVALUATION_LOCK).exists()


def test_the_figure_of_an_evaluation_is_drawn_before_another_one_is_written(tmp_path: Path):
    seen = []
    write_evaluation(tmp_path, evaluation(), result(), lambda: seen.append((tmp_path / EVALUATION_LOCK).exists()))
    assert seen == [True]


def test_an_evaluation_waits_for_another_one_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with locked(tmp_path):  # training goes on meanwhile
        evaluated(tmp_path)
        assert (tmp_path / LOCK).exists()
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    with locked(tmp_path, EVALUATION_LOCK), pytest.raises(LockedError, match=f"found process {os.getpid()} at work"):
        evaluated(tmp_path)
    with locked(tmp_path, EVALUATION_LOCK), pytest.raises(LockedError):
        outdate_evaluation(tmp_path, 1)


def test_the_figure_of_an_evaluation_goes_with_it(tmp_path: Path):
    (figures := tmp_path / "figures").mkdir()
    for name in ("log-likelihood.png", "samples.png"):
        (figures / name).touch()
    evaluated(tmp_path, "1000 temperatures")
    outdate_evaluation(tmp_path, 7)
    assert files.listed(figures) == ["samples.png"]


def test_debris_among_figures_goes_and_none_behind_a_link(tmp_path: Path):
    (run := tmp_path / "run").mkdir()
    (figures := tmp_path / "figures").mkdir()
    own, other = (files.temporary(figures / name).name for name in ("log-likelihood.png", "samples.png"))
    for name in (own, other):
        (figures / name).touch()
    (run / "figures").symlink_to(figures)
    evaluated(run, "1000 temperatures")
    assert files.listed(figures) == sorted([own, other])
    (run / "figures").unlink()
    figures.replace(run / "figures")
    evaluated(run, "2000 temperatures")
    assert files.listed(run / "figures") == [other]


def test_arrays_are_those_of_the_record_that_was_read(tmp_path: Path):
    """Another evaluation is written between the two."""
    evaluated(tmp_path, "1000 temperatures", -1.0)
    record = read_evaluation(tmp_path)
    evaluated(tmp_path, "2000 temperatures", -2.0)
    with pytest.raises(DataError, match=r"of evaluation\.json"):
        read_arrays(tmp_path, ["value"], record)
