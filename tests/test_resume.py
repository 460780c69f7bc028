"""A fit that goes on from a checkpoint does, bit by bit, what the fit would have done that was not interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.errors import CheckpointError, EstimateError, LockedError, PplVaeError
from ppl_vae.rundir import DataSpec, PairSpec, RunDirectory, RunRecord, read_run, write_run
from ppl_vae.storage import locked, newest, steps, write
from ppl_vae.svi import loop, saving
from ppl_vae.svi.signals import Terminated, heard
from tests.pairs import ModuleVAE
from tests.resuming import CASES, Moody, binary, left, numbers, only, run, same

TESTS = Path(__file__).resolve().parent


@pytest.fixture
def every_step_kept(monkeypatch):
    monkeypatch.setattr(saving, "_KEPT", 1000)


def history(root: Path) -> list[dict]:
    """The lines of a history, but for the seconds."""
    return [
        json.loads(line) | {"seconds": 0.0, "sha256": ""} for line in (root / "history.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("name", CASES)
def test_resume_at_every_step_changes_no_bit(name: str, device: torch.device, tmp_path: Path, every_step_kept):
    make, x, options = CASES[name]
    options = options | {"device": device}
    whole = numbers(*run(make, x, options))
    saved = tmp_path / "saved"
    assert same(whole, numbers(*run(make, x, options, run_dir=saved, checkpoint_every=1)))  # saving changes nothing
    checkpoints, lines = sorted((saved / "checkpoints").iterdir()), history(saved)
    assert len(checkpoints) >= whole[2]
    assert len(lines) == len(whole[1])
    for checkpoint in checkpoints:
        root = only(checkpoint, tmp_path / checkpoint.name)
        assert same(whole, numbers(*run(make, x, options, seed=1, run_dir=root, resume=True))), checkpoint.name
        assert history(root) == lines


def test_an_epoch_that_a_checkpoint_found_at_its_last_step_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = numbers(*run(ModuleVAE, binary, {}))
    with monkeypatch.context() as patch:
        patch.setattr(saving.Saving, "after_last_step", lambda self, loop: None)  # killed after the last step
        run(ModuleVAE, binary, {}, run_dir=tmp_path / "run", checkpoint_every=9)
    assert newest(tmp_path / "run/checkpoints").plain["epoch"] == 2
    assert same(whole, numbers(*run(ModuleVAE, binary, {}, seed=1, run_dir=tmp_path / "run", resume=True)))
    assert newest(tmp_path / "run/checkpoints").plain["epoch"] == 3


def test_resume_of_programs_with_a_state_of_their_own(tmp_path: Path, every_step_kept):
    random.seed(1), np.random.seed(1)  # noqa: NPY002
    whole = numbers(*run(Moody, binary, {}, run_dir=tmp_path / "saved", checkpoint_every=1))
    for checkpoint in sorted((tmp_path / "saved" / "checkpoints").iterdir()):
        random.seed(5), np.random.seed(5)  # noqa: NPY002
        found = numbers(
            *run(Moody, binary, {}, seed=1, run_dir=only(checkpoint, tmp_path / checkpoint.name), resume=True)
        )
        assert same(whole, found), checkpoint.name


SCRIPT = """
import os, signal, sys, torch
import ppl_vae as pv
from ppl_vae.rng import seeded
from ppl_vae.rundir import RunDirectory
from ppl_vae.svi import loop, saving

def make(seed):
    with seeded(seed):
        decoder, encoder = pv.decoders.Bernoulli.mlp(2, [8], 12), pv.encoders.DiagonalNormal.mlp(12, [8], 2)
        return pv.VAE(pv.priors.StandardNormal(2), decoder, encoder)

signal.signal(signal.SIGINT, signal.default_int_handler)
root = sys.argv[1]
at, number, compile, resume = map(int, sys.argv[2:])
x = torch.rand(44, 12, generator=torch.Generator().manual_seed(1))
after = saving.Saving.after_step
def interrupted(self, loop):
    if loop.step == at:
        os.kill(os.getpid(), number)
    after(self, loop)
