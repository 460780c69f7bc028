"""Keys and entries have the same name in every process, or none: what has none is said to be lost, never mixed up."""

from __future__ import annotations

import enum
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.belongings import Belongings
from ppl_vae.naming import Names, is_named
from ppl_vae.pair import as_pair
from ppl_vae.rundir import RunDirectory
from ppl_vae.storage import newest
from ppl_vae.svi.programs import facts_of_programs
from tests.keeping import Keeper
from tests.pairs import ModuleVAE
from tests.resuming import binary, numbers, run, same
from tests.training import fresh


class Colour(enum.Enum):
    RED = 1


class Thing:
    """Is equal to itself alone."""


NAMED = [
    ("a", "a"),
    ("1", "1"),
    (1, "[1]"),
    (True, "[True]"),
    (1.5, "[1.5]"),
    (None, "[None]"),
    (Colour.RED, "[Colour.RED]"),
    (nn.Linear, "[torch.nn.modules.linear.Linear]"),
    (fresh, "[tests.training.fresh]"),
    (torch.tanh, "[torch._VariableFunctionsClass.tanh]"),
    (torch.float64, "[torch.float64]"),
    ((1, ("a", None)), "[(1, ('a', None))]"),
    ((1,), "[(1,)]"),
    (10**5000, f"[{hex(10**5000)}]"),
]


@pytest.mark.parametrize(("key", "name"), NAMED, ids=range(len(NAMED)))
def test_a_key_that_is_the_same_in_every_process_has_a_name(key: Any, name: str):
    assert Names(nn.Linear(1, 1)).of(key) == name
    assert is_named(name)


@pytest.mark.parametrize("make", [Thing, lambda: torch.zeros(1), lambda: (1, Thing()), lambda: [].append])
def test_a_key_that_is_known_by_its_address_has_none(make: Any):
    assert not is_named(Names(nn.Linear(1, 1)).of(make()))


def test_what_is_registered_has_its_name():
    layer = nn.Linear(1, 1)
    assert [Names(layer).of(key) for key in (layer.weight, (layer.bias, 1))] == ["[weight]", "[(bias, 1)]"]
    moved = torch.optim.SGD([layer.bias, layer.weight], lr=0.1)
    assert Names(moved).of(layer.weight) == "[parameter 0.1]"


def test_of_entries_of_one_name_none_has_it():
    one, other = (lambda: 1, lambda: 2)
    assert one.__qualname__ == other.__qualname__
    found = [name for name, _ in Names(nn.Linear(1, 1)).entries({one, other, torch.float64, "a"})]
    assert sorted(found) == ["[some function]", "[some function]", "[torch.float64]", "a"]


class ByParameter(ModuleVAE):
    """Averages of its parameters, by parameter, which an evaluation reads."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = {p: p.detach().clone() for p in self.decoder.parameters()}

    def model(self, x):
        if self.training:
            for p in self.decoder.parameters():
                self.slow[p] = 0.9 * self.slow[p] + 0.1 * p.detach()
        return super().model(x + 0 * sum(float(v.sum()) for v in self.slow.values()))


class Pulled(torch.optim.SGD):
    """Every other step goes half the way back to a slow copy, kept by parameter."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.slow, self.n = {p: p.detach().clone() for p in self.param_groups[0]["params"]}, 0

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        self.n += 1
        for p in self.slow if self.n % 2 == 0 else ():
            self.slow[p] = self.slow[p] + 0.5 * (p - self.slow[p])
            p.copy_(self.slow[p])


def test_what_an_optimiser_keeps_by_parameter_changes_no_bit(tmp_path: Path):
    options = {"learning_rate": 0.1, "optimizer": Pulled}
    whole = numbers(*run(ModuleVAE, binary, options))
    run(ModuleVAE, binary, options | {"epochs": 1}, run_dir=tmp_path)
    assert same(whole, numbers(*run(ModuleVAE, binary, options, seed=1, run_dir=tmp_path, resume=True)))


def test_what_programs_keep_by_parameter_goes_on_and_is_opened_again(tmp_path: Path):
    whole, _ = run(ByParameter, binary, {})
    run(ByParameter, binary, {"epochs": 1}, run_dir=tmp_path)
    again, _ = run(ByParameter, binary, {}, seed=1, run_dir=tmp_path, resume=True)
    opened = fresh(2, ByParameter)
    RunDirectory(tmp_path).read_parameters(opened)
    for own in (again, opened):
        assert [type(key) for key in own.slow] == [nn.Parameter] * len(whole.slow)
        assert all(map(torch.equal, own.slow.values(), whole.slow.values()))


def test_the_best_pair_has_what_it_kept_by_parameter():
    options = {"validation": binary[:5], "learning_rate": 0.3, "epochs": 4}
    best, fit = run(ByParameter, binary, options)
    assert 0 < fit.best_step < fit.steps
    stopped, _ = run(ByParameter, binary, options | {"epochs": None, "steps": fit.best_step})
    assert all(map(torch.equal, best.slow.values(), stopped.slow.values()))
    assert len(best.slow) == len(stopped.slow)


def count(own) -> None:
    for key in own.kept:
        own.kept[key] += 1


