"""Parameters are found wherever Pyro lets users keep them, and belong to one pair."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

import ppl_vae as pv
from ppl_vae.discovery import globals_in
from ppl_vae.holders import holders
from ppl_vae.pair import as_pair
from tests import pairs
from tests.pairs import ModuleVAE, binary_rows, closure_pair

GLOBAL_DECODER = nn.Linear(1, 3)


def global_model(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(GLOBAL_DECODER(z), 1.0).to_event(1), obs=x)


def global_guide(x, encoder):
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))


class Holder:
    """A plain object that keeps modules in a dictionary."""

    def __init__(self):
        self.networks = {"decoder": nn.Linear(1, 3), "encoder": nn.Linear(3, 1)}

    def model(self, x):
        pyro.module("decoder", self.networks["decoder"])
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.networks["decoder"](z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.networks["encoder"])
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(self.networks["encoder"](x), 0.5).to_event(1))


class Shelf:
    """Modules as class attributes of a plain class, one of them inherited, one in a list."""

    decoder = nn.Linear(1, 3)


class ClassHolder(Shelf):
    """A class method and a static method that use them."""

    encoders: ClassVar = [nn.Linear(3, 1)]

    @classmethod
    def model(cls, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(cls.decoder(z), 1.0).to_event(1), obs=x)

    @staticmethod
    def guide(x):
        global_guide(x, ClassHolder.encoders[0])


class Programs(PyroModule):
    """Model as the forward of a PyroModule with a constrained PyroParam."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(1, 3)
        self.noise = PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.noise).to_event(1), obs=x)


