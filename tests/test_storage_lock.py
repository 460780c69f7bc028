"""The lock of a run directory: one holder, said by its number, and never longer than it lives."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ppl_vae.errors import LockedError, StorageError
from ppl_vae.storage import EVALUATION_LOCK, LOCK, files, lent, lock, locked
from tests.faults import KILLED, Fail, Kill, count, fault, forked

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import sys, time
from pathlib import Path
from ppl_vae.storage import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def takes(folder: Path) -> bool:
    try:
        with locked(folder):
            return True
    except LockedError:
        return False


def test_the_second_holder_is_told_of_the_first(tmp_path: Path):
    with locked(tmp_path):
        with pytest.raises(LockedError, match=rf"{tmp_path}: expected .* found process {os.getpid()} at work"):
            locked(tmp_path).__enter__()
        assert not takes(tmp_path)
    assert takes(tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_process_holds_it_until_it_dies(tmp_path: Path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=f"found process {holder.pid} at work"):
            locked(tmp_path).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert takes(tmp_path)


def test_a_number_left_by_a_dead_process_means_nothing(tmp_path: Path):
    """Even if a living one has it by now: this process itself, or the first of the machine."""
    for number in (os.getpid(), 1):
        (tmp_path / LOCK).write_text(f"{number} {os.uname().nodename}")
        assert takes(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"), [("", "of unknown number"), ("x" * 999, "of unknown number"), ("7 elsewhere", "7 on elsewhere")]
)
def test_a_holder_that_has_not_signed_is_said_so(text: str, said: str, tmp_path: Path):
    with locked(tmp_path):
        (tmp_path / LOCK).write_text(text)
        with pytest.raises(LockedError, match=said):
            locked(tmp_path).__enter__()


def test_children_neither_hold_nor_release_it(tmp_path: Path):
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            time.sleep(100)
            os._exit(0)
        assert forked(lambda: os._exit(3 if takes(tmp_path) else 4)) == 4
        assert not takes(tmp_path)
    try:
        assert takes(tmp_path)  # though a child that was forked meanwhile lives on
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_child_that_outlives_the_holder_does_not_keep_it(tmp_path: Path):
    ours, theirs = os.pipe()
    holder = os.fork()
    if holder == 0:
        context = locked(tmp_path)
        context.__enter__()
        if os.fork() == 0:
            os.write(theirs, str(os.getpid()).encode())
        time.sleep(100)
        os._exit(0)
    child = int(os.read(ours, 20))
    assert not takes(tmp_path)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        assert takes(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(ours)
        os.close(theirs)


def test_a_child_that_leaves_the_context_of_its_parent_releases_nothing(tmp_path: Path):
    with locked(tmp_path):
        context = locked(tmp_path / "inner")
        (tmp_path / "inner").mkdir()
        context.__enter__()
        assert forked(lambda: context.__exit__(None, None, None)) == 0
        assert not takes(tmp_path / "inner")
        assert (tmp_path / "inner" / LOCK).exists()
        context.__exit__(None, None, None)


def test_the_lock_is_let_go_after_an_error(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    assert takes(tmp_path)
    assert not lock._held


def test_a_lock_that_is_lent_lets_one_in_and_no_other(tmp_path: Path):
    took = []
    with lent(tmp_path):
        with locked(tmp_path):
            assert not takes(tmp_path)
        assert takes(tmp_path)  # one after the other
        thread = threading.Thread(target=lambda: took.append(takes(tmp_path)))
        thread.start()
        thread.join()
        assert took == [False]
        assert forked(lambda: os._exit(3 if takes(tmp_path) else 4)) == 4
        (tmp_path / "inner").mkdir()
        with locked(tmp_path / "inner"):
            assert not takes(tmp_path / "inner")
    with locked(tmp_path):
        assert not takes(tmp_path)


def test_the_lock_of_evaluations_is_another_one(tmp_path: Path):
    with locked(tmp_path), locked(tmp_path, EVALUATION_LOCK), pytest.raises(LockedError):
        locked(tmp_path, EVALUATION_LOCK).__enter__()
    assert not list(tmp_path.iterdir())


def test_who_has_patience_waits_for_the_holder(tmp_path: Path):
    inside = threading.Event()

    def hold() -> None:
        with locked(tmp_path):
            inside.set()
            time.sleep(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    with locked(tmp_path, patience=30.0):
        assert not takes(tmp_path)
    thread.join()


def test_a_kill_at_any_call_leaves_a_lock_that_can_be_taken(fast_path: Path):
    total = count(lambda: takes(fast_path))
    assert total >= 6  # open, lock, empty, sign, unlink, close
    for at in range(total):
        with fault(Kill(at)):
            assert forked(lambda: takes(fast_path)) == KILLED
        assert takes(fast_path)


@pytest.mark.parametrize("forever", [False, True], ids=["once", "from-then-on"])
def test_a_refusal_at_any_call_is_a_typed_error_or_a_lock(forever: bool, fast_path: Path):
    opened = len(files.listed(Path("/proc/self/fd")))
    for at in range(count(lambda: takes(fast_path))):
        with fault(Fail(at, errno.ENOSPC, forever)), suppress(StorageError), locked(fast_path):
            pass
        assert takes(fast_path)
        assert not lock._held
        assert len(files.listed(Path("/proc/self/fd"))) == opened


def test_never_two_at_a_time(tmp_path: Path):
    """Many threads that take, leave and remove the file of the lock as fast as they can."""
    inside, most, entered = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, entered
        for _ in range(60):
            try:
                with locked(tmp_path):
                    with guard:
                        inside += 1
                        entered += 1
                        most = max(most, inside)
                    time.sleep(0)
                    with guard:
                        inside -= 1
            except LockedError:
                time.sleep(0)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert entered > 10


def test_a_lock_on_a_file_that_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its holder removes it and goes, and a third one makes it anew, after we have opened it and before we lock it."""
    take, tries = lock._take, []

    def late(file: int, path: Path) -> None:
        tries.append(file)
        if len(tries) == 1:
            path.unlink()
            path.touch()
        take(file, path)

    monkeypatch.setattr(lock, "_take", late)
    with locked(tmp_path):
        assert len(tries) == 2
        assert not takes(tmp_path)


def test_what_cannot_be_locked_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(StorageError, match=r"absent/\.lock: cannot be made"):
        locked(tmp_path / "absent").__enter__()
    for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("elsewhere")):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        make(folder / LOCK)
        with pytest.raises(StorageError):
            locked(folder).__enter__()
    assert not (tmp_path / "elsewhere").exists()

    def unsupported(*_: object) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with pytest.raises(StorageError, match=r"cannot be locked .*file system with flock"):
        locked(tmp_path).__enter__()


def _hard_link(path: Path) -> None:
    (path.parent / "precious").write_text("of somebody else")
    path.hardlink_to(path.parent / "precious")


@pytest.mark.parametrize(
    "make", [Path.mkdir, lambda path: path.symlink_to("elsewhere"), _hard_link], ids=["folder", "link", "hard link"]
)
def test_what_is_no_file_in_the_place_of_the_lock_is_said_to_be_none(make, tmp_path: Path):
    make(tmp_path / LOCK)
    with pytest.raises(
        StorageError, match=r"\.lock: expected a regular file of one name, found something else: remove it"
    ):
        takes(tmp_path)
    assert all(path.read_text() == "of somebody else" for path in tmp_path.glob("precious"))
