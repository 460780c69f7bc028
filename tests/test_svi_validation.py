"""Means over an epoch and over held-out data, and the parameters that validation keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.rundir import RunDirectory
from tests.pairs import ModuleVAE, binary_rows, closure_pair, small_ppca
from tests.statistical import assert_close
from tests.training import fresh, state, train


class ExactPPCA(nn.Module):
    """PPCA with its posterior and one parameter that starts where it changes nothing: every weight is log p(x)."""

    def __init__(self):
        super().__init__()
        self.ppca, self.shift = small_ppca(), nn.Parameter(torch.zeros(4))

    def model(self, x):
        self.ppca.model(x)

    def guide(self, x):
        self.ppca.guide(x + self.shift)


@pytest.mark.usefixtures("float64")
def test_means_of_an_epoch_and_of_held_out_data_are_means_over_rows():
    """R2, to rounding: 5 rows in batches of 4, 700 held-out rows in blocks of 512."""
    pair = ExactPPCA()
    x, held_out = pair.ppca.sample(5, seed=1), pair.ppca.sample(700, seed=2)
    result = train(pair, x, epochs=1, objective=pv.IWAE(2), validation=held_out, learning_rate=1e-14)
    assert_close(result.history[0].elbo, pair.ppca.log_prob(x).mean())
    assert_close(result.history[0].validation_elbo, pair.ppca.log_prob(held_out).mean())


@pytest.mark.usefixtures("float64")
def test_the_bound_of_held_out_data_comes_in_two_terms():
    pair = ExactPPCA()
    x, held_out = pair.ppca.sample(5, seed=1), pair.ppca.sample(700, seed=2)
    record, later = train(pair, x, epochs=2, validation=held_out, learning_rate=1e-14).history
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    divergence = torch.distributions.kl_divergence(pair.ppca.posterior(held_out), prior)
    assert_close(record.validation_rate, divergence.mean())
    assert_close(record.validation_elbo, -(record.validation_distortion + record.validation_rate))
    assert record.validation_kl == later.validation_kl == {}
    assert record.validation_kl is not later.validation_kl


@pytest.mark.usefixtures("float64")
def test_the_kl_of_each_scalar_is_recorded_where_asked_for(tmp_path):
    """Against a ledger of the same parameters; what trains is what trains without."""
    torch.manual_seed(0)
    x, held_out = binary_rows(20, seed=1).double(), binary_rows(600, seed=2).double()
    pair, without = ModuleVAE().double(), ModuleVAE().double()
    without.load_state_dict(pair.state_dict())
    result = train(pair, x, epochs=3, validation=held_out, record_kl=True, run_dir=tmp_path / "run")
    plain = train(without, x, epochs=3, validation=held_out)
    assert result.history.kl("z").shape == (3, 2)
    assert_close(result.history.kl("z").sum(1), result.history["validation_rate"])
    assert_close(plain.history["validation_elbo"], result.history["validation_elbo"])
    assert all(torch.equal(a, b) for a, b in zip(pair.parameters(), without.parameters(), strict=True))
    assert result.best_step == result.steps
    found = pv.ledger(pair, held_out, 2, num_aggregate=0, progress=False)
    assert_close(result.history.kl("z")[-1], found.latents[0].kl.mean(0))
    lines = RunDirectory(tmp_path / "run").read_history()
    assert_close([line["validation_kl"]["z"] for line in lines], result.history.kl("z"))
    with pytest.raises(ValueError, match=r"site 'z'.*record_kl=True"):
        plain.history.kl("z")
    with pytest.raises(ValueError, match=r"site 'y': expected a recorded KL, found that of 'z'; ask for"):
        result.history.kl("y")
    with pytest.raises(ValueError, match="record_kl: expected validation data"):
        train(pair, x, epochs=1, record_kl=True)


def test_validation_keeps_the_best_parameters_and_stops():
    """Training on eight rows overfits; the parameters kept are those of the best epoch."""
    torch.manual_seed(0)
    x, held_out = binary_rows(8, seed=1), binary_rows(100, seed=2)
    pair = fresh()
    result = train(pair, x, validation=held_out, patience=5, epochs=500, learning_rate=3e-2)
    best = int(np.argmax(result.history["validation_elbo"]))
    assert result.stopped_early
    assert len(result.history) == best + 1 + 5
    assert result.best_step == result.history[best].step
    again = fresh()
    train(again, x, epochs=best + 1, learning_rate=3e-2)
    assert all(torch.equal(a, b) for a, b in zip(pair.parameters(), again.parameters(), strict=True))


def test_the_best_buffers_are_kept_with_the_best_parameters():
    """Running means of a batch norm: those of the best epoch, and none of a held-out row in them."""

    def make():
        module = ModuleVAE()
        module.encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        return module

    x, held_out = binary_rows(8, seed=1), binary_rows(100, seed=2)
    pair, again = fresh(make=make), fresh(make=make)
    result = train(pair, x, validation=held_out, epochs=60, learning_rate=3e-2)
    best = int(np.argmax(result.history["validation_elbo"]))
    assert best + 1 < 60
    train(again, x, epochs=best + 1, learning_rate=3e-2)
    assert all(torch.equal(value, state(again)[name]) for name, value in state(pair).items())


def test_held_out_data_are_seen_in_evaluation_mode():
    """100 held-out rows, batches of 8: dropout and batch norms of the former are off, of the latter on."""
    pair, seen = fresh(), set()
    pair.encoder.register_forward_hook(lambda module, inputs, _: seen.add((len(inputs[0]), module.training)))
    train(pair, binary_rows(8, seed=1), validation=binary_rows(100, seed=2), epochs=2, batch_size=8)
    assert (100, False) in seen
    assert (100, True) not in seen
    assert (8, True) in seen


def test_validating_does_not_change_the_training():
    x = binary_rows(8)
    plain, watched = (train(fresh(), x, epochs=4, **more).history["elbo"] for more in ({}, {"validation": x}))
    assert (plain == watched).all()


def test_held_out_data_have_noise_of_their_own_that_never_changes():
    result = train(ModuleVAE(), torch.rand(8, 5), validation=torch.rand(20, 5), binarize="dynamic", learning_rate=1e-12)
    first, second = result.history["validation_elbo"]
    assert_close(first, second, torch.float32)
    assert abs(result.history[0].elbo - result.history[1].elbo) > 1e-3


def test_a_validation_that_is_not_finite_is_an_error():
    x, held_out = torch.randn(8, 3), torch.full((2, 3), 3e38)
    with pytest.raises(pv.EstimateError, match="validation data is not finite"):
        train(closure_pair(), x, validation=held_out)


@pytest.mark.parametrize("shapes", [[(20, 4)], [(20,)], [(20, 5), (20,)]], ids=str)
def test_validation_data_of_another_form_are_refused_before_the_first_step(shapes):
    held_out = tuple(torch.zeros(shape) for shape in shapes)
    with pytest.raises(pv.DataError, match=r"validation data: the pair does not take them.*like those that it trains"):
        train(ModuleVAE(), binary_rows(8), validation=held_out)


def test_a_row_outside_its_support_in_validation_data_is_said_to_be_there():
    held_out = binary_rows(20)
    held_out[3] = 0.5
    with pytest.raises(pv.DataError, match="validation data: site 'x', row 3"):
        train(ModuleVAE(), binary_rows(8), validation=held_out)
