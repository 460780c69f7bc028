"""A step that was not finite is done again, from what was kept of it (RELIABILITY F6)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.storage import newest, step_folder, steps, write
from ppl_vae.storage import read as read_checkpoint
from ppl_vae.svi.order import Order
from tests.commands import USERS_PAIR, call, read, succeed
from tests.nonfinite import (
    Gaussian,
    Rare,
    bad_steps,
    clean,
    poisoned,
)
from tests.pairs import ModuleVAE, binary_rows
from tests.training import fresh, state, train


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_step_is_done_again_with_its_rows_and_its_noise(policy: str, quiet: None, tmp_path: Path):
    pair, x = fresh(make=Rare), binary_rows(64)
    found: list[str] = []
    try:
        train(pair, x, batch_size=8, epochs=20, run_dir=tmp_path, on_nonfinite=policy, compile=False)
    except pv.EstimateError as error:
        found.append(str(error))
    first = steps(tmp_path / "bad-steps")[0]
    assert len(steps(tmp_path / "bad-steps")) <= 3
    again = pv.replay(fresh(seed=9, make=Rare), tmp_path)
    assert (again.step, again.is_finite, again.reason) == (first, False, again.recorded)
    assert again.reason.startswith("site 'x' of the model")
    assert again.differences == ()
    assert again.rows == tuple(Order(64, 8, 0).at(first).tolist())
    assert math.isnan(again.loss)
    assert all(again.reason in text for text in found)
    drawn = {(site.role, site.name): site for site in again.sites}
    assert drawn["guide", "z"].value[1] > 1.5
    assert again.reason in str(again)
    assert "guide z: values" in str(again)


def test_binary_data_are_drawn_again(tmp_path: Path, quiet: None):
    class Picky(ModuleVAE):
        def model(self, x):
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                all_ones = torch.where(x.sum(-1, keepdim=True) == 5, torch.nan, 0.0)
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + all_ones).to_event(1), obs=x)

    x = torch.full((64, 5), 0.4)
    with pytest.raises(pv.EstimateError) as caught:
        train(fresh(make=Picky), x, binarize="dynamic", run_dir=tmp_path, epochs=50)
    again = pv.replay(fresh(make=Picky), tmp_path)
    assert again.reason in str(caught.value)
    assert again.reason == again.recorded


def test_what_does_not_belong_to_the_step_is_refused(tmp_path: Path, quiet: None, generator: torch.Generator):
    train(fresh(make=Gaussian), poisoned(clean(generator)), on_nonfinite="skip", run_dir=tmp_path)
    with pytest.raises(pv.CheckpointError, match="objective: expected that of the fit"):
        pv.replay(fresh(make=Gaussian), tmp_path, objective=pv.IWAE(5))
    with pytest.raises(pv.CheckpointError, match="expected a tensor of shape"):
        pv.replay(fresh(make=lambda: Gaussian(nn.BatchNorm1d(4))), tmp_path)
    with pytest.raises(pv.CheckpointError, match="expected a checkpoint of step 77"):
        pv.replay(fresh(make=Gaussian), tmp_path, step=77)
    with pytest.raises(
        pv.CheckpointError, match="nowhere: expected the run directory of a fit, found no such directory"
    ):
        pv.replay(fresh(make=Gaussian), tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(pv.CheckpointError, match="expected a step that was not finite, found none"):
        pv.replay(fresh(make=Gaussian), tmp_path / "empty")
    (file,) = (tmp_path / "bad-steps" / f"step-{bad_steps(1)[0]:09d}").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(pv.CheckpointError, match=r"tensors\.safetensors: expected"):
        pv.replay(fresh(make=Gaussian), tmp_path)


class Narrow(Gaussian):
    """A program that takes no row above four, whatever its parameters."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self.program = program

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            edge = 0.0 * (4.0 - x[:, :1]).log() if self.program == "model" else 0.0
            pyro.sample("x", dist.Normal(self.decoder(z) + edge, 0.5).to_event(1), obs=x)

    def guide(self, x):
        super().guide(torch.where(x > 4.0, torch.nan, x) if self.program == "guide" else x)


