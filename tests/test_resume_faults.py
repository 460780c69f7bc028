"""A fit among faults: full disks, kills, signals and clocks."""

from __future__ import annotations

import errno
import os
import signal
import time
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch

import ppl_vae as pv
from ppl_vae.compile import CaptureError
from ppl_vae.errors import CheckpointError, EstimateError, PairError, StorageError
from ppl_vae.history import Record
from ppl_vae.pair import as_pair
from ppl_vae.rundir import RunDirectory
from ppl_vae.storage import newest, steps
from ppl_vae.svi import saving, stepper
from ppl_vae.svi.signals import Terminated
from tests.faults import KILLED, Fail, Kill, count, fault, forked
from tests.pairs import ModuleVAE
from tests.resuming import Rounding, binary, numbers, run, same
from tests.training import fresh

# Processes are forked from one with threads that do nothing: Python 3.12 and later warn of that.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

OFTEN = {"checkpoint_every": 2, "epochs": 2}


def names(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in root.rglob("*")]


def gone_on(root: Path) -> tuple:
    """What the next start leaves: from other parameters, if it has a checkpoint that says which."""
    seed = 1 if steps(root / "checkpoints") else 0
    return numbers(*run(ModuleVAE, binary, OFTEN, seed=seed, run_dir=root, resume="auto"))


class Broken(pv.ELBO):
    """No step of it is finite."""

    def evaluate(self, pair, batch, layout, beta):
        values = super().evaluate(pair, batch, layout, beta)
        return values._replace(loss=values.loss * float("nan"))


# Disks and kills