saving.Saving.after_step = interrupted
pair = make(int(resume))
where = {"run_dir": root, "resume": bool(resume), "compile": bool(compile), "progress": False}
fit = pv.fit(pair, x, epochs=3, batch_size=8, binarize="dynamic", seed=5, **where)
print(fit.steps, [float.hex(float(p.double().sum())) for p in pair.parameters()])
print([float.hex(e) for e in fit.history["elbo"]])
"""


def in_a_process(root: Path, at: int = 0, number: int = 0, compile: bool = False, resume: bool = False):
    arguments = [str(root), str(at), str(number), str(int(compile)), str(int(resume))]
    return subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("compile", "names"),
    [
        (False, ["buffers and dropout", "momentum and a schedule", "defaults on disk", "patience", "moody"]),
        pytest.param(True, ["importance weights", "clipped"], marks=pytest.mark.slow),
        pytest.param(False, [*CASES], marks=pytest.mark.slow),
    ],
)
def test_a_fresh_process_goes_on_to_the_same_bits(
    compile: bool, names: list[str], tmp_path: Path, every_step_kept: None
):
    whole = [left(tmp_path, compile, None, name) for name in names]
    command = [sys.executable, "-m", "tests.resuming", str(tmp_path), str(compile), "2,4", *names]
    paths = {"PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == whole + whole, done.stderr


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_signals_wait_for_the_step_and_a_fresh_process_goes_on(tmp_path: Path, compile: bool):
    whole = in_a_process(tmp_path / "whole", compile=compile)
    assert whole.returncode == 0, whole.stderr
    root = tmp_path / "stopped"
    for at, number, code in ((5, signal.SIGTERM, 143), (8, signal.SIGINT, 130)):
        stopped = in_a_process(root, at, number, compile, resume=root.exists())
        assert stopped.returncode in (code, -number), stopped.stderr
        assert steps(root / "checkpoints")[-1] == at
    resumed = in_a_process(root, compile=compile, resume=True)
    assert resumed.stdout == whole.stdout, resumed.stderr


@pytest.fixture
def interrupts():
    """SIGINT as a terminal gives it: jobs in the background of a script ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_leaves_at_once(interrupts):
    with heard() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        signals.received = None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


LATE = {
    "the last validation": (loop.Loop, "_validate", 3),
    "the line of the last epoch": (RunDirectory, "append_history", 3),
    "the last save": (saving, "captured", 1),
    "the end": (saving.Saving, "at_end", 1),
    "the parameters": (RunDirectory, "write_parameters", 1),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", LATE)
def test_a_signal_after_the_last_step_is_obeyed(where: str, number: int, tmp_path: Path, monkeypatch, interrupts):
    """The fit does not return as if nothing had been asked of it, and what it has done is saved."""
    owner, name, count = LATE[where]
    options = {"validation": binary[:5]}
    whole = numbers(*run(ModuleVAE, binary, options))
    act, calls = getattr(owner, name), []

    def struck(*arguments):
        calls.append(name)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return act(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, struck)
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Terminated):
            run(ModuleVAE, binary, options, run_dir=tmp_path / "run")
    assert len(calls) == count
    assert steps(tmp_path / "run/checkpoints") == [9]
    assert same(whole, numbers(*run(ModuleVAE, binary, options, seed=1, run_dir=tmp_path / "run", resume=True)))


