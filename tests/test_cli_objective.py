"""What a run of the command maximises: options, or the objective that a pair brings; M2 with all that it needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.cli import pictures
from ppl_vae.cli.inputs import load_splits
from ppl_vae.cli.objective import decided, objective_of
from ppl_vae.cli.specs import training_spec_of
from ppl_vae.rundir import DataSpec, TrainingSpec
from tests.commands import call, read, succeed

pytestmark = pytest.mark.usefixtures("blank_pictures")

LABELLED = """
import ppl_vae as pv
from ppl_vae.conditional import Classifier

def plain(size, labels):
    return pv.SemiSupervisedVAE(
        pv.priors.StandardNormal(2),
        pv.decoders.Gaussian.mlp(2 + 3, [4], size),
        pv.encoders.DiagonalNormal.mlp(size + 3, [4], 2),
        Classifier.mlp(size, [4], 3),
        3,
    )

def supervised(size, labels):
    vae = plain(size, labels)
    vae.objective = pv.Supervised(pv.ELBO(discrete="enumerate"), vae.log_label, weight=2.0)
    return vae

def confused(size, labels):
    vae = plain(size, labels)
    vae.objective = "elbo"
    return vae
"""
ARRAYS = ["--data", "labelled.npz", "--arrays", "x,y"]
SHORT = [*ARRAYS, "--epochs", "1", "--eval-samples", "0", "--compile", "no", "--run-dir", "run"]
CAUTION = "caution: 'y': discrete latents train by the score function"


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with labelled data, some labels unknown, and the pairs of a user."""
    monkeypatch.chdir(tmp_path)
    Path("pairs.py").write_text(LABELLED)
    rng = np.random.default_rng(0)
    np.savez("labelled.npz", y=rng.integers(-1, 3, 60), x=rng.normal(size=(60, 4)).astype(np.float32))


@pytest.mark.usefixtures("labelled")
def test_a_pair_brings_its_objective():
    assert "caution" not in succeed("fit", "pairs.py:supervised", *SHORT)
    objective = read(Path("run/config.json"))["objective"]
    assert (objective["class"], objective["weight"], objective["objective"]["discrete"]) == (
        "Supervised",
        2.0,
        "enumerate",
    )
    assert read(Path("run/run.json"))["training"]["objective"] == "own"


@pytest.mark.usefixtures("labelled")
def test_classes_are_summed_where_it_is_asked_for():
    options = ["--discrete", "enumerate", "--gradient", "stl"]
    assert "caution" not in succeed("fit", "pairs.py:plain", *SHORT, *options)
    objective = read(Path("run/config.json"))["objective"]
    assert (objective["class"], objective["discrete"], objective["gradient"]) == ("ELBO", "enumerate", "stl")


@pytest.mark.usefixtures("labelled")
def test_a_class_that_could_be_summed_and_is_drawn_is_said():
    said = succeed("fit", "pairs.py:plain", *SHORT)
    assert f"{CAUTION}, whose gradient is noisy: --discrete enumerate sums over the 3 values instead" in said


@pytest.mark.usefixtures("labelled")
def test_wrong_choices_are_one_line():
    own = call("fit", "pairs.py:supervised", *SHORT, "--beta", "2", "--discrete", "enumerate")
    assert own.exit_code == 1
    assert "an objective of its own, a Supervised: leave out --beta, --discrete, or choose" in own.stderr
    odd = call("check", "pairs.py:confused", *ARRAYS)
    assert odd.exit_code == 1
    assert "expected pair.objective to be what trains it, such as ppl_vae.ELBO(), found 'elbo'" in odd.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gradient", "dreg"], "--gradient dreg is of --objective iwae"),
        (["--objective", "iwae", "--gradient", "stl"], "--gradient stl is of --objective elbo"),
        (["--objective", "iwae", "--gradient", "vimco", "--num-particles", "1"], "--num-particles 2 or more"),
        (["--objective", "iwae", "--discrete", "enumerate"], "what --objective iwae draws: leave one of them out"),
        (["--gradient", "score", "--discrete", "enumerate"], "what --gradient score draws: leave one of them out"),
    ],
)
def test_estimators_that_no_objective_has_are_refused(options: list[str], message: str):
    result = call("fit", "vae", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def training(**options: object) -> TrainingSpec:
    """What the command asks for with these options."""
    usual = {"epochs": 1, "batch_size": 10, "learning_rate": 1e-3, "schedule": "constant", "objective": "auto"}
    usual |= {"num_particles": None, "beta": 1.0, "beta_warmup": 0, "gradient": "pathwise", "discrete": "score"}
    usual |= {"validation": True, "patience": None, "seed": 0, "device": "cpu", "compile": "no", "on_nonfinite": "stop"}
    return training_spec_of(**usual | options)


def test_options_decide_before_the_pair_and_the_pair_before_what_is_usual():
    pair = nn.Linear(1, 1)
    assert objective_of(decided(training(), pair), pair, 10) == pv.ELBO()
    pair.objective = pv.Renyi(0.5)
    assert objective_of(decided(training(), pair), pair, 10) == pv.Renyi(0.5)
    asked = training(objective="iwae", gradient="vimco")
    assert objective_of(decided(asked, pair), pair, 10) == pv.IWAE(5, gradient="vimco")
    own = decided(training(), pair)
    with pytest.raises(pv.PairError, match=r"expected pair.objective, by which the run trained, found none"):
        objective_of(own, nn.Linear(1, 1), 10)


class Squashed(nn.Module):
    """A decoder of numbers between 0 and 1, whose distribution has no mean in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.affine = nn.Linear(2, 64)

    def forward(self, z: torch.Tensor) -> dist.TransformedDistribution:
        return dist.TransformedDistribution(dist.Normal(self.affine(z), 1.0).to_event(1), [SIGMOID])


SIGMOID = dist.transforms.SigmoidTransform()


@pytest.mark.parametrize("kind", ["squashed", "layers"])
def test_pictures_of_every_vae_are_drawn_after_the_training(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One without a mean as draws; one of several layers like any other."""
    encoder = pv.encoders.DiagonalNormal.mlp(64, [5], 2)
    vae = (
        pv.VAE(pv.priors.StandardNormal(2), Squashed(), encoder)
        if kind == "squashed"
        else pv.HierarchicalVAE.burda(64, ((8,), (6,)), (3, 2))
    )
    assert pictures.has_mean(vae) == (kind == "layers")
    drawn = []
    monkeypatch.setattr(pictures.figures, "learning_curves", lambda *_: None)
    monkeypatch.setattr(pictures, "_save", lambda figure, root, name: drawn.append(name))
    pictures.draw_fit(tmp_path, vae, load_splits(DataSpec("digits")), None, "ELBO")
    assert drawn == ["learning-curves", "reconstructions", "samples"]