class Recogniser(nn.Module):
    """Guide as the forward of an nn.Module."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 1)

    def forward(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


PAIRS = {
    "closures": closure_pair,
    "global and partial": lambda: pv.Pair(global_model, functools.partial(global_guide, encoder=nn.Linear(3, 1))),
    "plain object": Holder,
    "class attributes": ClassHolder,
    "PyroModule": lambda: pv.Pair(Programs(), Recogniser()),
    "namespace": lambda: SimpleNamespace(model=Programs(), guide=Recogniser()),
}


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS.keys())
def test_every_parameter_trains_and_the_global_store_stays_empty(make):
    pair = make()
    x = torch.randn(32, 3) + 1.0
    first = pv.fit(pair, x, epochs=1, learning_rate=1e-2, progress=False)
    names = [name for name, _ in first.report.parameters]
    before = {name: p.detach().clone() for name, p in as_pair(pair).named_parameters()}
    result = pv.fit(pair, x, epochs=10, learning_rate=1e-2, progress=False)
    assert len(names) >= 4
    assert all(not torch.equal(before[name], p) for name, p in as_pair(pair).named_parameters())
    assert result.history[-1].elbo > first.history[0].elbo
    assert len(pyro.get_param_store()) == 0


def test_a_module_that_pyro_was_never_told_of_trains():
    """`SVI.step` leaves such a module alone without a word."""
    pair = pv.Pair(global_model, functools.partial(global_guide, encoder=nn.Linear(3, 1)))
    before = GLOBAL_DECODER.weight.detach().clone()
    pv.fit(pair, torch.randn(16, 3), epochs=1, progress=False)
    assert not torch.equal(before, GLOBAL_DECODER.weight)


def test_a_global_that_has_the_name_of_an_attribute_is_not_of_the_pair(monkeypatch: pytest.MonkeyPatch):
    """A notebook has a `decoder` of something else, and a program says `self.decoder`."""
    before = dict(as_pair(ModuleVAE()).named_parameters())
    monkeypatch.setattr(pairs, "decoder", nn.Linear(50, 700), raising=False)
    pair = as_pair(ModuleVAE())
    assert dict(pair.named_parameters()).keys() == before.keys()
    assert not any("decoder" in holder.keys for holder in holders(pair) if holder.source is vars(pairs))


def test_globals_are_found_wherever_a_function_mentions_them():
    def program(x):
        global SET_THERE
        SET_THERE = x

        class Inner:
            kept = IN_A_CLASS  # noqa: F821

        return Inner, [IN_A_LIST.attribute for _ in x], lambda: WITHIN  # noqa: F821

    found = globals_in(program.__code__)
    assert {"SET_THERE", "IN_A_CLASS", "IN_A_LIST", "WITHIN"} <= {*found}
    assert not {"attribute", "kept"} & {*found}


def test_two_pairs_with_equal_names_never_meet():
    first, second = closure_pair(), closure_pair()
    x = torch.randn(16, 3)
    pv.fit(first, x, epochs=3, learning_rate=0.1, progress=False)
    kept = {name: p.detach().clone() for name, p in first.state_dict().items()}
    pv.fit(second, 5 * x, epochs=3, learning_rate=0.1, progress=False)
    assert all(torch.equal(kept[name], value) for name, value in first.state_dict().items())
    assert not torch.equal(first.state_dict()["store.param:noise"], second.state_dict()["store.param:noise"])


def test_state_dict_moves_a_trained_pair_into_a_fresh_one():
    x = torch.randn(16, 3)
    trained, fresh = closure_pair(), closure_pair()
    pv.fit(trained, x, epochs=3, learning_rate=0.1, progress=False)
    fresh.load_state_dict(trained.state_dict())
    left, right = (pv.log_likelihood(p, x, 50, progress=False).value for p in (trained, fresh))
    assert (left == right).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.popitem(), r"expected (\S+) of shape \S.*, found no \1; give"),
        (lambda state: state.update(extra=torch.zeros(3)), r"expected no extra, found extra of shape \(3,\); give"),
        (
            lambda state: state.update({min(state): torch.zeros(9)}),
            r"expected (\S+) of shape .*, found \1 of shape \(9,\)",
        ),
    ],
    ids=["missing", "unexpected", "another shape"],
)
def test_a_state_of_another_pair_is_refused_in_a_line(change, message):
    pair = as_pair(ModuleVAE())
    state = pair.state_dict()
    change(state)
    with pytest.raises(pv.PairError, match=message) as caught:
        pair.load_state_dict(state)
    assert "\n" not in str(caught.value)


def test_parameters_stay_the_users_own():
    pair = ModuleVAE()
    assert {id(p) for p in as_pair(pair).parameters()} == {id(p) for p in pair.parameters()}
    assert as_pair(pair) is as_pair(pair)
    layers = [f"{network}.{i}" for network in ("decoder", "encoder") for i in (0, 2)]
    assert set(pair.state_dict()) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_a_changed_program_makes_a_new_pair():
    holder = SimpleNamespace(model=Programs(), guide=Recogniser())
    first = as_pair(holder)
    holder.guide = Recogniser()
    assert as_pair(holder) is not first
    assert as_pair(holder).guide is holder.guide


def test_parameters_are_found_behind_handlers():
    """Programs wrapped by `scale_latents` keep their closures."""
    plain = closure_pair()
    scaled = pv.Pair(pv.scale_latents(plain.model, 0.5), pv.scale_latents(plain.guide, 0.5))
    pv.fit(scaled, torch.randn(8, 3), epochs=1, progress=False)
    modules = {id(p) for p in plain.programs.parameters()}
    assert modules <= {id(p) for p in scaled.parameters()}


def test_a_parameter_without_a_first_value_is_an_error():
    def model(x):
        loc = pyro.param("loc")
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(pv.PairError, match="'loc'"):
        pv.check(pv.Pair(model, lambda x: None), torch.zeros(3))


def test_a_tensor_that_would_not_train_is_an_error():
    hidden = SimpleNamespace(value=[[torch.zeros(3, requires_grad=True)]])

    class Stranger:
        def __getattr__(self, name):
            return hidden.value[0][0]

    stranger = Stranger()

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) + make().loc, 1.0).to_event(1), obs=x)

    def make():
        return stranger_of()

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0]), 1.0))

    stranger_of = functools.partial(lambda: stranger)
    hidden_in_operator = pv.Pair(model, guide)
    with pytest.raises(pv.PairError, match="would not train"):
        pv.check(hidden_in_operator, torch.zeros(4, 3))


@pytest.mark.parametrize("bad", [object(), 3, lambda x: None])
def test_what_is_no_pair_is_told_so(bad):
    with pytest.raises(pv.PairError, match="wrap the two programs"):
        pv.check(bad, torch.zeros(3))
    with pytest.raises(pv.PairError, match="callable"):
        pv.Pair(lambda x: None, 3)


@pytest.mark.parametrize("use", [as_pair, lambda pair: pv.fit(pair, torch.ones(3, 5)), lambda pair: pv.check(pair, [])])
def test_a_class_is_no_pair(use):
    with pytest.raises(pv.PairError, match=r"expected a pair .*found the class VAE: call it"):
        use(pv.VAE)


def test_batches_of_several_arrays():
    """A conditional model: the programs take two arguments."""
    decoder, encoder = nn.Linear(3, 5), nn.Linear(7, 1)

    def model(x, y):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            y = y.expand(*z.shape[:-1], 2)
            pyro.sample("x", dist.Bernoulli(logits=decoder(torch.cat([z, y], -1))).to_event(1), obs=x)

    def guide(x, y):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(encoder(torch.cat([x, y], -1)), 0.5).to_event(1))

    pair = pv.Pair(model, guide)
    data = binary_rows(20), torch.randn(20, 2)
    assert pv.fit(pair, data, epochs=2, batch_size=8, progress=False).steps == 6
    assert pv.log_likelihood(pair, data, 30, progress=False).value.shape == (20,)
