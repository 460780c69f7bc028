"""Numbers that stop being finite (RELIABILITY F6), and what a fit cannot go on with, are named."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.distributed import Group
from ppl_vae.svi.order import Order
from tests.pairs import DiscreteVAE, ModuleVAE, binary_rows
from tests.training import state, train
from tests.zoo import Plain


class Exploding(ModuleVAE):
    """log of a difference that becomes negative when the third parameter moves far enough."""

    def __init__(self):
        super().__init__()
        self.edge = nn.Parameter(torch.tensor(0.05))

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            loc, _ = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, self.edge.log() + 3.5).to_event(1))


def test_a_number_that_is_not_finite_stops_the_fit_before_the_step():
    """F6: the first bad site is named, and no parameter is NaN."""
    pair = Exploding()
    with pytest.raises(pv.EstimateError, match=r"step \d+.*site 'z' of the guide.*rows"):
        train(pair, binary_rows(8), epochs=400, optimizer=torch.optim.SGD, learning_rate=0.2)
    assert all(bool(torch.isfinite(p).all()) for p in pair.parameters())


def test_the_site_is_named_for_many_particles():
    """The diagnosis repeats the noise of the step: a site that fails for one draw in a hundred is found."""

    class Rare(ModuleVAE):
        def model(self, x):
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                edge = torch.where(z[..., :1] > 3.0, torch.nan, 0.0)
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + edge).to_event(1), obs=x)

    with pytest.raises(pv.EstimateError, match=r"step \d+.*site 'x' of the model.*rows \[\d"):
        train(Rare(), binary_rows(8), objective=pv.ELBO(num_particles=100), epochs=50)


def test_an_infinite_gradient_is_seen_though_the_loss_is_finite():
    class Root(ModuleVAE):
        def guide(self, x):
            with pyro.plate("data", x.shape[0]):
                loc, raw = self.encoder(x).chunk(2, -1)
                scale = 1.0 + (raw * 0.0).sqrt()
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    pair = Root()
    before = state(pair)
    with pytest.raises(pv.EstimateError, match=r"step 1.*gradient of parameter 'programs.self.encoder"):
        train(pair, binary_rows(8))
    assert all(torch.equal(before[k], v) for k, v in state(pair).items())


class Normalised(ModuleVAE):
    """A batch norm, which needs two rows to train."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


@pytest.mark.parametrize(("rows", "batch_size"), [(9, 8), (9, 4), (1, 8), (6, 1)])
def test_a_batch_of_one_row_is_found_before_the_first_step(tmp_path, rows, batch_size):
    pair = Normalised()
    before = state(pair)
    with pytest.raises(pv.PairError, match=r"'programs.self.encoder.1' \(BatchNorm1d\).*one row.*batch_size such that"):
        train(pair, binary_rows(rows), batch_size=batch_size, run_dir=tmp_path / "run")
    assert all(torch.equal(before[k], v) for k, v in state(pair).items())
    assert pair.encoder[1].training
    assert not (tmp_path / "run").exists()


def test_a_batch_of_one_row_is_refused_only_where_there_is_one():
    x = binary_rows(9)
    assert train(Normalised(), x, batch_size=8, epochs=None, steps=1).steps == 1
    assert train(Normalised(), x, batch_size=7).steps == 4
    assert train(ModuleVAE(), x, batch_size=8).steps == 4
    group = Group(0, 3)  # batches of 4 are shares of 2, 1 and 1
    assert Order(8, 4, 0, group=group).has_single_rows(1)
    assert not Order(12, 6, 0, group=group).has_single_rows(9)
    assert Order(7, 6, 0, group=group).has_single_rows(2)
    assert not Order(7, 6, 0, group=group).has_single_rows(1)


def test_what_a_program_raises_in_mid_training_names_the_step_and_the_rows():
    class Late(ModuleVAE):
        armed = False

        def guide(self, x):
            if self.armed and len(x) == 2:
                raise KeyError("late")
            super().guide(x)

    class Arm(torch.optim.SGD):
        def step(self, closure=None):
            pair.armed = True
            return super().step(closure)

    pair = Late()
    with pytest.raises(pv.PairError, match=r"step 3, on 2 rows, failed: KeyError: 'late'") as caught:
        train(pair, binary_rows(10), batch_size=4, optimizer=Arm)
    assert isinstance(caught.value.__cause__, KeyError)


def test_what_a_program_raises_on_held_out_data_names_them():
    class Late(ModuleVAE):
        def guide(self, x):
            if len(x) == 9 and not self.training:  # more rows than are tried before the first step
                raise RuntimeError("nine")
            super().guide(x)

    with pytest.raises(pv.PairError, match=r"validation after step 2, rows 0 to 8, failed: RuntimeError: nine"):
        train(Late(), binary_rows(10), batch_size=5, validation=binary_rows(9))


