"""What stays of a fit that did not finish: its description, its parameters, and the steps that were not finite."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.errors import EstimateError, PairError, StorageError
from ppl_vae.rundir import DataSpec, PairSpec, RunDirectory, RunRecord, read_run, write_run
from ppl_vae.storage import checkpoint, files, steps
from ppl_vae.svi import saving
from ppl_vae.svi.signals import Terminated
from tests.pairs import ModuleVAE
from tests.resuming import binary, run


class Ending(ModuleVAE):
    """A pair whose model does something in one of its runs in training, which the environment names."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0
        self.register_buffer("width", torch.ones(1))

    def model(self, x):
        factor = torch.ones(())
        if self.training:
            self.runs += 1
            if self.runs == int(os.environ.get("AT", "0")):
                factor = ACTS[os.environ["ACT"]](self)
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=factor * self.decoder(z)).to_event(1), obs=x)


def fails(own: Ending) -> torch.Tensor:
    raise ArithmeticError("broken")


def terminates(own: Ending) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGTERM)
    return torch.ones(())


def widens(own: Ending) -> torch.Tensor:
    own.width = own.width.to(torch.complex128)
    return torch.ones(())


def damages(own: Ending) -> torch.Tensor:
    path = Path(os.environ["RUN"], "checkpoints", "step-000000006", checkpoint.STATE)
    path.write_bytes(b"?" + path.read_bytes()[1:])
    return fails(own)


ACTS = {
    "fails": fails,
    "terminates": terminates,
    "widens": widens,
    "damages": damages,
    "spoils": lambda own: torch.tensor(torch.nan),
}


@pytest.fixture
def do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Says what is done in which run of the model; nothing of it is a fact of the pair."""

    def set_act(act: str, at: int) -> None:
        for name, value in {"ACT": act, "AT": str(at), "RUN": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)

    return set_act


@pytest.mark.parametrize(
    ("act", "error", "status", "reached"),
    [("fails", PairError, "failed", 6), ("terminates", Terminated, "interrupted", 8)],
)
def test_the_description_of_a_run_tells_how_a_fit_that_went_on_has_ended(act, error, status, reached, tmp_path, do):
    """The step is that of the parameters: within a step that failed those of the newest checkpoint."""
    write_run(tmp_path, RunRecord(("ppl-vae",), PairSpec("vae"), DataSpec("digits"), "0" * 64, "cpu", 3))
    run(Ending, binary, {"epochs": None, "steps": 4}, run_dir=tmp_path)
    assert (read_run(tmp_path).status, read_run(tmp_path).steps) == ("finished", 4)
    do(act, 8)
    with pytest.raises(error):
        run(Ending, binary, {}, run_dir=tmp_path, resume=True, checkpoint_every=2)
    told = read_run(tmp_path)
    assert (told.status, told.steps, told.best_step) == (status, reached, reached)
    assert RunDirectory(tmp_path).has_parameters
    do(act, 0)
    run(Ending, binary, {}, run_dir=tmp_path, resume=True)
    assert (read_run(tmp_path).status, read_run(tmp_path).steps) == ("finished", 9)


def test_a_signal_is_answered_with_a_checkpoint_of_its_step_wherever_the_last_one_is(tmp_path: Path, do):
    do("terminates", 7)
    with pytest.raises(Terminated):
        run(Ending, binary, {}, run_dir=tmp_path, checkpoint_every=2)
    assert steps(tmp_path / "checkpoints") == [6, 7]


def test_a_damaged_checkpoint_that_is_passed_over_at_the_end_is_said(tmp_path: Path, do):
    do("damages", 8)
    with pytest.raises(PairError), pytest.warns(UserWarning, match=r"skipped: .*step-000000006/state\.json"):
        run(Ending, binary, {}, run_dir=tmp_path, checkpoint_every=2)


def test_a_pair_that_no_file_can_hold_is_a_typed_error(tmp_path: Path, do):
    do("widens", 5)
    with pytest.raises(StorageError, match=r"parameters\.safetensors: not written: tensor '.*width'.*complex128"):
        run(Ending, binary, {}, run_dir=tmp_path, checkpoint_every=2)
    assert steps(tmp_path / "checkpoints") == [2, 4]


def test_a_bad_step_that_is_met_again_is_kept_once(tmp_path: Path, do):
    do("spoils", 5)
    for _ in range(3):
        with pytest.raises(EstimateError):
            run(Ending, binary, {}, run_dir=tmp_path, resume="auto", checkpoint_every=2)
    assert files.listed(tmp_path / "bad-steps") == ["step-000000004"]


def test_a_run_that_begins_anew_has_no_bad_steps_of_before(tmp_path: Path, do):
    do("spoils", 2)
    with pytest.raises(EstimateError):
        run(Ending, binary, {}, run_dir=tmp_path)
    assert steps(tmp_path / "bad-steps") == [1]
    files.remove([tmp_path / "checkpoints", tmp_path / "parameters.safetensors"])
    do("spoils", 0)
    run(Ending, binary, {}, run_dir=tmp_path, resume="auto")
    assert not (tmp_path / "bad-steps").exists()


def test_parameters_go_before_the_place_of_an_evaluation_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever evaluates them meanwhile is told, not taken for who has evaluated the run."""
    run(Ending, binary, {"epochs": 1}, run_dir=tmp_path)
    aside, seen = saving.outdate_evaluation, []

    def outdate(root: Path, step: int) -> list[Path]:
        kept = aside(root, step)
        seen.append(RunDirectory(root).has_parameters)
        return kept

    monkeypatch.setattr(saving, "outdate_evaluation", outdate)
    run(Ending, binary, {}, run_dir=tmp_path, resume=True)
    assert seen == [False]


class Hidden(ModuleVAE):
    """Writes to a buffer in a way that torch does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def model(self, x):
        self.runs.data.add_(1.0)
        super().model(x)


def test_evaluation_undoes_writes_that_torch_does_not_see():
    whole, _ = run(Hidden, binary, {"epochs": 1})
    judged, _ = run(Hidden, binary, {"epochs": 1, "validation": binary[:5]})
    assert judged.runs.item() == whole.runs.item() > 0
    pv.log_likelihood(judged, binary, 20, progress=False)
    assert judged.runs.item() == whole.runs.item()