def test_a_disk_that_is_full_in_the_middle_of_a_fit_is_a_typed_error_and_loses_nothing(tmp_path: Path):
    """F3: at the configuration, the history, a checkpoint, the parameters; from then on nothing is written."""
    whole = numbers(*run(ModuleVAE, binary, {"epochs": 2}))
    total = count(lambda: run(ModuleVAE, binary, OFTEN, run_dir=tmp_path / "count"))
    letting_go = 3  # of the lock, at the end: whatever becomes of its file
    for at in range(3, total - letting_go, total // 6):
        root = tmp_path / f"{at}"
        with fault(Fail(at, errno.ENOSPC, forever=True)), pytest.raises(StorageError, match="No space left"):
            run(ModuleVAE, binary, OFTEN, run_dir=root, resume="auto")
        assert same(whole, gone_on(root)), at


@pytest.mark.parametrize("optimizer", [None, torch.optim.SGD])
def test_a_disk_without_room_for_temporary_files_is_a_typed_error(optimizer, monkeypatch: pytest.MonkeyPatch):
    """F3: torch loads its compiler when it makes an optimiser, and that asks for a folder."""

    def refuse(*arguments, **options):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(torch.optim.Optimizer, "__init__", refuse)
    with pytest.raises(StorageError, match=r"optimizer: .* No usable temporary directory found.* TMPDIR"):
        run(ModuleVAE, binary, {"optimizer": optimizer})


def test_a_bad_step_that_the_disk_refuses_is_a_typed_error(tmp_path: Path):
    options = OFTEN | {"objective": Broken(), "on_nonfinite": "skip"}
    with pytest.MonkeyPatch.context() as patch:
        write = saving.write

        def full(folder, *arguments):
            with fault(Fail(1, errno.ENOSPC, forever=True)):
                return write(folder, *arguments)

        patch.setattr(saving, "write", full)
        with pytest.raises(CheckpointError, match="No space left"):
            run(ModuleVAE, binary, options, run_dir=tmp_path)
    assert steps(tmp_path / "bad-steps") == []


def test_what_had_ended_a_fit_is_said_beside_what_the_disk_refuses_after_it(tmp_path: Path):
    """The step that was not finite was not named: nobody would have known why the fit had stopped."""

    def full(operation, *arguments):
        if operation is os.open and "parameters" in str(arguments[0]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return operation(*arguments)

    said = r"No space left.*; what had ended the fit: NotFiniteError: step 1: the loss"
    with fault(full), pytest.raises(StorageError, match=said):
        run(ModuleVAE, binary, {"objective": Broken()}, run_dir=tmp_path)
    with fault(full), pytest.raises(StorageError, match=r"No space left[^;]*$"):
        run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path / "whole")


def test_a_fit_that_was_killed_leaves_no_debris_after_the_next_start(tmp_path: Path):
    """F1: killed at a call of a save, of the history or of the parameters."""
    whole = numbers(*run(ModuleVAE, binary, {"epochs": 2}))
    total = count(lambda: run(ModuleVAE, binary, OFTEN, run_dir=tmp_path / "count"))
    debris = 0
    for at in range(4, total, total // 6):
        root = tmp_path / f"{at}"
        with fault(Kill(at)):
            assert forked(lambda root=root: run(ModuleVAE, binary, OFTEN, run_dir=root)) == KILLED
        debris += any(".tmp-" in name for name in names(root))
        (root / "bad-steps").mkdir()
        (root / "bad-steps" / ".tmp-0123456789abcdef-step").mkdir()
        assert same(whole, gone_on(root)), at
        assert [name for name in names(root) if ".tmp-" in name] == []
    assert debris


def test_a_checkpoint_that_cannot_be_read_now_is_not_given_up(tmp_path: Path):
    whole = numbers(*run(ModuleVAE, binary, OFTEN, run_dir=tmp_path, checkpoint_every=2))
    before = names(tmp_path)

    def refusing(operation, *arguments):
        if operation is os.open and str(arguments[0]).endswith("state.json"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return operation(*arguments)

    with fault(refusing), pytest.raises(CheckpointError, match=r"Too many open files.*may be good"):
        run(ModuleVAE, binary, OFTEN, seed=1, run_dir=tmp_path, resume=True)
    assert sorted(names(tmp_path)) == sorted(before)
    assert same(whole, numbers(*run(ModuleVAE, binary, OFTEN, seed=1, run_dir=tmp_path, resume=True)))


# Signals and clocks


def test_a_second_interrupt_of_a_fit_leaves_at_once_and_what_is_there_can_be_used(tmp_path: Path):
    """F4: the step that the first one waits for would take a minute."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            run(ModuleVAE, binary, {"schedule": slow}, run_dir=tmp_path, checkpoint_every=1)
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(1)
    wait_for(lambda: 5 in steps(tmp_path / "checkpoints"))
    time.sleep(0.2)
    begin = time.monotonic()
    for _ in range(2):
        os.kill(child, signal.SIGINT)
        time.sleep(0.2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert time.monotonic() - begin < 20
    assert newest(tmp_path / "checkpoints").step == 5
    assert not RunDirectory(tmp_path).has_parameters


def test_a_run_that_goes_on_and_is_killed_leaves_no_parameters_of_an_earlier_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They would pass for those of the moment; a run that is refused keeps them."""
    options, directory = {"epochs": 1}, RunDirectory(tmp_path)
    run(ModuleVAE, binary, options, run_dir=tmp_path)
    with pytest.raises(CheckpointError, match="began with"):
        run(ModuleVAE, binary, options | {"learning_rate": 0.5}, run_dir=tmp_path, resume=True)
    assert directory.has_parameters
    monkeypatch.setattr(saving.Saving, "close", lambda self, loop: None)  # no process does it that is killed
    run(ModuleVAE, binary, {"epochs": 2}, run_dir=tmp_path, resume=True)
    assert not directory.has_parameters


def test_a_run_that_fails_before_its_first_checkpoint_leaves_one_with_its_parameters(tmp_path: Path):
    append = RunDirectory.append_history

    def fail(self: RunDirectory, record: Record) -> None:
        if record.epoch == 2:
            raise EstimateError("lost")
        append(self, record)

    whole = numbers(*run(ModuleVAE, binary, {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "append_history", fail)
        with pytest.raises(EstimateError, match="lost"):
            run(ModuleVAE, binary, {}, run_dir=tmp_path)
    assert RunDirectory(tmp_path).has_parameters
    assert steps(tmp_path / "checkpoints") == [6]
    assert same(whole, numbers(*run(ModuleVAE, binary, {}, seed=1, run_dir=tmp_path, resume="auto")))
    assert len(RunDirectory(tmp_path).read_history()) == 3


def test_parameters_are_left_beside_a_checkpoint_or_not_at_all(tmp_path: Path):
    """Where a bad step that a GPU has yet to tell of keeps the first checkpoint from being written."""

    def fail(self: RunDirectory, record: Record) -> None:
        raise EstimateError("lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "append_history", fail)
        patch.setattr(stepper.Stepper, "is_settled", lambda self: False)
        with pytest.raises(EstimateError, match="lost"):
            run(ModuleVAE, binary, {}, run_dir=tmp_path)
    assert not RunDirectory(tmp_path).has_parameters
    assert same(
        *(numbers(*run(ModuleVAE, binary, {}, **more)) for more in ({}, {"run_dir": tmp_path, "resume": "auto"}))
    )


class Torn(torch.optim.SGD):
    """Updates one parameter of the third step, and something ends it."""

    def __init__(self, parameters, lr: float, end) -> None:
        super().__init__(parameters, lr)
        self.steps, self.end = 0, end

    def step(self, closure=None) -> None:
        self.steps += 1
        if self.steps == 3:
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1.0)
            self.end()
        super().step()


def broken_off(root: Path, end, kind: type[BaseException], every: int = 1) -> None:
    torn = partial(Torn, end=end)
    with pytest.raises(kind):
        run(ModuleVAE, binary, {"optimizer": torn}, run_dir=root, checkpoint_every=every)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_who_insists_within_an_update_is_left_no_parameters_but_the_checkpoint(first: int, tmp_path: Path):
    """F4: half of them would be those of the next step."""

    def insist() -> None:
        (tmp_path / "parameters.safetensors").touch()  # as an earlier process may have left it
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        broken_off(tmp_path, insist, KeyboardInterrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not RunDirectory(tmp_path).has_parameters
    assert newest(tmp_path / "checkpoints").step == 2


def test_a_sigterm_that_comes_twice_waits_for_the_step(tmp_path: Path):
    """F4: of a job on several machines each process has it from its manager and from torchrun."""

    def told_twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    broken_off(tmp_path, told_twice, Terminated, every=100)
    assert newest(tmp_path / "checkpoints").step == 3
    assert [name for name in names(tmp_path) if ".tmp-" in name] == []


def test_what_breaks_a_step_off_leaves_the_parameters_of_the_newest_checkpoint(tmp_path: Path):
    def fail() -> None:
        raise ZeroDivisionError

    broken_off(tmp_path / "kept", fail, PairError)
    checkpoint, pair = newest(tmp_path / "kept/checkpoints"), fresh(seed=1)
    RunDirectory(tmp_path / "kept").read_parameters(as_pair(pair))
    assert checkpoint.step == 2
    assert all(torch.equal(checkpoint.tensors[f"parameter/{n}"], p) for n, p in as_pair(pair).named_parameters())
    broken_off(tmp_path / "none", fail, PairError, every=100)
    assert not RunDirectory(tmp_path / "none").has_parameters


def test_a_second_interrupt_at_any_call_of_a_save_leaves_what_can_be_used(tmp_path: Path):
    """F4: the first one waits for the save, the second one ends it wherever it is."""
    whole, total = numbers(*run(ModuleVAE, binary, {"epochs": 2})), []
    with at_a_save(lambda do: lambda *call: total.append(1) or do(*call)):
        run(ModuleVAE, binary, OFTEN, run_dir=tmp_path / "count")
    for at in range(0, len(total), len(total) // 5):
        root, left = tmp_path / f"{at}", iter([None] * at)

        def interrupted(do, left=left):
            def act(*call):
                if next(left, left) is left:
                    raise KeyboardInterrupt
                return do(*call)

            return act

        with at_a_save(interrupted), pytest.raises(KeyboardInterrupt):
            run(ModuleVAE, binary, OFTEN, run_dir=root)
        assert same(whole, gone_on(root)), at
        assert [name for name in names(root) if ".tmp-" in name] == []


@contextmanager
def at_a_save(change):
    """Context in which the system calls of the second checkpoint are changed ones."""
    write, saves = saving.write, []

    def second(*arguments):
        saves.append(1)
        if len(saves) != 2:
            return write(*arguments)
        with fault(change(lambda operation, *more: operation(*more))):
            return write(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "write", second)
        yield


def test_a_signal_while_the_step_is_compiled_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """F4: SIGTERM in the middle of compiling; what is saved knows that it was compiled."""

    def struck(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return Rounding(*arguments)

    options = {"compile": True, "epochs": 2}
    monkeypatch.setattr(stepper, "compile_function", Rounding)
    whole = numbers(*run(ModuleVAE, binary, options))
    monkeypatch.setattr(stepper, "compile_function", struck)
    with pytest.raises(Terminated):
        run(ModuleVAE, binary, options, run_dir=tmp_path)
    monkeypatch.setattr(stepper, "compile_function", Rounding)
    assert steps(tmp_path / "checkpoints") == [1]
    assert same(whole, numbers(*run(ModuleVAE, binary, options, seed=1, run_dir=tmp_path, resume=True)))


def test_a_compiled_run_that_cannot_be_compiled_again_says_that_bits_differ(tmp_path: Path, monkeypatch):
    def refuses(*arguments):
        raise CaptureError("no compiler")

    monkeypatch.setattr(stepper, "compile_function", Rounding)
    run(ModuleVAE, binary, {"compile": True, "epochs": 1}, run_dir=tmp_path)
    monkeypatch.setattr(stepper, "compile_function", refuses)
    with pytest.warns(UserWarning, match="runs uncompiled, and goes on not bit by bit as it would have: no compiler"):
        run(ModuleVAE, binary, {"compile": True, "epochs": 2}, run_dir=tmp_path, resume=True)


def slow(step: int) -> float:
    if step == 5:
        time.sleep(60)
    return 1.0


def wait_for(there) -> None:
    for _ in range(600):
        if there():
            return
        time.sleep(0.1)
    raise AssertionError


@pytest.mark.parametrize("jump", [86400.0, -86400.0])
def test_clocks_that_jump_decide_nothing(jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """F19: each look at the clock of the wall finds another day."""
    looks = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + jump * next(looks))
    monkeypatch.setattr(saving, "_KEPT", 1000)
    run(ModuleVAE, binary, {}, run_dir=tmp_path / "hour", checkpoint_every=timedelta(hours=1))
    assert steps(tmp_path / "hour/checkpoints") == [9]
    _, fit = run(ModuleVAE, binary, {}, run_dir=tmp_path / "short", checkpoint_every=timedelta(microseconds=1))
    assert steps(tmp_path / "short/checkpoints") == [*range(1, 10)]
    seconds = [0.0, *fit.history["seconds"], 300.0]
    assert seconds == sorted(seconds)
