"""What a run shows of levels, and what it says of pairs that have nothing to evaluate or to draw."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae import figures
from ppl_vae.cli.inputs import load_splits
from ppl_vae.cli.pictures import draw_fit, save_images
from ppl_vae.errors import StorageError
from ppl_vae.recipes import levels_vae
from ppl_vae.rundir import DataSpec
from tests.commands import call, read, succeed

PAIRS = """
import torch
import ppl_vae as pv

def autoencoder(size):
    decoder = pv.decoders.Gaussian.mlp(2, [4], size)
    return pv.Autoencoder(encoder=pv.networks.MLP(size, [4], 2), decoder=decoder)

def normal(size):
    prior, decoder = pv.priors.StandardNormal(2), pv.decoders.Gaussian.mlp(2, [4], size)
    vae = pv.VAE(prior, decoder, pv.encoders.DiagonalNormal.mlp(size, [4], 2))
    pair = pv.Pair(vae.model, vae.guide)
    pair.sample = getattr(torch, "drawn_by_a_pair", None)  # a test sets it
    return pair

def of_classes(size, labels):
    decoder = pv.decoders.Gaussian.mlp(2 + 3, [4], size)
    encoder = pv.encoders.DiagonalNormal.mlp(size + 3, [4], 2)
    return pv.ConditionalVAE(pv.priors.StandardNormal(2), decoder, encoder, num_classes=3)

def of_classes_in_turn(size, labels):
    vae = of_classes(size, labels)
    vae.sample = lambda n, seed: vae.sample_given(torch.arange(n) % vae.num_classes, seed)
    return vae
"""
WRITTEN = """
import pyro, pyro.distributions as dist

def written(size):
    weight = torch.nn.Linear(2, size)

    def model(x):
        pyro.module("weight", weight)
        with pyro.plate("data", len(x)):
            z = weight(pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1)))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    return pv.Pair(model, guide)
"""
SHORT = ["--epochs", "1", "--compile", "no", "--run-dir", "run"]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The greys of every picture, from 0 (black) to 1 (white), which is then not written."""
    greys: list[np.ndarray] = []

    def look(figure, to):
        for picture in figure.axes[0].images:
            pixels = np.asarray(picture.get_array())
            greys.append(np.unique(pixels[(pixels == pixels[..., :1]).all(-1)]))  # lines between images have a colour

    monkeypatch.setattr(figures, "save", look)
    return greys


def splits_of(x: torch.Tensor, tmp_path: Path):
    np.save(tmp_path / "x.npy", x.numpy())
    return load_splits(DataSpec(str(tmp_path / "x.npy")))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("name", ["drawn.npy", "drawn.png"])
def test_a_disk_that_refuses_drawn_data_is_named(name: str, tmp_path: Path):
    (tmp_path / name).symlink_to("/dev/full")
    x = torch.rand(10, 1, 4, 4)
    with pytest.raises(StorageError, match=rf"{name}: cannot be written"):
        save_images(x, splits_of(x, tmp_path), tmp_path / name, "Ten of them")


