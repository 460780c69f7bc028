"""What becomes of a step that is not finite (RELIABILITY F6): nothing of it stays, and it can be done again."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.pair import as_pair
from ppl_vae.rundir import RunDirectory
from ppl_vae.storage import newest, steps
from ppl_vae.svi.saving import Saving
from tests.nonfinite import (
    BATCH,
    PER_EPOCH,
    Gaussian,
    Overflowing,
    bad_steps,
    clean,
    overflowing_at,
    poisoned,
    same,
    sgd,
)
from tests.pairs import ModuleVAE, binary_rows
from tests.training import fresh, train

LONG = 5


def test_moments_that_overflow_are_kept_in_no_checkpoint(tmp_path: Path):
    """Parameters stay finite, and never move again: Adagrad, whose sum of squares is infinite, divides by it."""
    with pytest.raises(pv.EstimateError, match=r"step 4: .*optimizer/0/sum, which the optimiser keeps, is not finite"):
        train(fresh(), binary_rows(12), optimizer=Overflowing, run_dir=tmp_path / "run", checkpoint_every=1)
    found = newest(tmp_path / "run" / "checkpoints")
    assert found.step == 3
    assert all(torch.isfinite(t).all() for name, t in found.tensors.items() if name.startswith("optimizer/"))


# Skip


@pytest.mark.parametrize("compile", [False, True])
def test_a_step_that_is_skipped_is_a_step_of_length_zero(compile: bool, interpreted: None, generator: torch.Generator):
    x = clean(generator)
    left_out, zero = fresh(make=Gaussian), fresh(make=Gaussian)
    with pytest.warns(UserWarning, match=r"step \d+: the loss.*site 'x' of the model.*rows \[\d\].*step is skipped"):
        result = sgd(left_out, poisoned(x), on_nonfinite="skip", compile=compile)
    assert result.skipped == tuple(bad_steps(3))
    assert len(result.skipped) == 3
    sgd(zero, x, schedule=lambda step: 0.0 if step in result.skipped else 1.0, compile=compile)
    assert same(left_out, zero)


def test_means_of_an_epoch_are_of_the_rows_that_were_used(quiet: None, generator: torch.Generator):
    x = poisoned(clean(generator))
    result = sgd(fresh(make=Gaussian), x, on_nonfinite="skip", steps=PER_EPOCH)
    assert math.isfinite(result.history[0].elbo)
    seen = []

    class Watched(pv.ELBO):
        def evaluate(self, pair, batch, layout, beta):
            values = super().evaluate(pair, batch, layout, beta)
            seen.append(float(values.elbo))
            return values

    sgd(fresh(make=Gaussian), x, on_nonfinite="skip", steps=PER_EPOCH, objective=Watched(), compile=False)
    used = [value for value in seen[-PER_EPOCH:] if math.isfinite(value)]
    assert len(used) == PER_EPOCH - 1
    assert result.history[0].elbo == pytest.approx(np.mean(used), rel=1e-6)


def test_running_means_keep_nothing_of_a_skipped_step(quiet: None, generator: torch.Generator):
    class Unclamped(Gaussian):
        def guide(self, x):
            with pyro.plate("data", x.shape[0]):
                loc, raw = self.encoder(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    pair = fresh(make=lambda: Unclamped(nn.BatchNorm1d(4)))
    result = sgd(pair, poisoned(clean(generator)), on_nonfinite="skip")
    norm = pair.encoder[1]
    assert int(norm.num_batches_tracked) == 3 * PER_EPOCH - len(result.skipped)
    assert float(norm.running_var.max()) < 1e3


def test_a_fit_that_stops_leaves_buffers_as_they_were_before_the_step(generator: torch.Generator):
    pair = fresh(make=lambda: Gaussian(nn.BatchNorm1d(4)))
    with pytest.raises(pv.EstimateError, match="site 'x' of the model"):
        sgd(pair, poisoned(clean(generator)))
    assert int(pair.encoder[1].num_batches_tracked) == bad_steps(3)[0]


def test_the_explanation_sees_the_buffers_that_the_step_saw():
    class Counting(ModuleVAE):
        def __init__(self):
            super().__init__()
            self.register_buffer("runs", torch.zeros(()))

        def model(self, x):
            self.runs.add_(1.0)
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                edge = torch.where(self.runs == 4.0, torch.nan, 0.0)
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + edge).to_event(1), obs=x)

    pair = fresh(make=Counting)
    with pytest.raises(pv.EstimateError, match=r"step 4: .*site 'x' of the model"):
        train(pair, binary_rows(8), epochs=9)
    assert float(pair.runs) == 3.0


def test_steps_that_are_never_finite_are_not_skipped_for_ever(quiet: None, generator: torch.Generator):
    x = torch.full((64, 3), 1e30)
    with pytest.raises(pv.EstimateError, match="10 steps in a row were not finite, the last: step 10"):
        train(fresh(make=Gaussian), x, batch_size=2, on_nonfinite="skip")


# Rollback


class TooFast(pv.ELBO):
    """Not finite while the learning rate is too high: what the first parameter has become tells."""

    def evaluate(self, pair, batch, layout, beta):
        values = super().evaluate(pair, batch, layout, beta)
        far = next(iter(pair.parameters())).abs().max() > 2.0
        return values._replace(loss=values.loss + torch.where(far, torch.nan, 0.0))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, None, torch.optim.RMSprop])
def test_a_fit_that_went_back_to_its_start_is_one_at_the_lower_rate(optimizer, quiet: None, generator: torch.Generator):
    x = clean(generator)
    back, lower = fresh(make=Gaussian), fresh(make=Gaussian)
    options = {"objective": TooFast(), "optimizer": optimizer, "epochs": 1, "batch_size": 2}
    result = train(back, x, on_nonfinite="rollback", learning_rate=2.0, **options)
    times = len(result.rolled_back)
    assert times >= 1
    rate = 2.0 * 0.5**times
    assert result.history[-1].learning_rate == rate
    train(lower, x, learning_rate=rate, **options)
    assert same(back, lower)


def test_a_fit_goes_back_to_the_end_of_the_last_epoch(generator: torch.Generator):
    x, pair, other, begin = clean(generator), fresh(make=Gaussian), fresh(make=Gaussian), time.monotonic()
    with pytest.warns(UserWarning, match="goes back to step 6, with 0.5 times the learning rate"):
        result = train(
            pair, x, epochs=3, learning_rate=0.01, optimizer=overflowing_at(2 * PER_EPOCH + 1), on_nonfinite="rollback"
        )
    assert result.history[-1].seconds <= result.seconds <= time.monotonic() - begin
    assert result.rolled_back == (2 * PER_EPOCH + 1,)
    assert [record.learning_rate for record in result.history] == [0.01, 0.01, 0.005]
    assert [record.step for record in result.history] == [3, 6, 9]
    sgd(other, x, schedule=lambda step: 0.5 if step >= 2 * PER_EPOCH else 1.0)
    assert same(pair, other)


@pytest.mark.parametrize("distance", [1, 2, 3, 4])
def test_checkpoints_of_steps_that_were_taken_back_are_given_up(
    distance: int, quiet: None, tmp_path: Path, generator: torch.Generator
):
    """Killed right after it went back from a later step to step 6, the fit goes on from 6, at the lower rate."""
    x, bad = clean(generator), 2 * LONG + distance
    x = torch.cat([x, x + 0.1, x - 0.1])[: LONG * BATCH]
    options = {"epochs": 3, "learning_rate": 0.01, "on_nonfinite": "rollback", "checkpoint_every": 1}
    straight, resumed = fresh(make=Gaussian), fresh(make=Gaussian)
    train(straight, x, optimizer=overflowing_at(bad), run_dir=tmp_path / "straight", **options)
    give_up, optimizer = Saving.after_roll_back, overflowing_at(bad)

    def kill(self, loop):
        give_up(self, loop)
        raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saving, "after_roll_back", kill)
        with pytest.raises(RuntimeError, match="killed"):
            train(resumed, x, optimizer=optimizer, run_dir=tmp_path / "run", **options)
    assert steps(tmp_path / "run" / "checkpoints")[-1] == 2 * LONG
    result = train(resumed, x, optimizer=optimizer, run_dir=tmp_path / "run", resume=True, **options)
    assert result.rolled_back == (bad,)
    assert result.history[-1].learning_rate == 0.005
    assert same(straight, resumed)


def test_going_back_has_an_end(quiet: None, generator: torch.Generator):
    with pytest.raises(pv.EstimateError, match="went back 10 times and does not get on: step"):
        sgd(fresh(make=Gaussian), poisoned(clean(generator)), on_nonfinite="rollback")


# What stays on disk


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_that_resumes_knows_what_it_has_left_out(policy: str, quiet: None, tmp_path: Path, generator):
    x = poisoned(clean(generator)) if policy == "skip" else clean(generator)
    objective = pv.ELBO() if policy == "skip" else TooFast()
    options = {"objective": objective, "learning_rate": 0.01 if policy == "skip" else 2.0, "on_nonfinite": policy}
    options |= {"batch_size": 2, "optimizer": torch.optim.SGD, "schedule": lambda _: 1.0}
    straight, stopped = fresh(make=Gaussian), fresh(make=Gaussian)
    wanted = train(straight, x, **options, epochs=4)
    train(stopped, x, **options, epochs=2, run_dir=tmp_path / "run")
    found = train(fresh(make=Gaussian), x, **options, epochs=4, run_dir=tmp_path / "run", resume=True)
    assert (found.skipped, found.rolled_back) == (wanted.skipped, wanted.rolled_back)
    assert found.skipped or found.rolled_back
    assert found.history[-1].objective == wanted.history[-1].objective


@pytest.mark.parametrize("late", [False, True], ids=["mid-run", "last step"])
def test_no_checkpoint_holds_what_is_not_finite(late: bool, tmp_path: Path):
    """An update can overflow though loss and gradient were finite."""
    bad = 4 if late else 3
    options = {"optimizer": overflowing_at(bad), "run_dir": tmp_path, "checkpoint_every": 1}
    pair = fresh()
    with pytest.raises(pv.EstimateError, match=rf"step {bad}: .* the update has made .*parameter '.*' is not finite"):
        train(pair, binary_rows(8), **options)
    assert steps(tmp_path / "checkpoints") == [bad - 2, bad - 1]
    kept = newest(tmp_path / "checkpoints").tensors
    assert all(bool(torch.isfinite(kept[name]).all()) for name in kept if name != "history")
    assert all(torch.equal(kept[f"parameter/{name}"], value) for name, value in as_pair(pair).named_parameters())
    other = as_pair(fresh(seed=9))
    RunDirectory(tmp_path).read_parameters(other)
    assert same(pair, other)
    assert steps(tmp_path / "bad-steps") == []  # its parameters are lost


def test_parameters_that_are_not_finite_are_written_nowhere(tmp_path: Path):
    """Not even where no checkpoint is there yet, and a step that is not finite is only the sign of it."""
    with pytest.raises(pv.EstimateError, match=r"step 1: loss and gradient were finite"):
        train(fresh(), binary_rows(8), optimizer=overflowing_at(1), run_dir=tmp_path, on_nonfinite="skip")
    assert not (tmp_path / "parameters.safetensors").exists()
    assert not (tmp_path / "bad-steps").exists()


def test_parameters_are_finite_when_they_are_handed_over():
    with pytest.raises(pv.EstimateError, match=r"step 4: .*parameter '.*' is not finite"):
        train(fresh(), binary_rows(8), optimizer=overflowing_at(4))


def test_a_mask_that_is_infinite_by_design_is_no_fault(tmp_path: Path):
    class Masked(ModuleVAE):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.full((3,), -math.inf))

    result = train(fresh(make=Masked), binary_rows(8), run_dir=tmp_path / "run", checkpoint_every=1)
    assert result.steps == 4


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="on_nonfinite: expected 'stop', 'skip' or 'rollback', found 'ignore'"):
        train(fresh(), binary_rows(4), on_nonfinite="ignore")