def test_what_has_no_name_is_lost_and_nothing_comes_in_its_place(tmp_path: Path):
    def make():
        return Keeper({Thing(): 1.0}, count, lambda own: sum(own.kept.values()))

    with pytest.warns(UserWarning, match=r"checkpoints do not hold 'self\.kept\.\[some Thing\]', which the programs"):
        run(make, binary, {"epochs": 1}, run_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"not bit by bit.*some Thing|checkpoints do not hold"):
        again, _ = run(make, binary, {}, run_dir=tmp_path, resume=True)
    opened = fresh(0, make)
    with pytest.warns(UserWarning, match=r"does not hold 'self\.kept\.\[some Thing\]'"):
        RunDirectory(tmp_path).read_parameters(opened)
    assert [[type(key) for key in own.kept] for own in (again, opened)] == [[Thing]] * 2


def test_a_name_in_brackets_never_becomes_a_key():
    """As in a checkpoint of a process in which that key had come before the fit."""
    with_key, without = (fresh(0, lambda kept=kept: Keeper(dict(kept), count, None)) for kept in ({1: 0}, {}))
    belongings, again = (Belongings(as_pair(own)) for own in (with_key, without))
    count(with_key)
    taken = belongings.taken()
    assert again.misplaced(taken.plain, taken.tensors).endswith("self.kept.[1]")
    without.kept["[1]"] = 1
    assert again.taken().lost == ("self.kept",)


class Below(ModuleVAE):
    """Keeps numbers below keys and in entries without a name, and one that a longer name leads to, too."""

    def __init__(self, places: tuple[int, int]) -> None:
        super().__init__()
        own = {"n": 0}
        self.kept, self.table = {Thing(): {"n": 0}, Thing(): own}, {"own": own}
        self.held, self.array = {Held(place) for place in places}, np.zeros(2)

    def change(self) -> None:
        self.array[0] += 1.0
        for own in self.kept.values():
            own["n"] += 1
        for held in self.held:
            held.counts["n"] += 1


class Held:
    """An object that a set gives by its hash, which differs between processes."""

    def __init__(self, place: int) -> None:
        self.place, self.counts, self.array = place, {"n": 0}, np.full(place, 0.5)

    def __hash__(self) -> int:
        return self.place


def test_what_stands_below_what_has_no_name_moves_nothing_else():
    one, other = (fresh(0, lambda places=places: Below(places)) for places in ((1, 2), (2, 1)))
    for held, place in zip(sorted(other.held, key=hash), (2, 1), strict=True):
        held.place = place
    assert [h.array.size for h in one.held] != [h.array.size for h in sorted(other.held, key=hash)]
    other.held = set(other.held)
    belongings, again = (Belongings(as_pair(own)) for own in (one, other))
    one.change()
    taken = belongings.taken()
    assert set(taken.lost) == {"self.kept.[some Thing].n", "self.held.[some Held].counts.n"}
    assert not again.misplaced(taken.plain, taken.tensors)
    again.put(taken.plain, taken.tensors)
    assert (other.table, other.array.tolist()) == ({"own": {"n": 1}}, [1.0, 0.0])
    assert [*other.kept.values()] == [{"n": 0}, {"n": 1}]


class Part:
    """Is given by its set in an order that differs between processes."""

    order = 1

    def __init__(self, name: str, weight: float, place: int) -> None:
        self.name, self.weight, self._place = name, weight, place

    def __hash__(self) -> int:
        return Part.order * self._place


class OfParts(ModuleVAE):
    def __init__(self) -> None:
        super().__init__()
        self.parts = {Part("sky", 0.5, 1), Part("sea", 0.25, 2), Part("sun", 0.125, 3)}

    def model(self, x):
        return super().model(x + 0 * sum(part.weight for part in self.parts if part.name != "sun"))


def test_a_set_of_objects_is_the_same_in_whatever_order(monkeypatch: pytest.MonkeyPatch):
    before, first = facts_of_programs(as_pair(OfParts())), [part.name for part in OfParts().parts]
    monkeypatch.setattr(Part, "order", -1)
    assert first != [part.name for part in OfParts().parts]
    assert facts_of_programs(as_pair(OfParts())) == before
    assert before["self.parts.[some Part].weight"] == "0.125, 0.25, 0.5"


def test_a_look_makes_no_entry_of_a_default_dictionary(tmp_path: Path):
    """And a fit that saves is one that does not."""

    def take(own):
        own.kept["runs"] += 1
        if "warm" in own.kept and own.kept["runs"] > 4:
            del own.kept["warm"]

    def make():
        return Keeper(defaultdict(int, warm=3, runs=0), take, lambda own: "warm" in own.kept)

    whole = run(make, binary, {})
    saved = run(make, binary, {}, run_dir=tmp_path, checkpoint_every=1)
    assert same(numbers(*whole), numbers(*saved))
    assert saved[0].kept == whole[0].kept == {"runs": 9}
    assert "warm" not in str(newest(tmp_path / "checkpoints").plain["values"]).replace("gone", "")
    pv.check(saved[0], binary)
    assert "warm" not in saved[0].kept
