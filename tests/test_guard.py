"""A bad step may be noticed late, on a GPU that a look would stall, where steps move nothing but parameters."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.svi import guard, stepper
from tests.nonfinite import same
from tests.pairs import DiscreteVAE, ModuleVAE, binary_rows
from tests.training import fresh, train


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[guard.Guard]:
    """The guards of the fits of a test, on a CPU that is treated as a GPU: its fused optimisers can be told, too."""
    made = []

    class Noted(guard.Guard):
        def __init__(self, device):
            super().__init__(device)
            made.append(self)

    monkeypatch.setattr(guard, "_STALLED", ("cpu", "cuda"))
    monkeypatch.setattr(stepper, "Guard", Noted)
    return made


class Averaging(torch.optim.Optimizer):
    """Has the defaults of a fused optimiser, which takes the steps and is told nothing."""

    def __init__(self, params, lr):
        self.inner = torch.optim.Adam(params, lr=lr, fused=True)
        self.defaults, self.param_groups, self.state = self.inner.defaults, self.inner.param_groups, self.inner.state

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    def step(self, closure=None):
        self.inner.step()


class Resting(ModuleVAE):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))


class Normalised(ModuleVAE):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


class Counting(ModuleVAE):
    calls = 0

    def guide(self, x):
        self.calls += 1
        return super().guide(x)


FUSED = partial(torch.optim.Adam, fused=True)
CASES = {
    "a constant buffer": (Resting, {}, True),
    "torch's own": (ModuleVAE, {"optimizer": FUSED}, True),
    "rollback": (ModuleVAE, {"on_nonfinite": "rollback"}, True),
    "not fused": (ModuleVAE, {"optimizer": torch.optim.Adam}, False),
    "an inner optimiser": (ModuleVAE, {"optimizer": Averaging}, False),
    "a step that is left out": (ModuleVAE, {"on_nonfinite": "skip"}, False),
    "running means": (Normalised, {}, False),
    "an average of the objective": (DiscreteVAE, {"objective": pv.ELBO(baseline="running")}, False),
    "a number": (Counting, {}, False),
}


@pytest.mark.parametrize("name", CASES)
def test_where_a_bad_step_may_be_noticed_late(name: str, guards: list[guard.Guard]):
    make, options, late = CASES[name]
    train(fresh(make=make), binary_rows(12), **options)
    assert guards[0].late == late


@pytest.mark.parametrize("optimizer", [None, FUSED])
def test_parameters_are_those_before_the_first_bad_step(optimizer, guards: list[guard.Guard]):
    x, stopped, before = binary_rows(8), fresh(), fresh()
    ends = pv.ELBO(beta=lambda step: math.nan if step == 7 else 1.0)
    with pytest.raises(pv.EstimateError, match=r"step 8: .* beta is nan"):
        train(stopped, x, epochs=30, batch_size=1, objective=ends, optimizer=optimizer)
    assert guards[0].late
    train(before, x, epochs=None, steps=7, batch_size=1, optimizer=optimizer)
    assert same(stopped, before)


def test_a_buffer_that_begins_to_move_after_a_bad_step_is_put_back(guards: list[guard.Guard]):
    x, stopped, before = binary_rows(8), fresh(make=Resting), fresh(make=Resting)

    def beta(step):
        if step == 5:
            stopped.mean.fill_(1.0)
        return math.nan if step == 3 else 1.0

    with pytest.raises(pv.EstimateError, match=r"step 4: .* beta is nan"):
        train(stopped, x, epochs=30, batch_size=1, objective=pv.ELBO(beta=beta))
    assert not guards[0].late
    train(before, x, epochs=None, steps=3, batch_size=1)
    assert same(stopped, before)


def test_an_optimiser_is_told_for_one_step_alone(guards: list[guard.Guard]):
    """Else it would leave out the steps after a rollback, when nothing is said any more."""
    made = []

    def optimizer(parameters, lr):
        made.append(FUSED(parameters, lr=lr))
        return made[0]

    train(fresh(), binary_rows(8), optimizer=optimizer)
    assert guards[0].late
    assert not hasattr(made[0], "found_inf")
