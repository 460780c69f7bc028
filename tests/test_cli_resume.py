"""`ppl-vae resume`: a run that was stopped ends as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppl_vae as pv
from ppl_vae.cli import evaluating, training
from ppl_vae.cli.reopening import made_again
from ppl_vae.rundir import RunDirectory, read_evaluation, read_run
from ppl_vae.storage import steps
from tests.commands import SMALL_VAE, USERS_PAIR, call, read, rewritten, succeed

pytestmark = pytest.mark.usefixtures("blank_pictures")

TIMED = ("seconds", "verdict", "sha256")
OPTIONS = ["--epochs", "4", "--eval-samples", "20", "--eval-limit", "30", "--schedule", "cosine", "--beta-warmup", "2"]


def stopped_after(epoch: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Asks a fit to stop, as `kill` does, at the end of an epoch: the step after it is finished first.

    Returns what `run.json` says at the end of every epoch, of the training and of the parameters that are left.
    """
    append, seen = RunDirectory.append_history, []

    def terminate(self: RunDirectory, record: pv.Fit) -> None:
        append(self, record)
        seen.append((read_run(self.root).status, read_run(self.root).parameters_sha256))
        if record.epoch == epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunDirectory, "append_history", terminate)
    return seen


def stopped(root: Path, *arguments: str | Path) -> Path:
    """A run that was stopped after its second epoch."""
    with pytest.MonkeyPatch.context() as patch:
        stopped_after(2, patch)
        result = call("fit", *arguments, "--run-dir", root)
    assert result.exit_code == 143, result.output
    assert f"`ppl-vae resume {root}` goes on" in " ".join(result.stdout.split())
    return root


def numbers(root: Path) -> tuple[bytes, list[dict], dict]:
    """What training and evaluation have found, without times."""
    history = RunDirectory(root).read_history()
    evaluation = {k: v for k, v in read(root / "evaluation.json").items() if k not in TIMED}
    return (
        (root / "parameters.safetensors").read_bytes(),
        [{name: value for name, value in record.items() if name != "seconds"} for record in history],
        evaluation,
    )


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path):
    straight = tmp_path / "straight"
    succeed("fit", *SMALL_VAE, *OPTIONS, "--run-dir", straight)
    root = stopped(tmp_path / "run", *SMALL_VAE, *OPTIONS)
    assert (read_run(root).status, steps(root / "checkpoints")[-1]) == ("interrupted", 21)
    text = succeed("resume", root)
    assert f"{root}: checkpoints" in text
    assert numbers(root) == numbers(straight)
    record = read_run(root)
    assert (record.status, record.steps) == ("finished", 40)
    assert (root / "figures" / "learning-curves.png").is_file()
    assert record.training == read_run(straight).training
    again = call("resume", root)
    assert (again.exit_code, "expected a run that was interrupted, found one that is finished" in again.stderr) == (
        1,
        True,
    )


def test_an_evaluation_of_what_the_run_leaves_behind_is_set_aside(tmp_path: Path):
    root = stopped(tmp_path / "run", *SMALL_VAE, *OPTIONS)
    succeed("evaluate", root, "--num-samples", "20", "--limit", "30")
    before = read(root / "evaluation.json")
    kept = root / "evaluation-K20-N30-seed0-step21.json"
    with pytest.warns(UserWarning, match=f"{kept}: of the parameters that the run goes on from"):
        succeed("resume", root)
    assert read(kept) == before
    assert read(root / "evaluation.json")["mean"] > before["mean"]


def test_what_was_said_of_a_commands_run_that_a_fit_prolongs_is_said_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = tmp_path / "run"
    succeed("fit", *SMALL_VAE, "--epochs", "1", "--eval-samples", "20", "--eval-limit", "30", "--run-dir", root)
    before, seen = read(root / "evaluation.json"), stopped_after(99, monkeypatch)

    def longer(*arguments: Any, **options: Any) -> pv.Fit:
        return pv.fit(*arguments, **options | {"epochs": 3, "resume": "auto"})

    monkeypatch.setattr(training, "fit", longer)
    record = read_run(root)
    pair, splits = made_again(root, record, None, None)
    training._use_first(pair, record.pair, record.data, splits)
    with pytest.warns(UserWarning, match="evaluation-K20-N30-seed0-step10.json: of the parameters that the run goes"):
        training._fit(training._Run(root, record, record.training, pair, splits), "auto")
    found = read_run(root)
    assert (seen, found.status, found.steps, found.best_step) == ([("training", "")] * 2, "finished", 30, 30)
    assert found.seconds > record.seconds
    assert read(root / "evaluation-K20-N30-seed0-step10.json") == before
    assert not (root / "evaluation.json").exists()


