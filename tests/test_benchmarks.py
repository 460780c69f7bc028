"""The benchmark runs, its sides do the same work, and its arithmetic is right; no time is asserted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from benchmarks import timing
from benchmarks.evaluation import by_hand_log_likelihood
from benchmarks.mixture import Problem, ours, scikit_learn
from benchmarks.run import CASES, main
from benchmarks.timing import Case, Limit, Measured, alternate, marginal
from benchmarks.training import trainers
from benchmarks.workload import by_hand_loss, images, make_vae, svi_programs

# torch.compile uses parts of torch that torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def test_a_quick_run_leaves_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["--quick", "--rounds", "1", "--output", str(tmp_path)])
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [case["name"] for case in record["cases"]] + ["memory"] == list(CASES)
    assert record["quick"]
    for case in record["cases"]:
        for side in case["sides"].values():
            assert len(side["seconds"]) == 1
            assert math.isfinite(side["ratio"]["median"])
        assert case["sides"][case["floor"]]["seconds"][0] > 0
    assert record["memory"]["peak"] > record["memory"]["before"] > 0
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(label in printed for case in record["cases"] for label in case["sides"])


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
    assert measured.time("a") == (4.0, 1.0, 6.0)
    assert measured.ratio("a") == (1.0, 0.5, 2.0)


@pytest.mark.parametrize(
    ("side", "over", "ratio", "expected"), [("a", "b", 2.0, True), ("a", "b", 1.9, False), ("b", "a", 0.5, True)]
)
def test_a_limit_is_on_the_median_ratio_of_its_sides(side: str, over: str, ratio: float, expected: bool):
    limit = Limit(side, over, ratio)
    case = Case("case", "Case", "step", {"a": lambda: 0.0, "b": lambda: 0.0}, "b", "b", (limit,))
    assert Measured(case, {"a": (2.0, 4.0, 30.0), "b": (1.0, 2.0, 3.0)}).keeps(limit) is expected


def test_set_up_cancels_in_the_time_of_a_step(monkeypatch: pytest.MonkeyPatch):
    clock = 0.0

    def work(steps: int) -> None:
        nonlocal clock
        clock += 10.0 + 3.0 * steps

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock)
    assert marginal(work, few=2, many=7) == 3.0


def test_every_trainer_trains_every_parameter_from_the_same_start():
    start = dict(make_vae().named_parameters())
    for label, train in trainers(images(40), batch_size=20).items():
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
