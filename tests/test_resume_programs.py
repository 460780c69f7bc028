"""A pair that is not the one that a run began with is not resumed; one that only looks otherwise is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.errors import CheckpointError
from ppl_vae.pair import as_pair
from ppl_vae.storage import newest
from ppl_vae.svi.programs import facts_of_programs
from tests.pairs import ModuleVAE
from tests.resuming import Moody, binary, numbers, run, same
from tests.training import fresh

SCALE = 1.0


class Plain(ModuleVAE):
    """A pair with a number wherever programs find one."""

    width = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.options, self.sizes = 1.0, {"scale": 1.0, "epochs": 3}, [1.0, 1.0]
        self.prior, self.mask, self.drop = dist.Normal(torch.zeros(2), 1.0), torch.ones(2), nn.Dropout(0.1)
        self.arguments = SimpleNamespace(resume=False, root="a")
        self.device = "cuda:0"

    def spread(self):
        return self.scale * SCALE * self.width * self.options["scale"] * self.sizes[1] * self.mask

    def model(self, x):
        """Reads them all."""
        _ = self.prior, self.device
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], 2), self.spread()).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def picture(self):
        return 1


class Described(Plain):
    """The same model, described in other words."""

    def model(self, x):
        """Reads all of them."""
        _ = self.prior, self.device
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], 2), self.spread()).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def picture(self):
        return 2


class OfLaplace(Plain):
    """Another prior."""

    def model(self, x):
        """Reads them all."""
        _ = self.prior, self.device
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Laplace(x.new_zeros(x.shape[0], 2), self.spread()).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class OfHelper(Plain):
    """Another prior, by what the model calls."""

    def spread(self):
        return 2 * self.scale * SCALE * self.width * self.options["scale"] * self.sizes[1] * self.mask


class Straight(torch.autograd.Function):
    """Its backward pass is called by autograd alone."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Wide(dist.Normal):
    """Is drawn from by Pyro alone."""

    def rsample(self, sample_shape=()):
        return 2.0 * super().rsample(sample_shape)


class Matrix:
    """Is called by an operator."""

    def __matmul__(self, x):
        return self.applied(x)

    def applied(self, x):
        return x


@dataclass
class Options:
    """What a script has been told."""

    width: float = 1.0


@dataclass
class MoreOptions(Options):
    """One more that no program reads."""

    root: str = "a"


class Wider(Matrix):
    """Is entered by a statement."""

    def __init__(self, width=1.0):
        self.width = width

    def __enter__(self):
        return self.width

    def __exit__(self, *reason):
        return False


def seen(module, inputs, output):
    return output