@pytest.mark.parametrize("program", ["model", "guide"])
def test_a_row_that_no_program_takes_is_done_again(program: str, tmp_path: Path, generator: torch.Generator):
    """The pair is checked on the rows that the fit has checked, for the row itself fails with any parameters."""
    x = torch.randn(64, 3, generator=generator).clamp(-3.0, 3.0)
    x[37] = 5.0
    with pytest.raises(pv.EstimateError) as caught:
        train(fresh(make=lambda: Narrow(program)), x, batch_size=8, epochs=1, run_dir=tmp_path)
    again = pv.replay(fresh(seed=9, make=lambda: Narrow(program)), tmp_path)
    place = again.rows.index(37)
    found = {"model": "'x' of the model has a log-density that is", "guide": "'z' of the guide draws values that are"}
    assert again.reason == f"site {found[program]} not finite (rows [{place}] of the batch, [37] of the data)"
    assert again.reason == again.recorded
    assert again.reason in str(caught.value)


@dataclass(frozen=True)
class Exploding:
    """A weight of the rate that is no number from the second step on."""

    def __call__(self, step):
        return math.inf if step else 1.0


def test_a_step_whose_beta_is_no_number_says_so_again(tmp_path: Path, quiet: None):
    objective = pv.ELBO(beta=Exploding())
    with pytest.raises(pv.EstimateError):
        train(fresh(), binary_rows(16), objective=objective, run_dir=tmp_path)
    again = pv.replay(fresh(), tmp_path, objective=objective)
    assert again.reason == again.recorded == "beta is inf"


def test_a_step_goes_where_the_fit_was_and_another_device_is_warned_of(tmp_path: Path, quiet: None, generator):
    train(fresh(make=Gaussian), poisoned(clean(generator)), on_nonfinite="skip", run_dir=tmp_path, device="cpu")
    pv.replay(fresh(make=Gaussian), tmp_path, step=bad_steps(1)[0])
    kept = read_checkpoint(step_folder(tmp_path / "bad-steps", bad_steps(1)[0]))
    write(tmp_path / "other" / "bad-steps", kept.step, kept.tensors, kept.plain | {"device": "xpu"})
    with pytest.warns(UserWarning, match="did this step on xpu, and it is done again on cpu, whose noise is another"):
        pv.replay(fresh(make=Gaussian), tmp_path / "other", device="cpu")