def test_a_run_whose_end_was_not_waited_for_is_none_that_is_finished(tmp_path: Path, monkeypatch, interrupts):
    """It has no parameters, which a run that resumes would leave."""

    def struck(*_):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    write_run(tmp_path, RunRecord(("ppl-vae",), PairSpec("vae"), DataSpec("digits"), "0" * 64, "cpu", 3))
    monkeypatch.setattr(loop.Loop, "_restore_best", struck)
    with pytest.raises(KeyboardInterrupt):
        run(ModuleVAE, binary, {"validation": binary[:5]}, run_dir=tmp_path)
    assert read_run(tmp_path).status == "interrupted"
    assert not RunDirectory(tmp_path).has_parameters


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_that_fails_is_obeyed(number: int, tmp_path: Path, monkeypatch, interrupts):
    """Whoever asks a process to end waits for that, not for what its script does next."""

    class Struck(pv.ELBO):
        def evaluate(self, pair, batch, layout, beta):
            values = super().evaluate(pair, batch, layout, beta)
            os.kill(os.getpid(), number)
            return values._replace(loss=values.loss * float("nan"))

    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Terminated) as raised:
        run(ModuleVAE, binary, {"objective": Struck()}, run_dir=tmp_path / "run")
    assert isinstance(raised.value.__context__, EstimateError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_is_none_of_pythons_is_left_alone(monkeypatch, interrupts):
    """As where a program in C embeds Python and hears SIGTERM itself."""
    heard_now, before = signal.getsignal, signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda n: None if n == signal.SIGTERM else heard_now(n))
    with heard():
        assert heard_now(signal.SIGTERM) is before
        assert heard_now(signal.SIGINT) is not signal.default_int_handler


def test_what_is_ignored_stays_ignored(interrupts):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with heard() as signals:
        os.kill(os.getpid(), signal.SIGINT)
    assert signals.received is None


def test_a_damaged_checkpoint_is_skipped_and_said(tmp_path: Path):
    whole = numbers(*run(ModuleVAE, binary, {}))
    run(ModuleVAE, binary, {}, run_dir=tmp_path / "run", checkpoint_every=4)
    last = max((tmp_path / "run/checkpoints").iterdir())
    (last / "state.json").write_bytes(b"{" + (last / "state.json").read_bytes())
    with pytest.warns(UserWarning, match=r"skipped.*state\.json"):
        found = numbers(*run(ModuleVAE, binary, {}, seed=1, run_dir=tmp_path / "run", resume="auto"))
    assert same(whole, found)


def test_another_run_is_not_resumed(tmp_path: Path):
    run(ModuleVAE, binary, {}, run_dir=tmp_path / "run")
    for name, options, x in (
        ("seed", {"seed": 8}, binary),
        ("objective", {"objective": pv.ELBO(beta=2.0)}, binary),
        ("data", {}, 1 - binary),
    ):
        with pytest.raises(CheckpointError, match=rf"began with {name} = "):
            run(ModuleVAE, x, options, run_dir=tmp_path / "run", resume="auto")
    with pytest.raises(CheckpointError, match=r"began with self\.encoder\.2\.out_features = '4', found '6'"):
        run(lambda: ModuleVAE(full_covariance=True), binary, {}, run_dir=tmp_path / "run", resume="auto")
    with pytest.raises(PplVaeError, match="expected a new or empty directory"):
        run(ModuleVAE, binary, {}, run_dir=tmp_path / "run")


def test_seconds_go_on_from_those_of_the_checkpoint(tmp_path: Path):
    run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path / "run")
    found = newest(tmp_path / "run/checkpoints")
    write(tmp_path / "later/checkpoints", found.step, found.tensors, found.plain | {"seconds": 1000.0})
    _, fit = run(ModuleVAE, binary, {"epochs": 2}, seed=1, run_dir=tmp_path / "later", resume=True)
    assert fit.history["seconds"][0] < 1000.0 < fit.history["seconds"][1] <= fit.seconds < 2000.0


JUDGED = {"epochs": None, "validation": binary[:5], "learning_rate": 0.8, "patience": 2, "record_kl": True}


