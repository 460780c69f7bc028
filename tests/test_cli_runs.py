"""Runs that do not go straight: interrupted, failed, evaluated twice, on a part of the data, on several arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.cli.inputs import load_splits, random_rows
from ppl_vae.rundir import DataSpec, PairSpec, RunDirectory, fingerprint, read_evaluation, read_run, write_run
from ppl_vae.storage import steps
from tests.commands import SMALL_VAE, TINY, USERS_PAIR, call, read, succeed

pytestmark = pytest.mark.usefixtures("blank_pictures")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    append = RunDirectory.append_history

    def interrupt(self: RunDirectory, record: pv.Fit) -> None:
        append(self, record)
        if record.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "append_history", interrupt)
    root = tmp_path / "interrupted"
    result = call("fit", *SMALL_VAE, "--epochs", "9", "--run-dir", root)
    assert (result.exit_code, result.stderr) == (130, "ppl-vae: interrupted\n")
    assert f"ppl-vae evaluate {root}" in " ".join(result.stdout.split())
    return root


# Training that does not finish


def test_an_interrupted_run_can_be_evaluated_sampled_and_compared(interrupted: Path, run: Path, tmp_path: Path):
    record = read(interrupted / "run.json")
    assert (record["status"], record["steps"]) == ("interrupted", 20)
    result = call("evaluate", interrupted, "--num-samples", "20", "--limit", "30")
    assert result.exit_code == 0
    assert "interrupted after 20 steps" in result.stderr
    succeed("sample", interrupted, "--out", tmp_path / "samples.png")
    table = json.loads(call("compare", interrupted, run, "--format", "json").stdout)
    assert {row["model"] for row in table["rows"]} == {"interrupted (interrupted)", "first"}


def test_an_interrupted_run_says_which_parameters_it_has_left(interrupted: Path):
    said = read(interrupted / "run.json")["parameters_sha256"]
    assert said == hashlib.sha256((interrupted / "parameters.safetensors").read_bytes()).hexdigest()
    write_run(interrupted, dataclasses.replace(read_run(interrupted), parameters_sha256="0" * 64))
    assert f"`ppl-vae resume {interrupted}`, which writes" in call("evaluate", interrupted, "--limit", "6").stderr


def test_a_run_that_is_told_to_stop_is_interrupted_between_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    append = RunDirectory.append_history

    def terminate(self: RunDirectory, record: pv.Fit) -> None:
        append(self, record)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunDirectory, "append_history", terminate)
    root = tmp_path / "run"
    result = call("fit", *SMALL_VAE, "--epochs", "9", "--run-dir", root)
    assert result.exit_code == 143
    assert read_run(root).status == "interrupted"
    assert steps(root / "checkpoints") == [11]  # ten steps an epoch: the next one is finished first
    assert succeed("evaluate", root, "--num-samples", "20", "--limit", "30")


def test_a_failed_run_says_so_and_keeps_its_parameters(tmp_path: Path):
    root = tmp_path / "run"
    options = ["--latent-dim", "2", "--hidden", "4", "--learning-rate", "1e30", "--epochs", "3", "--run-dir", root]
    assert call("fit", "gaussian-vae", *options).exit_code == 1
    assert read_run(root).status == "failed"
    again = call("evaluate", root)
    assert again.exit_code == 1
    assert "the training failed" in again.stderr
    assert (root / "parameters.safetensors").is_file()


def test_a_description_stands_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(RunDirectory, "append_history", lambda self, _: seen.append(read_run(self.root).status))
    succeed("fit", *SMALL_VAE, "--epochs", "1", "--eval-samples", "0", "--run-dir", tmp_path / "run")
    assert seen == ["training"]


def test_a_run_directory_in_use_is_refused_before_the_data_are_read(run: Path):
    result = call("fit", *SMALL_VAE, "--data", "absent.npy", "--run-dir", run)
    assert "expected a new or empty directory" in result.stderr


# Evaluations


def test_an_interrupted_evaluation_at_the_end_says_that_the_training_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    root = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("ppl_vae.cli.evaluating.log_likelihood", interrupt)
        result = call("fit", *SMALL_VAE, *TINY, "--run-dir", root)
    assert (result.exit_code, result.stderr) == (130, "ppl-vae: interrupted\n")
    assert f"training is finished and saved; `ppl-vae evaluate {root}`" in " ".join(result.stdout.split())
    assert read_run(root).status == "finished"
    succeed("evaluate", root, "--num-samples", "10", "--limit", "10")


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_evaluation_that_is_told_to_stop_ends_with_a_sentence(
    number: int, code: int, said: str, copy: Path, monkeypatch: pytest.MonkeyPatch
):
    """F4: by the signals themselves; SIGTERM alone would end Python without a word."""
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}

    def struck(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr("ppl_vae.cli.evaluating.log_likelihood", struck)
    handlers = {n: signal.signal(n, h) for n, h in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, 0))}
    try:
        result = call("evaluate", copy, "--num-samples", "10", "--limit", "10")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for n, handler in handlers.items():
            signal.signal(n, handler)
    assert (result.exit_code, result.stderr) == (code, f"ppl-vae: {said}\n")
    assert f"not finished; `ppl-vae evaluate {copy}` with the same options begins anew" in " ".join(
        result.stdout.split()
    )
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_data_that_have_moved_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(100, 3)))
    small = ["--latent-dim", "2", "--hidden", "4", *TINY]
    succeed("fit", "gaussian-vae", "--data", "x.npy", *small, "--run-dir", "run")
    Path("x.npy").rename("y.npy")
    message = call("evaluate", "run").stderr
    assert f"run: expected the data of the run, {tmp_path}/x.npy, found no such file: bring it back" in message


def test_another_evaluation_keeps_the_one_before(copy: Path):
    first = read(copy / "evaluation.json")
    text = succeed("evaluate", copy, "--num-samples", "30", "--limit", "30")
    kept = copy / "evaluation-K20-N30-seed0.json"
    assert str(kept) in text
    assert read(kept) == first
    np.testing.assert_allclose(np.load(kept.with_suffix(".npz"), allow_pickle=False)["value"].mean(), first["mean"])
    assert read_evaluation(copy).num_samples == 30
    assert "before this one" not in succeed("evaluate", copy, "--num-samples", "30", "--limit", "30")
    assert len(list(copy.glob("evaluation*.json"))) == 2


def test_an_evaluation_of_another_version_is_kept_too(copy: Path):
    (copy / "evaluation.json").write_text("{}")
    assert "evaluation-earlier.json" in succeed("evaluate", copy, "--num-samples", "5", "--limit", "20")
    assert read(copy / "evaluation-earlier.json") == {}


def test_a_limit_takes_random_rows_always_the_same(copy: Path):
    (x,) = load_splits(DataSpec("digits", "dynamic")).test
    (some,), (more,) = random_rows((x,), 50), random_rows((x,), 100)
    assert torch.equal(some, random_rows((x,), 50)[0])
    assert not torch.equal(some, x[:50])
    assert {tuple(row) for row in some.tolist()} <= {tuple(row) for row in more.tolist()}
    assert random_rows((x,), 1000)[0] is random_rows((x,), None)[0] is x
    for seed in ("1", "2"):
        succeed("evaluate", copy, "--num-samples", "5", "--limit", "50", "--seed", seed)
        assert read_evaluation(copy).data_sha256 == fingerprint(some)


def test_random_rows_of_sorted_data_are_not_of_one_class():
    labels = torch.arange(1000) // 100
    assert len(random_rows((labels,), 100)[0].unique()) == 10


def test_the_share_of_the_untrusted_is_that_of_the_library(copy: Path):
    succeed("evaluate", copy, "--num-samples", "100", "--limit", "60")
    found, khat = read_evaluation(copy), np.load(copy / "evaluation.npz", allow_pickle=False)["khat"]
    assert found.khat_threshold == 0.5  # 1 - 1 / log10(100)
    assert found.share_untrusted >= (khat >= 0.5).mean()  # what samples cannot have seen adds to it


def test_data_with_samples_of_different_numbers_have_no_threshold_in_common(copy: Path, monkeypatch):
    drawn = []
    monkeypatch.setattr("ppl_vae.cli.pictures.figures.log_likelihood_histogram", lambda *args: drawn.append(args))
    monkeypatch.setattr("ppl_vae.cli.pictures.figures.save", lambda *_: None)
    succeed("evaluate", copy, "--num-samples", "2000", "--limit", "60", "--target-stderr", "0.1")
    assert read_evaluation(copy).khat_threshold is None
    ((_, trusted, _),) = drawn
    assert np.mean(~trusted) == read_evaluation(copy).share_untrusted


def test_one_sample_of_one_datum_has_no_error(copy: Path):
    succeed("evaluate", copy, "--num-samples", "1", "--limit", "1")
    found = read_evaluation(copy)
    assert (found.mean_stderr, found.population_stderr, found.khat_threshold) == (None, None, None)
    assert "≥" in succeed("compare", copy)


def test_a_command_prints_a_lower_bound_as_the_table_does(copy: Path):
    text = succeed("evaluate", copy, "--num-samples", "10", "--limit", "30")
    assert read_evaluation(copy).share_untrusted == 1
    assert "log p(x) ≥ -" in text
    assert "bits per dimension ≤ 0." in text
    assert "±" not in text
    assert "standard error" not in text


def test_compare_tells_samples_and_marks_lower_bounds(copy: Path, run: Path):
    succeed("evaluate", copy, "--num-samples", "10", "--limit", "30")
    text = call("compare", run, copy, "--format", "markdown").stdout
    assert "| K | ESS | untrusted |" in text
    assert "≥ -" in text
    assert "a lower bound" in text
    rows = json.loads(call("compare", run, copy, "--format", "json").stdout)["rows"]
    assert sorted(row["num_samples"] for row in rows) == [10, 20]
    assert [row["is_lower_bound"] for row in rows] == [True, True]
    assert "k-hat above min(1 - 1/log10 K, 0.7)" in succeed("compare", run)


def test_the_factory_of_the_readme_trains_and_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocks = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    (code,) = [block.partition("```")[0] for block in blocks if "def linear(size)" in block]
    monkeypatch.chdir(tmp_path)
    Path("pairs.py").write_text(code)
    np.save("my_array.npy", np.random.default_rng(0).normal(size=(100, 3)))
    succeed("check", "pairs.py:linear", "--data", "my_array.npy")
    succeed("fit", "pairs.py:linear", "--data", "my_array.npy", "--run-dir", "runs/mine", *TINY)
    succeed("evaluate", "runs/mine", "--pair", "pairs.py:linear", "--num-samples", "20")
    assert read_run(Path("runs/mine")).pair == PairSpec("pairs.py:linear", latent_dim=None, hidden=None)
    sampling = ["sample", "runs/mine", "--pair", "pairs.py:linear", "--n", "5", "--out", "drawn.npy"]
    assert "found Pair without one: let the factory return an object that has it" in call(*sampling).stderr
    drawing = "pair = pv.Pair(model, guide)\n    pair.sample = lambda n, seed: torch.zeros(n, size)\n    return pair"
    Path("pairs.py").write_text(code.replace("return pv.Pair(model, guide)", drawing))
    succeed(*sampling)
    assert np.load("drawn.npy", allow_pickle=False).shape == (5, 3)


def test_an_evaluation_of_data_of_which_masks_leave_different_numbers_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    whole, masked = "dist.Normal(decoder(z), 0.5).to_event(1)", "dist.Normal(decoder(z), 0.5).mask(x > -1).to_event(1)"
    Path("users_pair.py").write_text(USERS_PAIR.replace(whole, masked))
    np.save("my_array.npy", np.random.default_rng(0).normal(size=(100, 3)))
    options = ["--data", "my_array.npy", *TINY, "--run-dir", "run"]
    assert "no bits per dimension" in succeed("fit", "users_pair.py:own", *options)
    assert read_evaluation(Path("run")).event_size == 0
    assert "bits/dim" not in succeed("compare", "run")


def test_a_factory_that_goes_to_another_folder_does_not_take_the_run_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("elsewhere").mkdir()
    Path("users_pair.py").write_text(
        USERS_PAIR + "\nimport os\ndef gone():\n    os.chdir('elsewhere')\n    return own(3)\n"
    )
    np.save("my_array.npy", np.random.default_rng(0).normal(size=(100, 3)))
    name = "users_pair.py:gone"
    succeed("fit", name, "--data", "my_array.npy", "--run-dir", "run", *TINY)
    assert read_run(tmp_path / "run").data.name == str(tmp_path / "my_array.npy")
    assert not [*Path("elsewhere").iterdir()]
    succeed("evaluate", "run", "--pair", name, "--num-samples", "20")