def test_an_evaluation_that_ends_when_the_run_has_gone_on_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = stopped(tmp_path / "run", *SMALL_VAE, *OPTIONS)
    estimate = evaluating._estimate

    def slow(*arguments: Any) -> Any:
        found = estimate(*arguments)
        succeed("resume", root)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "_estimate", lambda *a: (patch.undo(), slow(*a))[1])
        result = call("evaluate", root, "--num-samples", "10", "--limit", "30")
    assert result.exit_code == 1
    assert "kept in evaluation-K10-N30-seed0-of-other-parameters.json" in result.stderr
    assert read_evaluation(root).num_samples == 20  # that of the finished run


def test_a_run_that_is_stopped_again_goes_on_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    straight = tmp_path / "straight"
    succeed("fit", *SMALL_VAE, *OPTIONS, "--run-dir", straight)
    root = stopped(tmp_path / "run", *SMALL_VAE, *OPTIONS)
    with monkeypatch.context() as patch:
        seen = stopped_after(3, patch)
        assert call("resume", root).exit_code == 143
    assert seen == [("training", "")]
    assert (read_run(root).status, steps(root / "checkpoints")[-1]) == ("interrupted", 31)
    succeed("resume", root)
    assert numbers(root) == numbers(straight)


def test_code_of_the_users_own_is_named_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("users_pair.py").write_text(USERS_PAIR)
    np.save("x.npy", np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32))
    root = stopped(Path("run"), "users_pair.py:own", "--data", "x.npy", "--epochs", "3", "--eval-samples", "0")
    refused = call("resume", root)
    assert refused.exit_code == 1
    assert "is your own code, which runs only if you name it: add --pair FILE.py:NAME" in refused.stderr
    assert read_run(root).status == "interrupted"
    succeed("resume", root, "--pair", "users_pair.py:own")
    assert read_run(root).status == "finished"
    assert len(RunDirectory(root).read_history()) == 3


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path, run: Path):
    root = tmp_path / "run"
    succeed("fit", *SMALL_VAE, "--epochs", "1", "--eval-samples", "20", "--eval-limit", "30", "--run-dir", root)
    for path in [
        *root.glob("evaluation.*"),
        root / "parameters.safetensors",
        *root.glob("figures/*"),
        *root.glob("checkpoints/*/*"),
    ]:
        path.unlink()
    for folder in [root / "figures", *root.glob("checkpoints/*")]:
        folder.rmdir()
    rewritten(root / "run.json", root / "run.json", status="training")
    with pytest.warns(UserWarning, match="which had got to step 10: it begins anew"):
        succeed("resume", root)
    assert numbers(root) == numbers(run)


def test_a_run_that_is_refused_is_left_as_it_was(tmp_path: Path):
    root = stopped(tmp_path / "run", *SMALL_VAE, *OPTIONS)
    succeed("evaluate", root, "--num-samples", "20", "--limit", "30")
    for state in root.glob("checkpoints/*/state.json"):
        state.write_bytes(b"{}")
    damaged = {path: path.read_bytes() for path in root.iterdir() if path.is_file()}
    result = call("resume", root)
    assert (result.exit_code, "expected a checkpoint that can be used" in result.stderr) == (1, True)
    assert {path: path.read_bytes() for path in root.iterdir() if path.is_file()} == damaged
    assert read_run(root).status == "interrupted"


def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path):
    root = stopped(tmp_path / "run", *SMALL_VAE, *OPTIONS)
    before = (root / "run.json").read_bytes()
    code = f"""
import pathlib, ppl_vae.storage
with ppl_vae.storage.locked(pathlib.Path({str(root)!r})):
    print("in", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        result = call("resume", root)
        holder.communicate("\n")
    assert result.exit_code == 1
    assert f"found process {holder.pid} at work in it" in result.stderr
    assert (root / "run.json").read_bytes() == before


def test_a_run_of_no_command_and_a_directory_of_none_are_refused(tmp_path: Path, run: Path):
    rewritten(run / "run.json", tmp_path / "run.json", training=None, status="interrupted")
    assert "expected a run of `ppl-vae fit`, found one of" in call("resume", tmp_path).stderr
    assert "found no run.json in it" in call("resume", tmp_path / "nowhere").stderr
