"""What is left of checkpoints when a process is killed, the power fails, or the disk refuses."""

from __future__ import annotations

import errno
import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import pytest

from ppl_vae import storage
from ppl_vae.errors import CheckpointError, StorageError
from ppl_vae.storage import files
from tests.faults import (
    KILLED,
    Disk,
    Fail,
    Kill,
    Recorder,
    count,
    fault,
    forked,
    holds,
    killed_at_random,
    lay_out,
    recovered,
    save,
    tensors_of,
)

# Processes are forked from one with threads that do nothing: Python 3.12 and later warn of that.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def folder(fast_path: Path) -> Path:
    """A folder of checkpoints that does not exist yet, on another file system than temporary files."""
    return fast_path / "checkpoints"


def test_the_folder_is_on_another_file_system_than_temporary_files(folder: Path, tmp_path: Path):
    if not Path("/dev/shm").is_dir():
        pytest.skip("no file system in memory")
    assert folder.parent.stat().st_dev != tmp_path.stat().st_dev


def test_a_disk_that_is_dead_makes_no_file(folder: Path):
    files.make_folder(folder)
    with fault(Fail(0, errno.EROFS, forever=True)):
        for _ in range(2):
            with pytest.raises(StorageError, match="cannot be written"):
                files.create(folder / "new", [b"x"])
            with pytest.raises(StorageError, match="cannot be added to"):
                files.append(folder / "line", "x")
    assert files.listed(folder) == []


def rotate(folder: Path, step: int) -> None:
    """A save as a run does it: the two newest are kept."""
    save(folder, step)
    storage.prune(folder, keep_last=2)


def prepared(folder: Path, steps: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for step in range(1, steps + 1):
        rotate(folder, step)


@pytest.mark.parametrize("steps", [0, 1, 4], ids=["first", "second", "rotation"])
def test_a_kill_at_any_call_loses_no_checkpoint(steps: int, folder: Path):
    prepared(folder, steps)
    total = count(lambda: rotate(folder, steps + 1))
    for at in range(total + 1):
        prepared(folder, steps)
        with fault(Kill(at)):
            assert forked(lambda: rotate(folder, steps + 1)) == (KILLED if at < total else 0)
        assert not recovered(folder, [steps, steps + 1]), f"killed at call {at} of {total}"


def test_a_kill_at_any_call_of_the_start_loses_no_checkpoint(folder: Path):
    def debris() -> None:
        prepared(folder, 2)
        for _ in range(2):
            part = files.temporary(folder / "x")
            part.mkdir()
            (part / "half").write_bytes(b"half")

    debris()
    total = count(lambda: storage.remove_debris(folder))
    for at in range(total):
        debris()
        with fault(Kill(at)):
            assert forked(lambda: storage.remove_debris(folder)) == KILLED
        assert not recovered(folder, [2]), f"killed at call {at}"


@pytest.mark.parametrize("steps", [0, 1, 4], ids=["first", "second", "rotation"])
def test_a_loss_of_power_at_any_call_loses_no_checkpoint(steps: int, folder: Path, seed: int):
    """Un-synced bytes are lost, cut or zero, un-synced names are there in any choice: nothing of it is ever seen."""
    chance, seen = random.Random(seed), set()
    prepared(folder, steps)
    disk, recorder, durable = Disk(folder.parent), Recorder(), {0: steps}
    with fault(recorder):
        for step in (steps + 1, steps + 2):
            save(folder, step)
            durable[len(recorder.calls)] = step
            storage.prune(folder, keep_last=2)
    for done, call in enumerate([None, *recorder.calls]):
        if call is not None:
            disk.apply(call)
        least = max(step for finished, step in durable.items() if finished <= done)
        for state in disk.states(64, chance):
            if (key := (least, repr(state))) in seen:
                continue
            seen.add(key)
            with tempfile.TemporaryDirectory(dir=folder.parent.parent) as name:
                lay_out(state, Path(name) / "disk")
                wrong = recovered(Path(name) / "disk" / "checkpoints", [least, least + 1])
                assert not wrong, f"power lost after call {done}, {call}: {wrong}"
    assert len(seen) > 30
    lay_out(next(disk.states(1, chance)), folder.parent / "end")
    assert holds(storage.newest(folder.parent / "end" / "checkpoints"))


CODES = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT]


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("forever", [False, True], ids=["once", "from-then-on"])
def test_a_refusal_at_any_call_is_a_typed_error_and_loses_nothing(code: int, forever: bool, folder: Path):
    prepared(folder, 3)
    total = count(lambda: rotate(folder, 4))
    for at in range(total):
        prepared(folder, 3)
        with fault(Fail(at, code, forever)), pytest.raises(StorageError) as error:
            rotate(folder, 4)
        assert str(folder) in str(error.value)
        assert not recovered(folder, [3, 4]), f"{errno.errorcode[code]} at call {at} of {total}"


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_a_refusal_while_reading_is_said_and_passes_nothing_over(code: int, folder: Path):
    """A checkpoint that cannot be read now may be good: whoever went on from the one before would give it up."""
    prepared(folder, 3)
    total = count(lambda: storage.newest(folder))
    kinds = set()
    for at in range(total):
        with fault(Fail(at, code)), pytest.raises(CheckpointError) as error:
            storage.newest(folder)
        assert os.strerror(code) in str(error.value)
        kinds.add(error.type)
    assert kinds == {CheckpointError, storage.UnreadableError}
    assert storage.newest(folder).step == 3


