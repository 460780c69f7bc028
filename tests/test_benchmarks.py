"""The benchmark runs, its sides do the same work, and its arithmetic is right; no time is asserted."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

import benchmarks
import ppl_vae as pv
from benchmarks import timing
from benchmarks.cases import CASES
from benchmarks.evaluation import by_hand_log_likelihood
from benchmarks.memory import write_images
from benchmarks.mixture import Problem, ours, scikit_learn
from benchmarks.peer import NUMPYRO, PEERS_PYTHON, PYTHAE, Peer, start_peer
from benchmarks.report import verdict
from benchmarks.results import merged, read_records, to_record, write_records
from benchmarks.run import main
from benchmarks.setting import Setting
from benchmarks.timing import Case, Limit, Measured, Unavailable, alternate, marginal
from benchmarks.training import Task, trainers
from benchmarks.whole import BY_HAND, OURS, curve, time_of
from benchmarks.workload import by_hand_loss, images, make_vae, svi_programs

# torch.compile uses parts of torch that torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


# The others are the same code in another size, compile for minutes, or write files (test_feed.py has their memory).
QUICK = (
    "digits-auto",
    "evaluation",
    "gmm",
    "cost-k",
    "checkpoint",
    "checkpoint-run",
)
SLOW = tuple(name for name in CASES if name not in QUICK)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
@pytest.mark.filterwarnings("ignore:this fit runs uncompiled")
def test_a_quick_run_measures_a_case(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], interpreted: None):
    main(["--quick", "--rounds", "1", "--cases", name, "--output", str(tmp_path)])
    (record,) = read_records(tmp_path / "results.json")
    assert (record["name"], record["device"], record["quick"]) == (name, "cpu", True)
    assert record["sides"]
    for side in record["sides"].values():
        assert len(side["costs"]) == 1
        assert math.isfinite(side["ratio"]["median"])
    if record["floor"]:
        assert math.isfinite(record["sides"][record["floor"]]["costs"][0])  # a slope is negative by noise now and then
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    printed = " ".join(capsys.readouterr().out.split())
    assert all(label.split()[0] in printed for label in (*record["sides"], *record["missing"]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["fit-20", "evaluation"])
def test_a_quick_run_on_a_gpu(name: str, tmp_path: Path):
    main(["--quick", "--rounds", "1", "--cases", name, "--device", "cuda", "--output", str(tmp_path)])
    (record,) = read_records(tmp_path / "results.json")
    assert record["device"] == "cuda"
    assert record["environment"]["gpu"]


def test_cases_about_the_processor_are_skipped_on_a_gpu():
    with ExitStack() as stack:
        setting = Setting(True, torch.device("cuda"), stack)
        for name in ("gmm", "memory-k", "memory-map", "checkpoint", "checkpoint-run"):
            with pytest.raises(Unavailable):
                CASES[name](name, setting)


def test_every_case_that_was_measured_is_in_the_file_of_results():
    records = read_records(Path(benchmarks.__file__).parent / "results.json")
    assert {record["name"] for record in records} <= set(CASES)
    assert records == merged(records, [])
    assert not any(record["quick"] for record in records)


def test_a_case_measured_again_replaces_itself_alone(tmp_path: Path):
    def record(name: str, device: str, date: str):
        return {"name": name, "device": device, "date": date}

    path = tmp_path / "new" / "results.json"
    assert read_records(path) == []
    old = [record("gmm", "cpu", "1"), record("fit-20", "cpu", "1"), record("gmm", "cuda", "1")]
    write_records(path, merged(read_records(path), old))
    write_records(path, merged(read_records(path), [record("gmm", "cpu", "2")]))
    assert read_records(path) == [record("fit-20", "cpu", "1"), record("gmm", "cpu", "2"), record("gmm", "cuda", "1")]


def test_an_unknown_case_and_no_rounds_are_refused(capsys: pytest.CaptureFixture[str]):
    for arguments in (["--cases", "fit-64"], ["--rounds", "0"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert arguments[0] in capsys.readouterr().err


def test_sides_alternate_and_a_round_gives_a_ratio():
    calls: list[str] = []

    def side(label: str, times: list[float]):
        def measure() -> float:
            calls.append(label)
            return times.pop(0)

        return measure

    # The first time of each is the round that is thrown away.
    sides = {"a": side("a", [100.0, 1.0, 6.0, 4.0]), "b": side("b", [100.0, 2.0, 3.0, 4.0])}
    measured = alternate(Case("case", "Case", "step", sides, reference="b", floor="b"), rounds=3)
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert measured.cost("a") == (4.0, 1.0, 6.0)
    assert measured.ratio("a") == (1.0, 0.5, 2.0)


@pytest.mark.parametrize(
    ("side", "over", "ratio", "expected"), [("a", "b", 2.0, True), ("a", "b", 1.9, False), ("b", "a", 0.5, True)]
)
def test_a_limit_is_on_the_median_ratio_of_its_sides(side: str, over: str, ratio: float, expected: bool):
    limit = Limit(side, over, ratio)
    case = Case("case", "Case", "step", {"a": lambda: 0.0, "b": lambda: 0.0}, "b", "b", (limit,))
    assert Measured(case, {"a": (2.0, 4.0, 30.0), "b": (1.0, 2.0, 3.0)}).keeps(limit) is expected


def test_a_limit_may_be_on_a_side_itself_and_says_nothing_of_a_missing_one():
    alone, absent = Limit("a", None, 4.0), Limit("a", "c", 1.0)
    case = Case("case", "Case", "step", {"a": lambda: 0.0, "b": lambda: 0.0}, "b", limits=(alone, absent))
    measured = Measured(case, {"a": (2.0, 4.0, 30.0), "b": (1.0, 2.0, 3.0)}, {"c": "not here"})
    assert measured.keeps(alone) is True
    assert measured.keeps(absent) is None
    with ExitStack() as stack:
        record = to_record(measured, Setting(True, torch.device("cpu"), stack))
    assert verdict(record, record["limits"][0]) == "a: 4,000 [2,000, 30,000], limit 4,000 ms, kept"
    assert verdict(record, record["limits"][1]) == "a / c: not measured, limit 1"
    assert record["missing"] == {"c": "not here"}


def test_a_side_that_cannot_run_is_left_out_and_a_case_without_its_reference_is_not_measured():
    def absent() -> float:
        raise Unavailable("no such library")

    sides = {"a": lambda: 1.0, "b": absent}
    measured = alternate(Case("case", "Case", "step", sides, reference="a"), rounds=2)
    assert measured.costs == {"a": (1.0, 1.0)}
    assert measured.missing == {"b": "no such library"}
    with pytest.raises(Unavailable, match="b: no such library"):
        alternate(Case("case", "Case", "step", sides, reference="b"), rounds=2)


def test_a_case_may_want_fewer_rounds_and_no_warm_up():
    calls: list[int] = []
    case = Case("case", "Case", "run", {"a": lambda: float(calls.append(1) or 1)}, "a", max_rounds=2, warm_up=False)
    assert alternate(case, rounds=5).costs == {"a": (1.0, 1.0)}
    assert len(calls) == 2


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_slope_is_the_power_of_the_cost(power: float):
    sizes = {"1": 1.0, "10": 10.0, "40": 40.0}
    case = Case("case", "Case", "step", dict.fromkeys(sizes, lambda: 0.0), "1", sizes=sizes)
    found = Measured(case, {label: (3 * size**power, 5 * size**power) for label, size in sizes.items()}).slope()
    assert found == pytest.approx((power, power, power))
    assert Measured(case, dict.fromkeys(sizes, (-1.0,))).slope() is None
    assert Measured(replace(case, sizes={}), dict.fromkeys(sizes, (1.0,))).slope() is None


def test_the_time_to_a_target_is_that_of_the_first_epoch_that_reaches_it():
    seconds, elbos = [1.0, 2.0, 3.0], [-120.0, -108.0, -104.0]
    assert time_of(seconds, elbos, -108.5) == 2.0
    assert time_of(seconds, [], None) == 3.0
    with pytest.raises(RuntimeError, match="-104"):
        time_of(seconds, elbos, -100.0)


def test_sides_of_a_whole_run_learn_alike():
    x, test = images(600), images(100)
    runs = [curve(label, x, test, 4, torch.device("cpu"))[1] for label in (OURS, BY_HAND)]
    assert runs[0] == pytest.approx(runs[1], rel=0.03)  # other noise, other order: alike, not equal
    assert runs[0][-1] > runs[0][0]


ECHO = """
import json, sys
print(json.dumps({"ready": json.loads(sys.argv[1])}), flush=True)
for line in sys.stdin:
    if "end" in line:
        sys.exit(3)
    print(json.dumps({"heard": json.loads(line)}), flush=True)
