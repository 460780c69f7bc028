"""Several processes do what one does: the same rows, the same gradient, the same estimates, and none waits for ever."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.distributed import Group, alone, current, started
from ppl_vae.storage import steps
from ppl_vae.svi.joint import Joint, begin_together
from ppl_vae.svi.moving import Moving
from ppl_vae.svi.order import Order
from tests.commands import SMALL_VAE, read, succeed
from tests.processes import BATCH, ROWS, estimates, evaluations, without_noise
from tests.statistical import assert_close

TESTS = Path(__file__).resolve().parent
LIMIT = 240  # seconds, on a machine with other work to do
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(*command: object, **environment: str) -> subprocess.Popen[str]:
    paths = {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(part) for part in command],
        env=os.environ | paths | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> SimpleNamespace:
    """Waits, and ends the process by its id where it does not end by itself; torchrun then ends its own."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)
    return SimpleNamespace(code=process.returncode, out=out, err=err)


def begun(folder: Path, task: str, timeout: int, **environment: str) -> list[subprocess.Popen[str]]:
    """Two processes that no torchrun looks after."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, TESTS / "processes.py", folder, task, timeout]
    return [start(*command, **address, **environment, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]


def together(folder: Path, task: str, timeout: int, **environment: str) -> list[SimpleNamespace]:
    """What became of both."""
    return [finish(process) for process in begun(folder, task, timeout, **environment)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    done = finish(start(*TORCHRUN, TESTS / "processes.py", folder, "work", 120))
    assert done.code == 0, done.err
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


# Shares


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_shares_are_a_partition_in_order(count: int, size: int):
    things = list(range(count))
    shares = [things[Group(rank, size).share(count)] for rank in range(size)]
    assert [thing for share in shares for thing in share] == things
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert max(map(len, shares)) == len(shares[0])  # process 0 has a row whenever there is one


@pytest.mark.parametrize("size", [2, 3])
def test_the_batches_of_processes_are_those_of_one(size: int):
    def order(group: Group) -> Order:
        return Order(ROWS, BATCH, 0, group=group)

    whole, parts = order(Group()), [order(Group(rank, size)) for rank in range(size)]
    for step, batch in enumerate([*whole.epoch(0), *whole.epoch(1)]):
        shares = [part.at(step) for part in parts]
        assert torch.equal(torch.cat(shares), batch)
        assert whole.size(step) == len(batch)
        assert [part.size(step) for part in parts] == [len(batch)] * size
    assert all(torch.equal(a, b) for a, b in zip(parts[0].epoch(1), map(parts[0].at, range(4, 8)), strict=True))


# One process


def test_nothing_is_started_and_nothing_copied_for_one_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with started() as group:
        assert group == current() == Group(0, 1)
        assert not torch.distributed.is_initialized()
    x, device = torch.ones(3), torch.device("cpu")
    assert group.sum(x) is x
    assert group.texts("a", device) == ["a"]
    assert group.gather({"x": x}, device)[0]["x"] is x


# Two processes


def test_every_row_once_an_epoch(two: list[dict[str, np.ndarray]]):
    """13 rows in batches of 4: the last one has fewer rows than there are processes."""
    rows = [json.loads(str(found["rows"])) for found in two]
    assert [len(of_step) for of_step in rows[0]] == [2, 2, 2, 1]
    assert [len(of_step) for of_step in rows[1]] == [2, 2, 2]
    assert sorted(row for of_rank in rows for of_step in of_rank for row in of_step) == list(range(ROWS))


def test_the_fit_is_that_of_one_process_where_nothing_is_drawn(two: list[dict[str, np.ndarray]]):
    """Gradient descent with clipping and an uneven last batch: a gradient of the wrong weight would show."""
    parameters, history = without_noise()
    for found in two:
        for name, value in parameters.items():
            assert_close(found[f"deterministic {name}"], value, scale=1.0)
        assert_close(found["deterministic history"], history)


def test_processes_draw_noise_of_their_own(two: list[dict[str, np.ndarray]]):
    assert len({*two[0]["noise"], *two[1]["noise"]}) == len(two[0]["noise"]) + len(two[1]["noise"])


def test_a_fit_is_repeated_and_leaves_every_process_the_same_state(two: list[dict[str, np.ndarray]]):
    """Parameters and running means of a batch norm, bit by bit."""
    names = [name.removeprefix("first ") for name in two[0] if name.startswith("first ")]
    assert any("running_var" in name for name in names)
    for name in names:
        assert (two[0][f"first {name}"] == two[0][f"second {name}"]).all(), name
        assert (two[0][f"first {name}"] == two[1][f"first {name}"]).all(), name


@pytest.mark.parametrize("n", [600, 5])
def test_an_evaluation_is_that_of_one_process(two: list[dict[str, np.ndarray]], n: int):
    """Three blocks for two processes, and one."""
    ll = estimates(n)
    whole = {"value": ll.value, "khat": ll.khat, "zeros": ll.zero_weights, "drawn z": ll.posterior["z"]}
    for found in two:
        for name, value in (whole | {"drawn log_lik": ll.posterior_log_lik}).items():
            assert_close(found[f"{n} {name}"], value)


@pytest.mark.parametrize("n", [600, 5])
def test_all_that_goes_through_data_is_that_of_one_process(two: list[dict[str, np.ndarray]], n: int):
    """Two blocks or more for two processes, and one."""
    whole = evaluations(min(n, 100))
    assert "refined proposal" in str(whole["why"])  # as reasons are gathered, too
    for found in two:
        for name, value in whole.items():
            if value.dtype.kind == "U":
                assert str(found[f"{n} {name}"]) == str(value)
            else:
                assert_close(found[f"{n} {name}"], value, scale=1.0)


def test_one_process_may_evaluate_alone(two: list[dict[str, np.ndarray]]):
    assert_close(two[0]["alone"], estimates(5).value)


def test_errors_reach_every_process(two: list[dict[str, np.ndarray]]):
    first, second = ({name: str(found[name]) for name in found if found[name].dtype.kind == "U"} for found in two)
    assert first["not finite"] == second["not finite"] != ""
    assert "process 1, on its rows: site 'z'" in first["not finite"]
    assert first["other batches"] == second["other batches"]
    assert "same batch_size, found 4 in process 0 and 5 in process 1" in first["other batches"]
    assert first["bad data"] == f"process 1: {second['bad data']}"
    assert "row 0: expected finite numbers" in second["bad data"]
    assert first["bad evaluation"] == f"process 1: {second['bad evaluation']}"
    assert "row 599" in second["bad evaluation"]


def test_what_begins_late_is_seen_by_all(two: list[dict[str, np.ndarray]]):
    """Process 0 alone looks whether a checkpoint may be kept, and tells nobody: others are in the next step."""
    first, second = ({name: found[name] for name in found if name.startswith("late ")} for found in two)
    assert all(np.array_equal(first[name], second[name]) for name in first if "kept" not in name)
    assert int(first["late runs"]) == 8
    assert len({tuple(mean) for mean in first["late met"].tolist()}) == 4
    assert "step 2: loss and gradient were finite, but the update has made" in str(first["late update"])
    assert "step 7: loss, gradient and parameters are finite" in str(first["late moments"])
    assert (first["late update kept"], first["late moments kept"]) == (1, 3)


def test_nobody_waits_for_ever(tmp_path: Path):
    """Process 1 hangs: process 0 says so after the timeout of the group, here 3 seconds."""
    both = begun(tmp_path, "hang", 3)
    try:
        assert finish(both[0]).code == 0
        assert "cannot be reached" in str(np.load(tmp_path / "0.npz")["error"])
    finally:
        both[1].kill()
        both[1].communicate(timeout=60)


def test_a_fit_of_two_processes_survives_signals_and_kills(two: list[dict[str, np.ndarray]], tmp_path: Path):
    """F4, F5, F20: what is told to stop stops everywhere after the same step, a survivor does not wait, a relaunch
    resumes, and the numbers are those of a fit that nothing happened to."""
    stopped = together(tmp_path, "survive", 60, FAULT=f"1:4:{int(signal.SIGTERM)}")
    assert [done.code for done in stopped] == [143, 143], stopped[0].err
    assert steps(tmp_path / "run" / "checkpoints")[-1] == 6  # the signal came after the vote of the fifth step
    for victim, step in ((1, 9), (0, 12)):  # process 0 writes the checkpoints
        both = begun(tmp_path, "survive", 60, FAULT=f"{victim}:{step}:{int(signal.SIGKILL)}")
        assert finish(both[victim]).code == -signal.SIGKILL
        begin = time.monotonic()
        survivor = finish(both[1 - victim])
        assert time.monotonic() - begin < 30
        assert survivor.code == 1
        assert "GroupError: the other processes cannot be reached" in survivor.err
    assert [done.code for done in together(tmp_path, "survive", 60)] == [0, 0]
    for rank in range(2):
        found = dict(np.load(tmp_path / f"{rank}.npz"))
        assert all(np.array_equal(two[rank][f"straight {name}"], found[name]) for name in found)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no list of threads on this system")
def test_no_thread_outlives_the_group(tmp_path: Path):
    """One that did aborted the process at its end, now and then."""
    assert [done.code for done in together(tmp_path, "leave", 60)] == [0, 0]
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["[]", "[]"]


def test_the_command_of_two_processes_leaves_one_run_and_its_estimates_are_those_of_one(tmp_path: Path):
    run = tmp_path / "run"
    options = ["--epochs", "1", "--eval-samples", "1500", "--eval-limit", "300", "--run-dir", run]
    done = finish(start(*TORCHRUN, "-m", "ppl_vae", "fit", *SMALL_VAE, *options))
    assert done.code == 0, done.err
    assert done.out.count("steps in") == len(re.findall("log p.x. [=≥] ", done.out)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert read(run / "run.json")["status"] == "finished"
    assert read(run / "environment.json")["processes"] == 2
    assert len((run / "history.jsonl").read_text().splitlines()) == 1
    of_two = dict(np.load(run / "evaluation.npz"))
    succeed("evaluate", run, "--num-samples", "1500", "--limit", "300")
    of_one = dict(np.load(run / "evaluation.npz"))
    assert all(np.allclose(of_two[name], of_one[name], rtol=1e-6, atol=1e-6) for name in ("value", "ess"))


# What processes cannot share


def test_a_global_latent_without_a_stated_size_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Group, "agree", lambda *_: None)
    layout = SimpleNamespace(global_latents=("w",), full_size=None)
    rows, settings = torch.zeros(3), pv.svi.settings.FitSettings()
    with pytest.raises(pv.PairError, match=r"'w'.*state the size of the data set"):
        begin_together(Group(0, 2), torch.nn.Linear(1, 1), layout, settings, (rows, None), torch.device("cpu"))


def test_a_parameter_reached_only_later_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Group, "sum", lambda self, tensor: tensor)
    first, later = torch.ones(2), torch.ones(3)
    joint = Joint(Group(0, 2), [first, later], Moving(torch.nn.Module()), None)
    metrics = torch.zeros(6)
    joint(0.5, metrics, [first], [first])
    with pytest.raises(pv.PairError, match="did not reach in the first step"):
        joint(0.5, metrics, [first, later], [first, later])


def test_a_first_step_that_fails_in_all_processes_says_nothing_of_what_is_reached(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Group, "sum", lambda self, tensor: tensor)
    weight = torch.ones(2)
    joint = Joint(Group(0, 2), [weight], Moving(torch.nn.Module()), None)
    metrics, gradients = joint(1.0, torch.full((6,), torch.nan), [], [])
    assert bool(metrics[0].isnan())
    assert gradients == []
    _, (gradient,) = joint(1.0, torch.zeros(6), [weight], [weight])
    assert torch.equal(gradient, weight)


def test_strides_of_a_parameter_are_those_of_its_gradient(monkeypatch: pytest.MonkeyPatch):
    """Fused optimisers walk through memory: a gradient in another order would meet the wrong entries."""
    monkeypatch.setattr(Group, "sum", lambda self, tensor: tensor)
    weight = torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    joint = Joint(Group(0, 2), [weight], Moving(torch.nn.Module()), None)
    _, (gradient,) = joint(1.0, torch.zeros(6), [weight], [weight])
    assert gradient.stride() == weight.stride()
    assert torch.equal(gradient, weight)


def test_alone_is_a_group_of_one():
    with alone():
        assert current() == Group()
