"""The command: what it leaves behind, what its options do, and one line for whatever goes wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae import data
from ppl_vae.cli import work
from ppl_vae.cli.inputs import load_splits, random_rows
from ppl_vae.cli.pairs import first_use, make_pair
from ppl_vae.rundir import DataSpec, PairSpec, RunDirectory
from tests.commands import SMALL_VAE, TINY, call, read, rewritten, succeed

pytestmark = pytest.mark.usefixtures("blank_pictures")


def test_help_shows_commands_options_and_defaults():
    assert all(name in succeed("--help") for name in ("fit", "evaluate", "sample", "check", "compare", "demo"))
    text = succeed("fit", "--help")
    assert all(words in text for words in ("--learning-rate", "[default: 0.001]", "dynamic|fixed|none", "Evaluation"))
    assert succeed("--version") == f"ppl-vae {pv.__version__}"


def test_a_run_explains_itself(run: Path):
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    files -= {name for name in files if name.startswith("checkpoints/step-")}
    pictures = ("learning-curves", "log-likelihood", "reconstructions", "samples")
    assert files == {
        "config.json",
        "environment.json",
        "run.json",
        "history.jsonl",
        "parameters.safetensors",
        "evaluation.json",
        "evaluation.npz",
        *(f"figures/{name}.png" for name in pictures),
    }
    record = read(run / "run.json")
    assert record["pair"] == {"name": "vae", "latent_dim": 2, "hidden": [8], "seed": 0}
    expected = {
        "name": "digits",
        "binarize": "dynamic",
        "data_dir": None,
        "arrays": [],
        "dequantize": None,
        "quantize": None,
    }
    assert record["data"] == expected
    assert (record["status"], record["steps"], record["device"]) == ("finished", 10, "cpu")
    assert isinstance(record["command"], list)
    assert record["num_parameters"] == 64 * 8 + 8 + 8 * 4 + 4 + 2 * 8 + 8 + 8 * 64 + 64


def test_its_evaluation_is_that_of_the_library_on_fixed_binary_test_data(run: Path):
    (x,) = random_rows((data.load("digits", binarize="fixed").test,), 30)
    vae = make_pair(PairSpec("vae", 2, (8,)), (data.load("digits").train,))
    RunDirectory(run).read_parameters(pv.Pair(vae.model, vae.guide))
    expected = pv.log_likelihood(vae, x, 20, progress=False)
    found = read(run / "evaluation.json")
    assert found["mean"] == pytest.approx(expected.mean, rel=1e-6)
    assert found["mean_stderr"] == pytest.approx(expected.mean_stderr, rel=1e-6)
    arrays = np.load(run / "evaluation.npz", allow_pickle=False)
    np.testing.assert_allclose(arrays["value"], expected.value, rtol=1e-6)
    assert set(arrays) == {
        "value",
        "stderr",
        "trusted",
        "ess",
        "khat",
        "elbo",
        "zero_weights",
        "exact",
        "rounded",
        "rounding",
    }


@pytest.mark.parametrize("command", ["fit", "evaluate", "sample", "check", "compare", "selftest"])
def test_help_is_what_was_written(command: str):
    """Between colons the terminal reads the name of a picture, as in package.module:factory: a factory ..."""
    assert not re.search("[\U0001f300-\U0001faff]", succeed(command, "--help"))


PIXELS = torch.nn.Sequential(
    torch.nn.Linear(2, 3),
    pv.autoregressive.PixelCNN((1, 4, 5), channels=4, num_layers=1, first_size=3, context_shape=3),
)
SHOWN = [
    (pv.decoders.Bernoulli.mlp(2, [3], 20), False, "E[x | z], z ~ p(z)"),
    (pv.decoders.Bernoulli.mlp(2, [3], 20), True, "draws of x"),
    (PIXELS, False, "draws of x"),  # it has no mean in closed form
]


@pytest.mark.parametrize(("decoder", "draws", "title"), SHOWN)
def test_a_picture_says_whether_it_shows_means_or_draws(decoder, draws: bool, title: str, monkeypatch):
    vae = pv.VAE(pv.priors.StandardNormal(2), decoder, pv.encoders.DiagonalNormal.mlp(20, [5], 2))
    saved = []
    monkeypatch.setattr(work, "reopen", lambda *_: (vae, None))
    monkeypatch.setattr(work, "save_images", lambda x, splits, out, title: saved.append((x, title)))
    work.sample(Path("run"), None, None, 3, 0, draws, Path("x.png"))
    ((x, said),) = saved
    assert said == f"run: {title}"
    assert bool(((x == 0) | (x == 1)).all()) == (title == "draws of x")


def test_evaluate_sample_and_check(run: Path, tmp_path: Path):
    text = succeed("evaluate", run, "--num-samples", "20", "--limit", "30", "--seed", "5")
    assert re.search(r"log p\(x\) (≥ -\d+\.\d\d|= -\S+ ± \S+) nats per datum", text)
    assert "random 30 of 360 test data" in text
    assert (read(run / "evaluation.json")["seed"], read(run / "evaluation.json")["num_data"]) == (5, 30)
    succeed("sample", run, "--n", "5", "--out", tmp_path / "means.npy")
    succeed("sample", run, "--n", "5", "--draws", "--out", tmp_path / "draws.npy")
    means, draws = (np.load(tmp_path / f"{name}.npy", allow_pickle=False) for name in ("means", "draws"))
    assert means.shape == draws.shape == (5, 64)
    assert set(np.unique(draws)) == {0, 1}
    assert len(np.unique(means)) > 2
    succeed("sample", run, "--n", "5", "--out", tmp_path / "samples.png")
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert "Bernoulli" in succeed("check", *SMALL_VAE)


def test_compare_puts_the_best_first_and_keeps_other_data_apart(run: Path, tmp_path: Path):
    longer, short = tmp_path / "longer", tmp_path / "short"
    succeed("fit", *SMALL_VAE, *TINY, "--epochs", "3", "--learning-rate", "0.01", "--run-dir", longer)
    succeed("evaluate", run, "--num-samples", "20", "--limit", "30")
    result = call("compare", run, longer, "--format", "json")
    assert [row["model"] for row in json.loads(result.stdout)["rows"]] == ["longer", "first"]
    assert re.search(r"longer - first = \d+\.\d+ ± \d", succeed("compare", run, longer))
    succeed("fit", *SMALL_VAE, *TINY, "--eval-limit", "20", "--run-dir", short)
    result = call("compare", run, longer, short, "--format", "markdown")
    assert "2 tables: numbers on different test data do not compare" in result.stderr
    assert result.stdout.count("**log p(x), a probability, of digits, binarised") == 2
    tables = json.loads(call("compare", run, longer, short, "--format", "json").stdout)
    assert [[row["model"] for row in table["rows"]] for table in tables] == [["longer", "first"], ["short"]]
    assert [table["title"].rpartition(", ")[2] for table in tables] == [
        "random 30 of 360 test data",
        "random 20 of 360 test data",
    ]


def test_a_density_never_stands_above_a_probability(tmp_path: Path):
    density, probability = tmp_path / "density", tmp_path / "probability"
    small = ["--latent-dim", "2", "--hidden", "8", *TINY]
    result = call("fit", "scaled-vae", "--binarize", "dynamic", *small, "--run-dir", density)
    assert result.output.count("Normal gives a density to data of only 2 levels") == 1
    assert "gives a density" not in succeed("fit", "vae", *small, "--run-dir", probability)
    result = call("compare", density, probability, "--format", "markdown")
    assert "2 tables: numbers on different test data, or a probability with a density, do not compare" in result.stderr
    assert all(f"**log p(x), a {kind}, of digits" in result.stdout for kind in ("density", "probability"))
    assert "nats per datum (standard error" not in result.stdout


OPTIONS = [
    (["--batch-size", "500"], "batch_size", 500),
    (["--learning-rate", "0.02"], "learning_rate", 0.02),
    (["--seed", "7"], "seed", 7),
    (["--patience", "2"], "patience", 2),
    (["--binarize", "fixed"], "binarize", None),
    (["--schedule", "cosine"], "schedule", {"class": "Cosine", "start": 1.0, "end": 0.0, "steps": 10}),
    (["--objective", "iwae"], "objective", {"class": "IWAE", "num_particles": 5, "gradient": "pathwise"}),
    (
        ["--objective", "iwae", "--gradient", "dreg"],
        "objective",
        {"class": "IWAE", "num_particles": 5, "gradient": "dreg"},
    ),
    (["--no-validation"], None, None),
]


@pytest.mark.parametrize(("arguments", "name", "value"), OPTIONS, ids=lambda value: str(value))
def test_options_reach_the_fit(arguments: list[str], name: str | None, value: object, tmp_path: Path):
    root = tmp_path / "run"
    text = succeed("fit", *SMALL_VAE, "--epochs", "1", "--eval-samples", "0", *arguments, "--run-dir", root)
    assert not (root / "evaluation.json").exists()
    if name is not None:
        assert read(root / "config.json")[name] == value
    has_validation = json.loads((root / "history.jsonl").read_text())["validation_elbo"] is not None
    assert has_validation == (arguments != ["--no-validation"])
    assert "12 steps" in text if arguments == ["--no-validation"] else "steps" in text


def test_options_of_the_elbo(tmp_path: Path):
    options = ["--beta", "0.5", "--beta-warmup", "2", "--num-particles", "3", "--batch-size", "400"]
    succeed("fit", *SMALL_VAE, "--epochs", "1", "--eval-samples", "0", *options, "--run-dir", tmp_path / "run")
    objective = read(tmp_path / "run" / "config.json")["objective"]
    assert (objective["class"], objective["num_particles"]) == ("ELBO", 3)
    assert objective["beta"] == {"class": "Linear", "start": 0.0, "end": 0.5, "steps": 8}


def test_the_seed_decides_the_initial_parameters():
    x = (data.load("digits").train,)
    first, again, other = (make_pair(PairSpec("vae", 2, (8,), seed), x).state_dict() for seed in (0, 0, 1))
    name = "encoder.network.layers.0.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_the_seed_decides_parameters_made_on_first_use():
    def start(seed):
        def model(x):
            loc = pyro.param("loc", lambda: torch.randn(3))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

        pair = pv.Pair(model, lambda x: None)
        with first_use(PairSpec("vae", 2, (8,), seed)):
            pair.prepare(torch.zeros(4, 3))
        return pair.param("loc")

    before = torch.random.get_rng_state()
    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_decoder_starts_at_the_pixel_means():
    x = data.load("digits").train
    bias = make_pair(PairSpec("vae", 2, (8,)), (x,)).decoder.network.layers[-1].bias
    torch.testing.assert_close(bias.sigmoid(), (x.sum(0) + 0.5) / (len(x) + 1))


def test_splits_agree_with_the_library():
    grey, binary = data.load("digits"), data.load("digits", binarize="fixed")
    dynamic = load_splits(DataSpec("digits", "dynamic"))
    fixed = load_splits(DataSpec("digits", "fixed"))
    assert torch.equal(dynamic.train[0], grey.train)
    assert torch.equal(fixed.train[0], binary.train)
    assert torch.equal(dynamic.test[0], binary.test)
    assert torch.equal(fixed.test[0], binary.test)


def test_files_are_split_once_or_taken_as_they_are(tmp_path: Path):
    rng = np.random.default_rng(0)
    x = rng.random((50, 4, 4))
    np.save(tmp_path / "x.npy", x)
    splits = load_splits(DataSpec(str(tmp_path / "x.npy"), "none"))
    assert [len(part) for (part,) in (splits.train, splits.validation, splits.test)] == [40, 5, 5]
    together = torch.cat([*splits.train, *splits.validation, *splits.test]).flatten(1)
    assert torch.equal(together.sum(1).sort().values, torch.from_numpy(x).flatten(1).sum(1).sort().values)
    assert splits.image_shape == (1, 4, 4)
    np.savez(tmp_path / "x.npz", train=x[:30], validation=x[30:35], test=x[35:].astype(np.float32))
    named = load_splits(DataSpec(str(tmp_path / "x.npz"), "none"))
    assert torch.equal(named.train[0], torch.from_numpy(x[:30]))
    assert len(named.test[0]) == 15


def test_a_continuous_file_trains_the_gaussian_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(5.0, 2.0, (60, 3)))
    succeed("fit", "gaussian-vae", "--data", "x.npy", "--latent-dim", "1", "--hidden", "4", *TINY)
    root = tmp_path / "runs" / "gaussian-vae-x-1"
    assert read(root / "run.json")["data"]["name"] == str(tmp_path / "x.npy")
    # Two scales apart from the start, which is the maximum-likelihood model without latents.
    assert read(root / "evaluation.json")["mean"] == pytest.approx(-3 * (0.92 + np.log(2) + 0.5), abs=1.5)
    assert not (root / "figures" / "samples.png").exists()
    succeed("evaluate", root, "--num-samples", "5")
    np.save("x.npy", np.random.default_rng(1).normal(5.0, 2.0, (80, 3)))
    assert "not those of the run" in call("evaluate", root).stderr
    succeed("fit", "gaussian-vae", "--data", "x.npy", "--latent-dim", "1", "--hidden", "4", *TINY)
    assert (tmp_path / "runs" / "gaussian-vae-x-2").is_dir()


@pytest.mark.parametrize("factory", ["own", "fixed", "with_default"])
def test_a_users_pair_is_trained_and_runs_again_only_by_name(factory: str, users_file: Path, tmp_path: Path):
    name, root = f"{users_file}:{factory}", tmp_path / "run"
    assert "Normal" in succeed("check", name)
    succeed("fit", name, *TINY, "--run-dir", root)
    first = read(root / "evaluation.json")
    refused = call("evaluate", root)
    assert refused.exit_code == 1
    assert "--pair" in refused.stderr
    assert name in refused.stderr
    succeed("evaluate", root, "--pair", name, "--num-samples", "20", "--limit", "30")
    assert read(root / "evaluation.json")["mean"] == first["mean"]


def test_a_module_of_the_working_directory_is_found(users_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(users_file.parent)
    assert "Normal" in succeed("check", "users_pair:own")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair": {"name": "vae", "latent_dim": "2", "hidden": [8], "seed": 0}}, "latent_dim"),
        ({"pair": {"name": "vae"}}, "fields"),
        (
            {
                "data": {
                    "name": "digits",
                    "binarize": "maybe",
                    "data_dir": None,
                    "arrays": [],
                    "dequantize": None,
                    "quantize": None,
                }
            },
            "binarize",
        ),
        ({"steps": None}, "steps"),
        ({"pair": {"name": "vae", "latent_dim": 3, "hidden": [8], "seed": 0}}, "do not fit the pair"),
    ],
)
def test_a_run_file_is_not_believed(change: dict, message: str, run: Path, tmp_path: Path):
    root = tmp_path / "copy"
    root.mkdir()
    (root / "parameters.safetensors").write_bytes((run / "parameters.safetensors").read_bytes())
    rewritten(run / "run.json", root / "run.json", **change)
    result = call("evaluate", root)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