def test_a_refusal_after_the_rename_says_that_the_checkpoint_stands(folder: Path):
    prepared(folder, 2)
    said = set()
    for at in range(count(lambda: save(folder, 3))):
        prepared(folder, 2)
        with fault(Fail(at, errno.EIO)), pytest.raises(CheckpointError) as error:
            save(folder, 3)
        stands = storage.steps(folder)[-1] == 3
        assert ("the checkpoint is written and whole" in str(error.value)) == stands
        assert ("no checkpoint written" in str(error.value)) != stands
        said.add(stands)
    assert said == {True, False}


@pytest.mark.parametrize("work", ["replace", "append"])
def test_single_files_survive_kills_and_refusals(work: str, folder: Path):
    path = folder / "file"

    def act() -> None:
        if work == "replace":
            files.replace(path, [b"new ", b"content"])
        else:
            files.append(path, "line\n")

    def fresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        files.make_folder(folder)
        files.replace(path, [b"old\n"])

    allowed = {b"old\n", b"new content"} if work == "replace" else {b"old\n", b"old\nli", b"old\nline\n"}
    fresh()
    total = count(act)
    for at in range(total):
        fresh()
        with fault(Kill(at)):
            assert forked(act) == KILLED
        assert path.read_bytes() in allowed
        fresh()
        with fault(Fail(at, errno.ENOSPC)), pytest.raises(StorageError):
            act()
        assert path.read_bytes() in allowed
        assert files.listed(folder) == ["file"]


def test_the_disk_of_the_tests_knows_what_is_not_synced(folder: Path, seed: int):
    """The model itself, on a writer that forgets to sync: all that may be lost is lost in one of its states."""
    files.make_folder(folder)
    (folder / "old").write_bytes(b"old")
    disk, recorder = Disk(folder.parent), Recorder()
    with fault(recorder), fault(lambda operation, *arguments: recorder(operation, *arguments)):
        files.create(folder / "new", [b"12"])
        files.append(folder / "old", "er")
    calls = [call for call in recorder.calls if call.name != "fsync"]
    for call in calls:
        disk.apply(call)
    states = {tuple(sorted(state["checkpoints"].items())) for state in disk.states(10_000, random.Random(seed))}
    contents = {b"", b"12", b"1", b"\0\0"}, {b"old", b"older", b"olde", b"old\0\0"}
    assert {dict(state)["old"] for state in states} == contents[1]
    assert {dict(state).get("new") for state in states} == contents[0] | {None}


def seconds_of_a_save(folder: Path, num_bytes: int) -> float:
    """Median of seven."""
    times = []
    for step in range(7):
        start = time.monotonic()
        save(folder, step, num_bytes)
        times.append(time.monotonic() - start)
    return statistics.median(times)


def kill_writers(folder: Path, trials: int, chance: random.Random, num_bytes: int) -> tuple[int, list[str]]:
    """Kills processes that save without a pause; returns how many of them were in a save, and what went wrong.

    The moment is drawn from the time of a save, which begins with the first word of the process.
    """
    within, wrong, first, seconds = 0, [], 1, seconds_of_a_save(folder.with_name("timed"), num_bytes)
    for _ in range(trials):

        def work(say, first=first) -> None:
            for step in range(first, first + 10**6):
                say(f"begin {step}")
                save(folder, step, num_bytes)
                say(f"done {step}")
                storage.prune(folder, keep_last=2)

        said = killed_at_random(work, chance.uniform(0.0, seconds))
        done = max([int(line.split()[1]) for line in said if line.startswith("done")], default=first - 1)
        within += bool(said) and said[-1].startswith("begin")
        if found := recovered(folder, [done, done + 1], num_bytes):
            wrong.append(found)
        first = storage.newest(folder).step + 1 if storage.steps(folder) else 1
    return within, wrong


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_writers_killed_at_random_leave_a_checkpoint(where: str, folder: Path, tmp_path: Path, seed: int):
    within, wrong = kill_writers(folder if where == "memory" else tmp_path / "c", 100, random.Random(seed), 200_000)
    assert not wrong
    assert within >= 80  # kills that hit a save; the others hit the removal of old ones


@pytest.mark.slow
def test_a_thousand_writers_killed_at_random_leave_a_checkpoint(tmp_path: Path, seed: int):
    within, wrong = kill_writers(tmp_path / "c", 1000, random.Random(seed), 2_000_000)
    assert not wrong
    assert within >= 800


def test_tensors_of_a_step_are_its_own():
    assert not any(x.equal(y) for x, y in zip(tensors_of(1).values(), tensors_of(2).values(), strict=True))
