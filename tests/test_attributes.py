"""What Python keeps beside parameters and buffers is seen to change wherever programs reach it, and put back."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.attributes import Attributes
from ppl_vae.pair import as_pair, kept_state

WEIGHT = 1.0
ARRAY = np.ones(2)


def helper():
    """A function that keeps a number."""

    def inner():
        pass

    inner.weight = 1.0
    return inner


class Slotted:
    """Keeps its attributes without a dictionary."""

    __slots__ = ("weight",)

    def __init__(self):
        self.weight = 1.0


class Config:
    """A class as a namespace."""

    weight = 1.0


class Keeping(nn.Module):
    """Reads a weight wherever Python may keep one."""

    weight = 1.0

    def __init__(self):
        super().__init__()
        self.encoder, self.norm = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5)), nn.BatchNorm1d(3)
        self.order, self.helper = {"a": 1.0, "b": 2.0}, helper()
        self.options, self.weights, self.held = {"weight": 1.0}, [1.0], SimpleNamespace(weight=1.0)
        self.array, self.pair_of = np.ones(3), (np.zeros(2), 1.0)
        self.queue, self.names, self.slotted = deque([1.0]), {"a"}, Slotted()
        self.prior = dist.Normal(torch.zeros(2), 1.0)
        self._cached_weight, self.zero, self.ones = 1.0, 0.0, {1.0}
        self.tensor = torch.tensor(1.0)
        self.register_buffer("buffer", torch.tensor(1.0))

    def set_global(self):
        global WEIGHT
        WEIGHT = 2.0

    def product(self):
        return float(ARRAY[0]) * WEIGHT * Config.weight * self.held.weight

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
    "self.order": lambda own: own.order.update(a=own.order.pop("a")),
    "self.helper.weight": lambda own: setattr(own.helper, "weight", 2.0),
    "self.weights.0": lambda own: own.weights.__setitem__(0, 2.0),
    "self.weights": lambda own: own.weights.append(2.0),
    "self.encoder.1.p": lambda own: setattr(own.encoder[1], "p", 0.1),
    "self.encoder.1.training": lambda own: own.encoder[1].eval(),
    "self.encoder.0": lambda own: own.encoder.__setitem__(0, nn.Linear(3, 1)),
    "self.tensor": lambda own: setattr(own, "tensor", torch.tensor(2.0)),
    "self.buffer": lambda own: setattr(own, "buffer", torch.tensor(2.0)),
    "self.array": lambda own: own.array.__setitem__(0, 2.0),
    "self.pair_of.0": lambda own: own.pair_of[0].fill(2.0),
    "ARRAY": lambda own: ARRAY.fill(2.0),
    "self.queue.0": lambda own: own.queue.__setitem__(0, 2.0),
    "self.queue": lambda own: own.queue.append(2.0),
    "self.names": lambda own: own.names.add("b"),
    "self.zero": lambda own: setattr(own, "zero", -0.0),
    "self.ones": lambda own: (own.ones.clear(), own.ones.add(1)),
    "self.slotted.weight": lambda own: setattr(own.slotted, "weight", 2.0),
    "self.prior.scale": lambda own: setattr(own.prior, "scale", torch.full((2,), 2.0)),
    "self._cached_weight": lambda own: setattr(own, "_cached_weight", 2.0),
    "self.encoder.0.forward_hooks.": lambda own: own.encoder[0].register_forward_hook(lambda *run: run[2] * 2),
    "self.norm.forward_hooks.": lambda own: own.norm.register_forward_pre_hook(lambda module, run: (run[0] * 2,)),
    "Config.weight": lambda own: setattr(Config, "weight", 2.0),
    "WEIGHT": lambda own: own.set_global(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_by_name_and_undone(name):
    own = Keeping()
    attributes = Attributes(as_pair(own))
    assert attributes.outdated() is None
    CHANGES[name](own)
    found = attributes.outdated().name
    assert found == name or (name.endswith(".") and found.startswith(name))
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


class Doubling(torch.distributions.transforms.AffineTransform):
    """A class of the user's that torch keeps its cache in."""

    def __init__(self, cache_size=0):
        super().__init__(0.0, 2.0, cache_size=cache_size)


def test_what_means_nothing_is_no_change():
    own = Keeping()
    own.flow, own.counts = Doubling(cache_size=1), dist.Categorical(logits=torch.zeros(2))
    attributes = Attributes(as_pair(own))
    own.norm(torch.randn(4, 3))
    own.held.weight = 2.0 / 2.0  # another object, the same number
    own.flow(torch.zeros(1))  # keeps the last pair
    assert own.flow.inv(torch.zeros(1)) == 0.0
    assert own.counts.probs.shape == (2,)  # computed when asked
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
        self.array += 1.0
        self.slotted.weight += 1.0
        self.queue[0] += 1.0
        self.names.discard("a")
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
    assert own.queue[0] == own.slotted.weight == own.array.max() == 1.0
    assert own.names == {"a"}
    assert not hasattr(own, "last")
    assert own.seen  # a record stays
    assert own.made.runs == 1  # and so does what the first run made


def test_the_validation_of_a_fit_counts_for_nothing():
    x = torch.randn(6, 3)
    one, other = Counting(), Counting()
    other.load_state_dict(one.state_dict())
    options = {"epochs": 2, "batch_size": 6, "compile": False, "progress": False}
    pv.fit(one, x, **options)
    found = pv.fit(other, x, validation=x, **options)
    assert (one.runs, other.runs) == (2, found.best_step)  # the best pair is put back as it was, a step an epoch


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
