"""What Python keeps beside parameters and buffers is seen to change wherever programs reach it, and put back."""

from __future__ import annotations

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.attributes import Attributes
from ppl_vae.pair import as_pair, kept_state

WEIGHT = 1.0


class Config:
    """A class as a namespace."""

    weight = 1.0


class Keeping(nn.Module):
    """Reads a weight wherever Python may keep one."""

    weight = 1.0

    def __init__(self):
        super().__init__()
        self.encoder, self.norm = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5)), nn.BatchNorm1d(3)
        self.options, self.weights, self.held = {"weight": 1.0}, [1.0], SimpleNamespace(weight=1.0)
        self.tensor = torch.tensor(1.0)
        self.register_buffer("buffer", torch.tensor(1.0))

    def set_global(self):
        global WEIGHT
        WEIGHT = 2.0

    def product(self):
        return WEIGHT * Config.weight * self.held.weight

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x.new_zeros(1), self.weight).to_event(1))
            pyro.sample("x", dist.Normal(x, self.product()).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


CHANGES = {
    "self.weight": lambda own: setattr(own, "weight", 2.0),
    "self.held.weight": lambda own: setattr(own.held, "weight", 2.0),
    "self.options.weight": lambda own: own.options.update(weight=2.0),
    "self.options.other": lambda own: own.options.update(other=2.0),
    "self.weights.0": lambda own: own.weights.__setitem__(0, 2.0),
    "self.weights": lambda own: own.weights.append(2.0),
    "self.encoder.1.p": lambda own: setattr(own.encoder[1], "p", 0.1),
    "self.encoder.1.training": lambda own: own.encoder[1].eval(),
    "self.encoder.0": lambda own: own.encoder.__setitem__(0, nn.Linear(3, 1)),
    "self.tensor": lambda own: setattr(own, "tensor", torch.tensor(2.0)),
    "self.buffer": lambda own: setattr(own, "buffer", torch.tensor(2.0)),
    "Config.weight": lambda own: setattr(Config, "weight", 2.0),
    "WEIGHT": lambda own: own.set_global(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_by_name_and_undone(name):
    own = Keeping()
    attributes = Attributes(as_pair(own))
    assert attributes.outdated() is None
    CHANGES[name](own)
    assert attributes.outdated().name == name
    attributes.restore()
    assert attributes.outdated() is None
    assert WEIGHT == Config.weight == own.weight == own.held.weight == 1.0


def test_variables_of_a_closure():
    weight = 1.0

    def change():
        nonlocal weight
        weight = 2.0

    own = Keeping()
    attributes = Attributes(pv.Pair(lambda x: own.model(weight * x), own.guide))
    change()
    assert attributes.outdated()[:] == ("weight", "1.0", "2.0")
    attributes.restore()
    assert weight == 1.0


def test_what_means_nothing_is_no_change():
    own = Keeping()
    attributes = Attributes(as_pair(own))
    own.norm(torch.randn(4, 3))
    own.held.weight = 2.0 / 2.0  # another object, the same number
    own._cached_pair = (1.0, 2.0)
    own.tensor.fill_(2.0)  # a graph reads it where it is
    assert attributes.outdated() is None
    assert attributes.moved() == "self.tensor"


class Counting(Keeping):
    """Counts its runs in every way, records them, and makes something on the first one."""

    runs = 0

    def __init__(self):
        super().__init__()
        self.made, self.seen = None, []

    def guide(self, x):
        self.runs += 1
        self.held.weight += 1.0
        self.options["weight"] += 1.0
        self.tensor.add_(1.0)
        self.last = float(x.sum())
        self.seen.append(self.runs)
        if self.made is None:
            self.made = SimpleNamespace(runs=self.runs)
        super().guide(x)


EVALUATIONS = {
    "check": lambda pair, x: pv.check(pair, x),
    "log_likelihood": lambda pair, x: pv.log_likelihood(pair, x, 20, progress=False),
    "prepare": lambda pair, x: as_pair(pair).prepare(x),
}


@pytest.mark.parametrize("evaluate", EVALUATIONS.values(), ids=EVALUATIONS.keys())
def test_an_evaluation_puts_back_what_programs_count(evaluate):
    own = Counting()
    evaluate(own, torch.randn(6, 3))
    assert own.runs == 0
    assert own.held.weight == own.options["weight"] == float(own.tensor) == 1.0
    assert not hasattr(own, "last")
    assert own.seen  # a record stays
    assert own.made.runs == 1  # and so does what the first run made


def test_the_validation_of_a_fit_counts_for_nothing():
    x = torch.randn(6, 3)
    one, other = Counting(), Counting()
    other.load_state_dict(one.state_dict())
    options = {"epochs": 2, "batch_size": 6, "compile": False, "progress": False}
    pv.fit(one, x, **options)
    pv.fit(other, x, validation=x, **options)
    assert one.runs == other.runs == 2


def test_a_module_that_registers_on_its_first_run_is_left_as_it_is():
    class Late(nn.Module):
        built = False

        def forward(self, x):
            if not self.built:
                self.built, self.linear = True, nn.Linear(3, 1)
            return self.linear(x)

    late = Late()
    with kept_state(late):
        late(torch.zeros(2, 3))
    assert late.built
