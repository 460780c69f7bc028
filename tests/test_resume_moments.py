"""What an optimiser keeps comes back in the form that it had, or is named: options, empty states, dictionaries."""

from __future__ import annotations

import json
import warnings
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import pytest
import torch
from torch import nn

from ppl_vae.storage.exact import exact, of_exact
from ppl_vae.svi.moments import check_moments, moments, put_moments
from ppl_vae.svi.update import make_update
from tests.pairs import ModuleVAE
from tests.resuming import binary, numbers, run, same

OPTIONS = {"learning_rate": 0.1}


class Stretched(torch.optim.Optimizer):
    """Steps whose length an option of the group tells, and a value of the state of each parameter."""

    first = None

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr, "last": self.first})

    def next(self, last):
        """The option after a step."""
        return last

    def look(self, state):
        """A number that a state leads to."""
        return 0.0

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["last"] = last = self.next(group["last"])
            stretch = 1.0 + float(sum(last) if isinstance(last, list) else last or 0.0)
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] * (stretch + self.look(self.state[p])))


class ToNumber(Stretched):
    def next(self, last):
        return 0.1 + (last or 0.0)


class ToTensor(Stretched):
    def next(self, last):
        return torch.tensor(0.1) if last is None else last * 1.1


class ToList(Stretched):
    def next(self, last):
        return [0.1, *(last or ())]


class ToNone(Stretched):
    first = 1.0

    def next(self, last):
        return None


class ToAnotherKind(ToNumber):
    first = False


def resumed(optimizer, tmp_path: Path) -> bool:
    """Whether a fit in two pieces ends with the numbers of one."""
    options = OPTIONS | {"optimizer": optimizer}
    whole = numbers(*run(ModuleVAE, binary, options))
    run(ModuleVAE, binary, options | {"epochs": 1}, run_dir=tmp_path)
    return same(whole, numbers(*run(ModuleVAE, binary, options, seed=1, run_dir=tmp_path, resume=True)))


@pytest.mark.parametrize("optimizer", [ToNumber, ToTensor, ToList])
def test_an_option_that_was_none_changes_no_bit(optimizer, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resumed(optimizer, tmp_path)


@pytest.mark.parametrize("optimizer", [ToNone, ToAnotherKind])
def test_an_option_that_becomes_another_kind_is_named_at_the_first_save(optimizer, tmp_path: Path):
    with pytest.warns(UserWarning, match=r"checkpoints do not hold 'optimizer\.groups\[0\]\.last'"):
        run(ModuleVAE, binary, OPTIONS | {"optimizer": optimizer, "epochs": 1}, run_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"groups\[0\]\.last"):
        run(ModuleVAE, binary, OPTIONS | {"optimizer": optimizer}, run_dir=tmp_path, resume=True)


@pytest.mark.parametrize("optimizer", [ToNumber, ToTensor, ToList, ToNone, ToAnotherKind])
def test_an_option_of_another_kind_is_rolled_back(optimizer):
    parameters = [nn.Parameter(torch.zeros(2))]
    update = make_update(optimizer, parameters, 0.1)
    before = moments(update)
    update(parameters, [torch.ones(2)], None)
    check_moments(update, before.tensors, before.plain)
    put_moments(update, before.tensors, before.plain)
    assert update.optimizer.param_groups[0]["last"] is optimizer.first


class Beginning(torch.optim.SGD):
    """Begins the state of a parameter where there is none."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in (p for p in self.param_groups[0]["params"] if p.grad is not None):
            if p not in self.state:
                self.state[p] = {"n": 0}
            self.state[p]["n"] += 1
            p.sub_(p.grad, alpha=0.1 / self.state[p]["n"])


def test_a_parameter_that_no_step_had_reached_gets_no_state():
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    update = make_update(Beginning, parameters, 0.1)
    first = moments(update)
    update(parameters[:1], [torch.ones(2)], None)
    second = moments(update)
    update(parameters, [torch.ones(2)] * 2, None)
    again = make_update(Beginning, parameters, 0.1)
    for one in (update, again):
        check_moments(one, second.tensors, second.plain)
        put_moments(one, second.tensors, second.plain)
        assert [p is parameters[0] for p in one.optimizer.state] == [True]
        put_moments(one, first.tensors, first.plain)
        assert not one.optimizer.state
        one(parameters, [torch.ones(2)] * 2, None)
        assert [state["n"] for state in one.optimizer.state.values()] == [1, 1]


def with_state(value):
    """An update whose optimiser keeps a value of its only parameter."""
    update = make_update(torch.optim.SGD, [parameter := nn.Parameter(torch.zeros(2))], 0.1)
    update.optimizer.state[parameter]["value"] = value
    return update


DICTIONARIES = [{"list": [0.0]}, {"tuple": [1, 2]}, {"tensor": True}, {"lost": True}, {"dict": {"a": 1}}, {"a": {}}, {}]


@pytest.mark.parametrize("value", [*DICTIONARIES, [{"list": [0.0]}], {"float": "inf"}], ids=json.dumps)
def test_a_dictionary_comes_back_as_it_was(value):
    found, again = moments(with_state(value)), make_update(torch.optim.SGD, [nn.Parameter(torch.zeros(2))], 0.1)
    plain = of_exact(json.loads(json.dumps(exact(found.plain))))
    check_moments(again, found.tensors, plain)
    put_moments(again, found.tensors, plain)
    ((state,),) = [[*again.optimizer.state.values()]]
    assert (found.lost, state) == ((), {"value": value})
    check_moments(again, found.tensors, plain)


@pytest.mark.parametrize(
    "value", [defaultdict(float, a=1.0), Counter("ab"), OrderedDict(a=1), {"a": Counter()}, [Counter()], {"a": (1,)}]
)
def test_a_dictionary_of_another_class_is_lost(value):
    assert moments(with_state(value)).lost == ("optimizer.entries[0].value",)


class Shared(torch.optim.SGD):
    """One count in the states of all parameters, and views of one tensor, and of the parameter."""

    @torch.no_grad()
    def step(self, closure=None):
        own = self.param_groups[0]["params"]
        if not self.state:
            count, mean = torch.zeros(()), torch.zeros(len(own))
            for number, p in enumerate(own):
                self.state[p] |= {"count": count, "mean": [mean[number]], "now": p.data, "apart": torch.zeros(())}
        super().step()


def test_tensors_that_share_memory_are_lost():
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    update = make_update(Shared, parameters, 0.1)
    update(parameters, [torch.ones(2)] * 2, None)
    found = moments(update)
    assert found.lost == tuple(f"optimizer.entries[{n}].{name}" for n in (0, 1) for name in ("count", "mean", "now"))
    assert found.tensors.keys() == {"optimizer/0/apart", "optimizer/1/apart"}


def test_tensors_that_share_memory_from_the_start_are_held():
    """As the count of the default optimiser, which a new one shares, too."""
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    update, again = (make_update(None, parameters, 0.1) for _ in range(2))
    for _ in range(3):
        update(parameters, [torch.ones(2)] * 2, None)
    found = moments(update)
    assert not found.lost
    put_moments(again, found.tensors, found.plain)
    assert [float(again.optimizer.state[p]["step"]) for p in parameters] == [3.0, 3.0]
    assert again.optimizer.state[parameters[0]]["step"] is again.optimizer.state[parameters[1]]["step"]