def test_levels_of_a_file_are_drawn_from_black_to_white(shown, tmp_path: Path):
    x = torch.arange(17).repeat(20)[:320].reshape(20, 4, 4)
    splits = splits_of(x, tmp_path)
    assert splits.value_range == (0.0, 16.0)
    save_images(splits.train[0], splits, Path("x.png"), "")
    pair = levels_vae(splits.train[0], latent_dim=1, hidden=[4])
    history = pv.fit(pair, splits.train, steps=1, batch_size=16, progress=False).history
    draw_fit(tmp_path, pair, splits, history, "ELBO")
    rows, reconstructions, samples = shown
    np.testing.assert_allclose(rows, np.arange(17) / 16)
    assert len(reconstructions) > 17
    assert samples.max() < 1


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.9, (0, 1)), (0, 1, (0, 1)), (-1, 1, (-1, 1)), (0, 255, (0, 255)), (-3, -2, (-3, 0)), (3, 5, (0, 5))],
)
def test_black_and_white_are_the_extremes_of_data_outside_the_unit_interval(low, high, expected, tmp_path: Path):
    x = torch.linspace(low, high, 2).reshape(2, 1, 1).expand(2, 2, 2).repeat(20, 1, 1)
    assert splits_of(x, tmp_path).value_range == pytest.approx(expected)


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with pairs of a user and labelled data."""
    monkeypatch.chdir(tmp_path)
    Path("pairs.py").write_text(PAIRS)
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    np.savez("labelled.npz", x=x, y=np.arange(60) % 3)
    np.save("x.npy", x)


@pytest.mark.usefixtures("pairs")
def test_a_reconstruction_trains_to_its_end_without_an_evaluation():
    said = succeed("fit", "pairs.py:autoencoder", "--data", "x.npy", *SHORT)
    assert "no evaluation after the training: the pair reconstructs what it has read" in said
    assert (read(Path("run/run.json"))["status"], read(Path("run/run.json"))["evaluation"]) == ("finished", None)
    refused = call("evaluate", "run", "--pair", "pairs.py:autoencoder")
    assert (refused.exit_code, "there is no log p(x)" in refused.stderr) == (1, True)


@pytest.mark.usefixtures("pairs")
def test_data_of_given_classes_are_drawn_by_the_choice_of_the_factory():
    options = ["--data", "labelled.npz", "--arrays", "x,y", "--eval-samples", "0", *SHORT]
    succeed("fit", "pairs.py:of_classes", *options)
    refused = call("sample", "run", "--pair", "pairs.py:of_classes", "--out", "drawn.npy")
    assert refused.exit_code == 1
    assert "vae.sample = lambda n, seed: vae.sample_given(torch.arange(n) % vae.num_classes, seed)" in refused.stderr
    succeed("sample", "run", "--pair", "pairs.py:of_classes_in_turn", "--n", "7", "--out", "drawn.npy")
    assert np.load("drawn.npy", allow_pickle=False).shape == (7, 4)


DRAWN = {
    "an array": (lambda n, seed: np.ones((n, 4), np.float32), ""),
    "a gradient": (lambda n, seed: torch.ones(n, 4, requires_grad=True), ""),
    "one too many": (lambda n, seed: torch.ones(n + 1, 4), r"expected 7 data .* found shape \(8, 4\)"),
    "two arguments": (lambda n, seed: (torch.ones(n, 4), torch.ones(n)), "expected 7 data .* found tuple: of several"),
    "no seed": (lambda n: torch.ones(n, 4), "pair.sample failed: TypeError: .*unexpected keyword argument 'seed'"),
}


@pytest.mark.usefixtures("pairs")
def test_what_a_pair_draws_by_itself_is_looked_at(monkeypatch: pytest.MonkeyPatch):
    succeed("fit", "pairs.py:normal", "--data", "x.npy", "--eval-samples", "0", *SHORT)
    for sample, refusal in DRAWN.values():
        monkeypatch.setattr(torch, "drawn_by_a_pair", sample, raising=False)
        done = call("sample", "run", "--pair", "pairs.py:normal", "--n", "7", "--out", "drawn.npy")
        assert done.exit_code == bool(refusal), done.stderr
        assert re.search(refusal, " ".join(done.stderr.split()))
        assert refusal or np.load("drawn.npy", allow_pickle=False).shape == (7, 4)


@pytest.mark.usefixtures("pairs")
def test_an_evaluation_of_programs_that_were_edited_says_so():
    """Its numbers would be compared as those of the run."""
    own = PAIRS + WRITTEN
    Path("pairs.py").write_text(own)
    succeed("fit", "pairs.py:written", "--data", "x.npy", "--eval-samples", "0", *SHORT)
    options = ["evaluate", "run", "--pair", "pairs.py:written", "--num-samples", "20"]
    assert "caution" not in call(*options).stderr
    Path("pairs.py").write_text(own.replace("z, 0.5", "z, 2.0"))
    said = " ".join(call(*options).stderr.split())
    assert "caution: run: code of model is not what was trained: what follows is of other programs" in said