"""


def test_a_peer_answers_until_it_ends(tmp_path: Path):
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    peer = Peer(Path(sys.executable), script, {"x": 1})
    assert peer.ready == {"ready": {"x": 1}}
    assert [peer.ask(train=n) for n in (3, 4)] == [{"heard": {"train": 3}}, {"heard": {"train": 4}}]
    with pytest.raises(RuntimeError, match="exit code 3"):
        peer.ask(end=0)
    peer.close()


def test_a_peer_that_is_not_there_is_unavailable(tmp_path: Path):
    with pytest.raises(Unavailable, match="make bench"):
        Peer(tmp_path / "bin" / "python", tmp_path / "x.py", {})
    (tmp_path / "broken.py").write_text("raise SystemExit(2)")
    with pytest.raises(Unavailable, match=r"broken.py.*exit code 2"):
        Peer(Path(sys.executable), tmp_path / "broken.py", {})


@pytest.mark.skipif(not PEERS_PYTHON.exists(), reason="no environment of the peers: `make bench` makes it")
def test_numpyro_learns_as_fit_does(tmp_path: Path):
    np.save(tmp_path / "x.npy", images(640).numpy())
    x = images(640)
    with ExitStack() as stack:
        peer = start_peer(NUMPYRO, stack, x, batch_size=64)
        losses = peer.ask(train=100)["loss"]
        elbo = peer.ask(evaluate=str(tmp_path / "x.npy"))["elbo"]
    history = pv.fit(make_vae(), x, epochs=10, batch_size=64, compile=False, progress=False).history
    last = sum(losses[-10:]) / 10
    assert losses[0] == pytest.approx(784 * math.log(2), rel=0.05)
    # Other noise, other order: alike, not equal.
    assert last == pytest.approx(-history[-1].elbo, rel=0.03)
    assert -elbo == pytest.approx(last, rel=0.03)


@pytest.mark.skipif(not PEERS_PYTHON.exists(), reason="no environment of the peers: `make bench` makes it")
def test_pythae_learns_as_fit_does():
    x = images(640)
    with ExitStack() as stack:
        try:
            peer = start_peer(PYTHAE, stack, x, batch_size=64)
        except Unavailable as why:
            pytest.skip(str(why))
        loss = peer.ask(train=100)["loss"]
    history = pv.fit(make_vae(), x, epochs=10, batch_size=64, compile=False, progress=False).history
    assert loss == pytest.approx(-sum(history["elbo"]) / len(history), rel=0.03)  # other noise, other order


def test_the_mapped_file_holds_digits_all_over(tmp_path: Path):
    path = tmp_path / "x.npy"
    write_images(path, 40 * 1024 * 784 * 4)
    x = np.load(path, mmap_mode="r", allow_pickle=False)
    assert x.shape == (40 * 1024, 784)
    written = [bool(x[start : start + 1024].any()) for start in range(0, len(x), 1024)]
    assert [i for i, has_digits in enumerate(written) if has_digits] == [0, 16, 32, 39]
    assert np.isin(x[:1024], (0.0, 1.0)).all()


def test_set_up_cancels_in_the_time_of_a_step(monkeypatch: pytest.MonkeyPatch):
    clock = 0.0

    def work(steps: int) -> None:
        nonlocal clock
        clock += 10.0 + 3.0 * steps

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock)
    assert marginal(work, few=2, many=7) == 3.0


@pytest.mark.slow
def test_every_trainer_trains_every_parameter_from_the_same_start():
    start = dict(make_vae().named_parameters())
    for label, train in trainers(Task(make_vae, images(40), 20, 1, 3)).items():
        for name, parameter in train(3).named_parameters():
            assert (parameter != start[name]).any(), f"{label} leaves {name} untrained"


def test_the_images_are_binary_and_differ():
    x = images(30)
    assert x.shape == (30, 784)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert len(x.unique(dim=0)) == 30


def test_the_loss_by_hand_is_that_of_the_programs(seed: int):
    vae, x = make_vae(), images(20)
    with pyro.get_param_store().scope():
        torch.manual_seed(seed)
        expected = TraceMeanField_ELBO().loss(*svi_programs(vae), x) / len(x)
        torch.manual_seed(seed)
        assert by_hand_loss(vae, x).item() == pytest.approx(expected, rel=1e-5)


def test_the_log_likelihood_by_hand_is_that_of_the_programs(seed: int):
    vae, x, num_samples = make_vae(), images(4), 7
    torch.manual_seed(seed)
    with torch.no_grad(), pyro.plate("particles", num_samples, dim=-2):
        guide = pyro.poutine.trace(vae.guide).get_trace(x)
        model = pyro.poutine.trace(pyro.poutine.replay(vae.model, guide)).get_trace(x)
    guide.compute_log_prob()
    model.compute_log_prob()
    log_weight = sum(model.nodes[name]["log_prob"] for name in ("x", "z")) - guide.nodes["z"]["log_prob"]
    torch.manual_seed(seed)
    found = by_hand_log_likelihood(vae, x, num_samples)
    torch.testing.assert_close(found, log_weight.logsumexp(0) - math.log(num_samples), rtol=1e-5, atol=0.0)


def test_both_sides_climb_the_same_likelihood():
    problem = Problem(num_data=300, dim=3, num_components=2)
    assert ours(problem, 4) == pytest.approx(scikit_learn(problem, 4), rel=1e-10)
    assert np.isfinite(problem.x).all()