@pytest.mark.parametrize("pieces", [(4, 14), (1, 2, 3, 4, 5, 14), (4, 5, 6, 7, 8, 40), (7, 40)], ids=str)
def test_pieces_that_end_within_epochs_are_one_fit(pieces: tuple[int, ...], tmp_path: Path):
    """Neither patience, the best parameters nor the history know of the ends of pieces."""
    for steps_asked in pieces:
        options = JUDGED | {"steps": steps_asked}
        found = numbers(*run(ModuleVAE, binary, options, run_dir=tmp_path / "run", resume="auto"))
        assert same(found, numbers(*run(ModuleVAE, binary, options, run_dir=tmp_path / f"{steps_asked}")))
        assert history(tmp_path / "run") == history(tmp_path / f"{steps_asked}")


def test_an_unfinished_epoch_is_judged_and_is_none_for_patience(tmp_path: Path):
    def fit(steps_asked: int, **more):
        return run(ModuleVAE, binary, JUDGED | {"steps": steps_asked} | more, run_dir=tmp_path / "run", resume="auto")[
            1
        ]

    rising = fit(4, learning_rate=1e-3)
    assert [(record.epoch, record.step) for record in rising.history] == [(1, 3), (2, 4)]
    assert rising.best_step == 4
    assert newest(tmp_path / "run/checkpoints").plain["best"]["step"] == 3
    assert [record.step for record in fit(9, learning_rate=1e-3).history] == [3, 6, 9]
    falling = run(ModuleVAE, binary, JUDGED | {"steps": 4, "patience": 1, "learning_rate": 2.0})[1]
    assert (falling.best_step, falling.stopped_early) == (3, False)


def test_resume_says_what_is_missing(tmp_path: Path):
    with pytest.raises(CheckpointError, match="expected a checkpoint to resume from, found none"):
        run(ModuleVAE, binary, {}, run_dir=tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    for no_path in (b"run", 5):
        with pytest.raises(ValueError, match=f"run_dir: expected a path as text or a pathlib.Path, found {no_path!r}"):
            run(ModuleVAE, binary, {"epochs": 1}, run_dir=no_path)
    with pytest.raises(ValueError, match="resume: expected 'auto', True or False, found 'yes'"):
        run(ModuleVAE, binary, {}, run_dir=tmp_path / "run", resume="yes")
    with pytest.raises(ValueError, match="expected run_dir"):
        run(ModuleVAE, binary, {}, resume="auto")
    for every in (0, timedelta(0), 1.5):
        with pytest.raises(ValueError, match="checkpoint_every"):
            run(ModuleVAE, binary, {}, run_dir=tmp_path / "other", checkpoint_every=every)


def test_auto_begins_where_there_is_nothing_and_goes_on_for_longer(tmp_path: Path):
    run(ModuleVAE, binary, {"epochs": 2}, run_dir=tmp_path / "run", resume="auto")
    longer = numbers(*run(ModuleVAE, binary, {"epochs": 4}, seed=1, run_dir=tmp_path / "run", resume="auto"))
    assert same(longer, numbers(*run(ModuleVAE, binary, {"epochs": 4})))


def test_another_process_in_the_directory_is_named(tmp_path: Path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"), pytest.raises(LockedError, match=str(os.getpid())):
        run(ModuleVAE, binary, {}, run_dir=tmp_path / "run", resume="auto")


def test_other_threads_are_warned_of(tmp_path: Path):
    run(ModuleVAE, binary, {}, run_dir=tmp_path / "run")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.warns(UserWarning, match="not bit by bit.*threads"):
            run(ModuleVAE, binary, {}, run_dir=tmp_path / "run", resume="auto")
    finally:
        torch.set_num_threads(before)


def test_checkpoints_are_as_frequent_as_asked(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(saving, "_KEPT", 1000)
    run(ModuleVAE, binary, {}, run_dir=tmp_path / "steps", checkpoint_every=4)
    assert steps(tmp_path / "steps/checkpoints") == [4, 8, 9]
    run(ModuleVAE, binary, {}, run_dir=tmp_path / "time", checkpoint_every=timedelta(microseconds=1))
    assert steps(tmp_path / "time/checkpoints") == [*range(1, 10)]
    run(ModuleVAE, binary, {}, run_dir=tmp_path / "default")
    assert steps(tmp_path / "default/checkpoints") == [9]