class Indirect(Plain):
    """Runs code that it does not mention."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.told = Matrix(), Options()
        self.decoder.register_forward_hook(seen)

    def guide(self, x):
        with Wider() as width, pyro.plate("data", x.shape[0]):
            loc = self.told.width * Straight.apply(self.matrix @ x[:, :2])
            pyro.sample("z", Wide(loc, width).to_event(1))


def with_change(change, make=Plain):
    own = make()
    change(own)
    return own


OTHERS = {
    "code of model": lambda own: setattr(own, "__class__", OfLaplace),
    "code of OfHelper.spread": lambda own: setattr(own, "__class__", OfHelper),
    "self.scale": lambda own: setattr(own, "scale", 7.0),
    "self.width": lambda own: setattr(own, "width", 7.0),
    "self.options.scale": lambda own: own.options.update(scale=7.0),
    "self.sizes.1": lambda own: own.sizes.__setitem__(1, 7.0),
    "self.prior.scale": lambda own: setattr(own, "prior", dist.Normal(torch.zeros(2), 7.0)),
    "self.prior": lambda own: setattr(own, "prior", dist.Laplace(torch.zeros(2), 1.0)),
    "self.mask": lambda own: setattr(own, "mask", torch.tensor([1.0, 7.0])),
    "self.drop.p": lambda own: setattr(own.drop, "p", 0.2),
    "self.decoder.1": lambda own: own.decoder.__setitem__(1, nn.ReLU()),
}
LIKE = {
    "options of a script": lambda own: own.arguments.__dict__.update(resume=True, root="b"),
    "entries that nobody mentions": lambda own: own.options.update(epochs=30),
    "a mode": lambda own: own.eval(),
    "parameters": lambda own: own.decoder[0].weight.data.zero_(),
    "a device": lambda own: setattr(own, "device", "cpu"),
}


def told(own) -> dict[str, str]:
    return facts_of_programs(as_pair(own))


@pytest.mark.parametrize("name", OTHERS)
def test_another_pair_is_told_apart_by_name(name: str):
    before, now = told(Plain()), told(with_change(OTHERS[name]))
    assert before.get(name) != now.get(name)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Straight, "backward"),
        (Wide, "rsample"),
        (Matrix, "__matmul__"),
        (Matrix, "applied"),
        (Wider, "__enter__"),
        (Wider, "__init__"),
    ],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_code_of_classes_that_nobody_calls_by_name_counts(owner: type, name: str, monkeypatch: pytest.MonkeyPatch):
    before = told(Indirect())
    assert before == told(Indirect())
    monkeypatch.setattr(owner, name, staticmethod(lambda *arguments: None))
    now = told(Indirect())
    assert before[f"code of {owner.__name__}.{name}"] != now[f"code of {owner.__name__}.{name}"]


def test_an_option_that_no_program_reads_is_no_difference():
    more = Indirect()
    before, more.told = told(more), MoreOptions()
    assert {key for key in told(more) if told(more)[key] != before.get(key)} <= {"self.told"}


def test_code_of_hooks_counts_and_of_objects_that_nobody_names_does_not(monkeypatch: pytest.MonkeyPatch):
    before = told(Indirect())
    hooked = Indirect()
    hooked.decoder.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert before["code of self.decoder.hooks"] != told(hooked)["code of self.decoder.hooks"]
    monkeypatch.setattr(Plain, "picture", lambda own: 3)
    assert before == told(Indirect())


@pytest.mark.parametrize("name", LIKE)
def test_what_means_nothing_is_no_difference(name: str):
    assert told(Plain()) == told(with_change(LIKE[name]))


def test_words_about_a_program_and_what_it_does_not_call_are_no_difference():
    plain, described = told(Plain()), told(Described())
    assert plain["code of model"] == described["code of model"]
    assert not any("picture" in name for name in plain)


def test_variables_of_a_module_and_of_a_closure_count(monkeypatch: pytest.MonkeyPatch):
    def pair(scale):
        own = Plain()
        return pv.Pair(lambda x: own.model(scale * x), own.guide)

    before = facts_of_programs(pair(1.0))
    assert before == facts_of_programs(pair(1.0))
    assert before["scale"] != facts_of_programs(pair(2.0))["scale"]
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert before["SCALE"] != facts_of_programs(pair(1.0))["SCALE"]


@pytest.mark.parametrize("change", [OTHERS["self.scale"], OTHERS["self.decoder.1"]], ids=["value", "module"])
def test_another_pair_is_not_resumed(change, tmp_path: Path):
    run(Plain, binary, {"epochs": 1}, run_dir=tmp_path)
    with pytest.raises(
        CheckpointError, match=r"this run began with self\.(scale|decoder\.1) = '.*', found '.*': resume"
    ):
        run(lambda: with_change(change), binary, {}, run_dir=tmp_path, resume=True)
    run(lambda: with_change(LIKE["options of a script"]), binary, {"epochs": 2}, run_dir=tmp_path, resume=True)


def test_another_choice_of_compiling_is_not_resumed(tmp_path: Path):
    run(ModuleVAE, binary, {"epochs": 1}, run_dir=tmp_path)
    with pytest.raises(CheckpointError, match="began with compile = False, found 'auto'"):
        run(ModuleVAE, binary, {}, run_dir=tmp_path, resume=True, compile="auto")


class Alternating(ModuleVAE):
    """Is in one of two phases, of which evaluations know nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = 0

    def model(self, x):
        if self.training:
            self.phase = (self.phase + 1) % 2
        return super().model(x)


def test_what_the_fit_had_changed_and_put_back_may_be_other_when_it_goes_on(tmp_path: Path):
    """The checkpoint has the value that it began with, the best pair, which the object is left as, the other one."""
    options = {"validation": binary[:5], "learning_rate": 0.3, "seed": 8}
    whole = run(Alternating, binary, options | {"steps": 12, "epochs": None})
    pair = fresh(0, Alternating)
    run(lambda: pair, binary, options | {"steps": 4, "epochs": None}, run_dir=tmp_path)
    assert (pair.phase, newest(tmp_path / "checkpoints").step) == (1, 4)
    for own in (lambda: pair, Alternating):
        found = run(own, binary, options | {"steps": 12, "epochs": None}, run_dir=tmp_path, resume=True)
        assert same(numbers(*whole), numbers(*found))


def test_what_the_fit_has_changed_may_be_other_when_it_goes_on(tmp_path: Path):
    """The same object goes on in the same process; what it has come to since the checkpoint is another thing."""
    pair = fresh(0, Moody)
    run(lambda: pair, binary, {"epochs": 1}, run_dir=tmp_path)
    assert pair.calls == 3
    _, fit = run(lambda: pair, binary, {"epochs": 2}, run_dir=tmp_path, resume=True)
    assert fit.steps == pair.calls == 6
