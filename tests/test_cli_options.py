"""Runs on data of other forms, and options that decide where, how many and which."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae import data
from ppl_vae.cli.inputs import load_splits
from ppl_vae.cli.work import free_directory
from ppl_vae.errors import DataError
from ppl_vae.rundir import DataSpec, Evaluation, read_evaluation
from tests.commands import SMALL_VAE, TINY, USERS_PAIR, call, read, succeed

pytestmark = pytest.mark.usefixtures("blank_pictures")

# Data of other forms


def test_several_arrays_reach_the_programs_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("users_pair.py").write_text(USERS_PAIR)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 100)
    np.savez("labelled.npz", y=y, x=rng.normal(size=(100, 4)).astype(np.float32) + y[:, None])
    name, arrays = "users_pair.py:of_labels", ["--data", "labelled.npz", "--arrays", "x,y"]
    assert "Normal" in succeed("check", name, *arrays)
    succeed("fit", name, *arrays, *TINY, "--run-dir", "run")
    assert read("run" / Path("run.json"))["data"]["arrays"] == ["x", "y"]
    first = read_evaluation(Path("run"))
    succeed("evaluate", "run", "--pair", name, "--num-samples", "20", "--limit", "30")
    assert read_evaluation(Path("run")).mean == pytest.approx(first.mean, rel=1e-6)


def test_rows_of_several_arrays_stay_together(tmp_path: Path):
    x = np.arange(40.0).reshape(20, 2)
    np.savez(tmp_path / "xy.npz", y=np.arange(20), x=x)
    splits = load_splits(DataSpec(str(tmp_path / "xy.npz"), arrays=("x", "y")))
    for first, second in (splits.train, splits.validation, splits.test):
        assert torch.equal(first[:, 0], 2.0 * second)
        assert second.dtype == torch.int64


def test_whole_numbers_are_not_rounded_before_they_are_judged(tmp_path: Path):
    """Of a thousand million and some, float32 has one in 64."""
    some = np.arange(60).reshape(30, 2)
    for start, dtype in ((0, torch.float32), (10**9, torch.float64)):
        np.save(tmp_path / "x.npy", start + some)
        parts = load_splits(DataSpec(str(tmp_path / "x.npy")))
        found = torch.cat([part[0] for part in (parts.train, parts.validation, parts.test)])
        assert sorted(found.long().flatten().tolist()) == (start + some).flatten().tolist()
        assert found.dtype == dtype
    result = call("fit", "gaussian-vae", "--data", tmp_path / "x.npy", *TINY, "--run-dir", tmp_path / "run")
    assert (result.exit_code, "expected numbers that keep what varies in them in torch.float32" in result.stderr) == (
        1,
        True,
    )
    some[7, 1] = 2**53 + 1
    np.save(tmp_path / "x.npy", some)
    with pytest.raises(DataError, match=r"x\.npy, row 7: expected whole numbers from -2\^53 to 2\^53"):
        load_splits(DataSpec(str(tmp_path / "x.npy")))


def test_dequantised_digits_are_densities_of_the_levels():
    grey, splits = data.load("digits"), load_splits(DataSpec("digits", dequantize=17))
    for part, x in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        assert torch.equal((17 * x[0]).floor(), 16 * getattr(grey, part))
    assert splits.title == "digits, dequantised"


@pytest.mark.parametrize("recipe", ["gaussian-vae", "scaled-vae"])
def test_recipes_of_densities_train_on_dequantised_digits(recipe: str, tmp_path: Path):
    options = ["--dequantize", "17", "--latent-dim", "2", "--hidden", "8", *TINY]
    succeed("fit", recipe, *options, "--run-dir", tmp_path / "run")
    assert read(tmp_path / "run" / "run.json")["data"]["dequantize"] == 17
    succeed("evaluate", tmp_path / "run", "--num-samples", "5", "--limit", "20")


@pytest.mark.parametrize("recipe", ["levels-vae", "counts-vae"])
def test_recipes_of_whole_numbers_train_on_quantised_digits(recipe: str, tmp_path: Path):
    options = ["--quantize", "17", "--latent-dim", "2", "--hidden", "8", *TINY]
    assert "digits in 17 levels" in succeed("fit", recipe, *options, "--run-dir", tmp_path / "run")
    assert read(tmp_path / "run" / "run.json")["data"]["quantize"] == 17
    assert read(tmp_path / "run" / "evaluation.json")["kind"] == "probability"
    succeed("evaluate", tmp_path / "run", "--num-samples", "5", "--limit", "20")
    succeed("sample", tmp_path / "run", "--out", tmp_path / "drawn.npy", "--draws")
    drawn = np.load(tmp_path / "drawn.npy", allow_pickle=False)
    assert np.array_equal(drawn, drawn.round())
    assert drawn.max() > 1


def test_quantised_digits_are_their_levels_and_the_highest_is_white():
    grey, splits = data.load("digits"), load_splits(DataSpec("digits", quantize=17))
    for part, x in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        assert torch.equal(x[0], 16 * getattr(grey, part))
    assert splits.value_range == (0, 16)


def test_help_lists_the_recipes():
    from ppl_vae.recipes import RECIPES

    text = " ".join(succeed("fit", "--help").replace("│", " ").split())
    assert all(name in text for name in RECIPES)


# Options that decide where, how many and which


def test_sizes_of_the_evaluation_after_a_fit(run: Path):
    evaluation = read_evaluation(run)
    assert isinstance(evaluation, Evaluation)
    assert (evaluation.num_samples, evaluation.num_data) == (20, 30)


@pytest.mark.parametrize("command", ["fit", "evaluate", "sample", "check"])
def test_data_dir_is_where_data_are_sought(command: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sought = []

    def load(name: str, data_dir: str | None = None) -> data.ImageData:
        sought.append((name, data_dir))
        raise pv.DataError("no data today")

    monkeypatch.setattr(data, "load", load)
    target = copy if command in ("evaluate", "sample") else "vae"
    named = [] if command in ("evaluate", "sample") else ["--data", "mnist"]
    call(command, target, *named, "--data-dir", tmp_path / "elsewhere")
    assert sought == [("mnist" if named else "digits", str(tmp_path / "elsewhere"))]


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_device_is_asked_for(command: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def choose(device: str) -> torch.device:
        asked.append(device)
        return torch.device("cpu")

    monkeypatch.setattr("ppl_vae.cli.training.choose_device", choose)
    monkeypatch.setattr("ppl_vae.cli.evaluating.choose_device", choose)
    again = [copy, "--num-samples", "20"]
    anew = [*SMALL_VAE, "--run-dir", tmp_path / "new", "--eval-samples", "0"]
    for device in ("cpu", "auto"):
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        succeed(command, *(again if command == "evaluate" else anew), "--device", device)
    assert list(dict.fromkeys(asked)) == ["cpu", "auto"]


@pytest.mark.parametrize(("choice", "said"), [("yes", " compiled steps in "), ("no", " steps in ")])
def test_compiling_is_asked_for(choice: str, said: str, tmp_path: Path, interpreted: None):
    options = ["--epochs", "1", "--eval-samples", "0", "--compile", choice, "--run-dir", tmp_path / "run"]
    words = succeed("fit", *SMALL_VAE, *options)
    assert said in words
    assert ("compiled" in words) == (choice == "yes")


def test_epochs_are_lines_of_the_history(tmp_path: Path):
    options = ["--epochs", "3", "--eval-samples", "0", "--run-dir", tmp_path / "run"]
    succeed("fit", *SMALL_VAE, *options)
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 3


def test_samples_differ_by_seed_and_number(run: Path, tmp_path: Path):
    for name, options in {"a": [], "b": ["--seed", "0"], "c": ["--seed", "1"], "d": ["--n", "7"]}.items():
        succeed("sample", run, "--out", tmp_path / f"{name}.npy", *options)
    a, b, c, d = (np.load(tmp_path / f"{name}.npy", allow_pickle=False) for name in "abcd")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert (len(a), len(d)) == (64, 7)


def test_check_takes_so_many_rows():
    assert "data[5]" in succeed("check", *SMALL_VAE, "--rows", "5")


def test_demo_takes_directory_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    taken = []
    monkeypatch.setattr("ppl_vae.demo.run_demo", lambda root, settings: taken.append((root, settings.seed)))
    succeed("demo", "--out", tmp_path / "demo", "--seed", "3")
    assert taken == [(tmp_path / "demo", 3)]


def test_a_directory_is_named_by_what_may_be_part_of_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert free_directory("vae", "digits") == Path("runs/vae-digits-1")
    (tmp_path / "runs" / "vae-digits-1").mkdir(parents=True)
    assert free_directory("vae", "digits") == Path("runs/vae-digits-2")
    assert free_directory("my/pairs.py:make", "../my data.npy") == Path("runs/make-my-data-1")
    assert free_directory("../../x", "/etc/../nul\0\n.npy") == Path("runs/x-nul-1")
    assert len(free_directory("vae", "x" * 300).name) < 110