def embedding_pair(sparse):
    class Embedded(ModuleVAE):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(2, 4, sparse=sparse)

        def guide(self, x):
            with pyro.plate("data", x.shape[0]):
                loc, raw = (self.encoder(x) + self.table(x[:, 0].long())).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return Embedded()


def test_sparse_gradients_are_refused():
    train(embedding_pair(sparse=False), binary_rows(8))
    with pytest.raises(pv.PairError, match=r"'programs.self.table.weight': expected a dense gradient"):
        train(embedding_pair(sparse=True), binary_rows(8))


def test_a_loss_that_reaches_nothing_that_trains():
    pair = DiscreteVAE()
    for p in pair.parameters():
        p.requires_grad_(False)
    pair.other = nn.Linear(2, 2)
    with pytest.raises(pv.PairError, match=r"reaches none of the 2.*'programs.self.other.weight'.*requires_grad_"):
        train(pair, binary_rows(8))


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)])
def test_gradients_that_are_switched_off_outside_are_said(off, tmp_path):
    pair, x = ModuleVAE(), binary_rows(8)
    with off(), pytest.raises(pv.PplVaeError, match=r"found them switched off where this is called: .*no_grad\(\)"):
        train(pair, x, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("schedule", ["beta", "learning rate"])
def test_a_schedule_that_is_not_a_number_is_named(schedule):
    broken = lambda step: math.nan if step == 2 else 1.0  # noqa: E731
    if schedule == "beta":
        with pytest.raises(pv.EstimateError, match=r"step 3.*beta is nan"):
            train(ModuleVAE(), binary_rows(8), objective=pv.ELBO(beta=broken))
    else:
        with pytest.raises(ValueError, match=r"schedule: expected a finite factor.*nan at step 3"):
            train(ModuleVAE(), binary_rows(8), schedule=broken)


@pytest.mark.parametrize("factor", ["a", None, torch.ones(2), np.ones(2)])
def test_a_schedule_that_gives_no_single_number_is_named(factor):
    with pytest.raises(ValueError, match=r"schedule: expected a finite factor .*, found .* at step 1"):
        train(ModuleVAE(), binary_rows(8), schedule=lambda step: factor)


def freeze(pair):
    pair.decoder.weight.requires_grad_(False)


def replace(pair):
    pair.decoder.weight = nn.Parameter(torch.ones_like(pair.decoder.weight))


def assign(pair):
    pair.load_state_dict({key: torch.ones_like(value) for key, value in pair.state_dict().items()}, assign=True)


def reparametrise(pair):
    nn.utils.parametrizations.weight_norm(pair.decoder)


def unfreeze(pair):
    pair.decoder.bias.requires_grad_(True)


@pytest.mark.parametrize("compile", [False, True], ids=["as written", "compiled"])
@pytest.mark.parametrize("change", [freeze, replace, assign, reparametrise, unfreeze])
def test_parameters_that_change_during_a_fit_are_named(change, compile, interpreted):
    pair = Plain(nn.Linear(6, 4))
    pair.decoder.bias.requires_grad_(change is not unfreeze)

    def schedule(step):
        if step == 3:
            change(pair)
        return 1.0

    options = {"batch_size": 8, "epochs": 3, "progress": False, "device": "cpu", "compile": compile}
    with pytest.raises(pv.PairError, match=r"self\.\w+\.\w+': the parameters of the pair changed during the fit"):
        pv.fit(pair, torch.randn(24, 6), schedule=schedule, **options)


def test_a_frozen_parameter_may_be_replaced_during_a_fit(interpreted):
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))

    def fit_of(pair, compile):
        pair.decoder.bias.requires_grad_(False)

        def schedule(step):
            if step == 3:
                pair.decoder.bias = nn.Parameter(torch.ones(6), requires_grad=False)
            return 1.0

        options = {"batch_size": 8, "epochs": 3, "progress": False, "device": "cpu", "compile": compile}
        pv.fit(pair, x, schedule=schedule, **options)

    one, other = Plain(nn.Linear(6, 4)), Plain(nn.Linear(6, 4))
    other.load_state_dict(one.state_dict())
    fit_of(one, False)
    with pytest.warns(UserWarning, match="goes on uncompiled: 'self.decoder.bias'"):
        fit_of(other, True)
    torch.testing.assert_close(one.encoder.weight, other.encoder.weight, rtol=1e-4, atol=1e-5)


def test_what_an_optimiser_refuses_is_a_typed_error_that_names_the_step():
    options = {"steps": 2, "batch_size": 4, "compile": False, "progress": False}
    with pytest.raises(
        pv.PairError, match=r"^step 1: the optimiser, failed: RuntimeError: SparseAdam does not support"
    ):
        pv.fit(ModuleVAE(), binary_rows(8), optimizer=torch.optim.SparseAdam, **options)