class Growing(Gaussian):
    """Its sixth run in training is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def model(self, x):
        self.runs += self.training
        super().model(x * (1e30 if self.runs > 5 else 1.0))


def test_a_step_that_is_finite_now_says_what_is_not_as_it_was(tmp_path: Path, generator: torch.Generator):
    with pytest.raises(pv.EstimateError):
        train(fresh(make=Growing), clean(generator), run_dir=tmp_path, epochs=9, device="cpu", compile=False)
    again = pv.replay(fresh(make=Growing), tmp_path)
    assert again.is_finite
    assert "it is finite now: the programs had changed 'self.runs', which is not kept with a step" in str(again)
    assert "compiled" not in str(again)


class Mended(Growing):
    """The same parameters, and another program."""

    def model(self, x):
        Gaussian.model(self, x.clamp(-9.0, 9.0))


def test_other_programs_and_versions_are_said(tmp_path: Path, generator: torch.Generator):
    with pytest.raises(pv.EstimateError):
        train(fresh(make=Gaussian), poisoned(clean(generator)), run_dir=tmp_path)
    assert pv.replay(fresh(make=Gaussian), tmp_path).differences == ()
    kept = newest(tmp_path / "bad-steps")
    facts = kept.plain["facts"]
    older = {**facts, "machine": facts["machine"] | {"torch": "1.0"}}
    write(tmp_path / "other" / "bad-steps", kept.step, kept.tensors, kept.plain | {"facts": older})
    again = pv.replay(fresh(make=Mended), tmp_path / "other")
    assert again.is_finite
    assert "it is finite now: the programs are not those of the fit ('code of model', " in str(again)
    assert f"torch was '1.0' and is {facts['machine']['torch']!r}" in str(again)


DAMAGE = {
    "step": {"step": 99},
    "seed of text": {"seed": "x"},
    "seed too large": {"seed": 2**80},
    "beta of text": {"beta": "x"},
    "beta beyond numbers": {"beta": 10**400},
    "beta of nothing": {"beta": {"float": "x"}},
    "device": {"device": 3},
    "binarize": {"binarize": "no"},
    "binary draws from no probabilities": {"binarize": True},
    "reason": {"reason": None},
}


@pytest.mark.parametrize(
    "what", [*DAMAGE, "nothing but a step", "batch/1", "batch/0", "checked/0", "rows", "shape", "parameter"]
)
def test_a_bad_step_of_another_form_is_refused_and_changes_nothing(what: str, tmp_path: Path):
    class Weighted(Gaussian):
        def model(self, x, weight):
            super().model(x)

        def guide(self, x, weight):
            super().guide(x)

    pair, x = fresh(make=Weighted), torch.full((4, 3), 1e30)
    with pytest.raises(pv.EstimateError):
        train(pair, (x, torch.ones(4)), run_dir=tmp_path)
    kept = newest(tmp_path / "bad-steps")
    tensors, plain = dict(kept.tensors), kept.plain | DAMAGE.get(what, {})
    if what == "nothing but a step":
        plain = {"step": kept.step}
    elif what == "shape":
        tensors["batch/1"] = torch.ones(3)
    elif what == "parameter":
        name = max(name for name in tensors if name.startswith("parameter/"))
        tensors[name] = torch.ones(1)
    else:
        tensors.pop(what, None)
    write(tmp_path / "other" / "bad-steps", kept.step, tensors, plain)
    other = fresh(seed=9, make=Weighted)
    before = state(other)
    with pytest.raises(pv.CheckpointError, match=r"expected"):
        pv.replay(other, tmp_path / "other")
    assert all(torch.equal(before[name], value) for name, value in state(other).items())


def test_the_command_skips_and_does_the_step_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("users_pair.py").write_text(USERS_PAIR.replace("encoder(x)", "encoder(x.clamp(-9, 9))"))
    x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    parts = {"train": x.copy(), "validation": x[:10], "test": x[10:20]}
    parts["train"][7] = 1e30
    np.savez("x.npz", **parts)
    options = ["users_pair.py:own", "--data", "x.npz", "--epochs", "1", "--batch-size", "10", "--eval-samples", "0"]
    failed = call("fit", *options, "--run-dir", "stopped")
    assert failed.exit_code == 1
    assert "site 'x' of the model has a log-density that is not finite" in failed.stderr
    assert read(Path("stopped/run.json"))["status"] == "failed"
    text = succeed("replay", "stopped", "--pair", "users_pair.py:own")
    assert "site 'x' of the model has a log-density that is not finite" in text
    assert "model x: values" in text
    assert "runs only if you name it" in call("replay", "stopped").stderr
    with pytest.warns(UserWarning, match="The step is skipped"):
        succeed("resume", "stopped", "--pair", "users_pair.py:own", "--on-nonfinite", "skip")
    assert read(Path("stopped/run.json"))["status"] == "finished"
    with pytest.warns(UserWarning, match="The step is skipped"):
        succeed("fit", *options, "--on-nonfinite", "skip", "--run-dir", "skipped")
    stopped, skipped = (newest(Path(name) / "checkpoints") for name in ("stopped", "skipped"))
    trained = {name: tensor for name, tensor in skipped.tensors.items() if name != "history"}  # seconds are in it
    assert all(torch.equal(stopped.tensors[name], tensor) for name, tensor in trained.items())
