"""Whatever programs keep outside parameters and buffers a fit that goes on has, or it says that it has not."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppl_vae.belongings import Belongings
from ppl_vae.errors import CheckpointError
from ppl_vae.pair import Pair, as_pair
from ppl_vae.storage import newest, read, step_folder, write
from ppl_vae.svi import saving
from tests.keeping import HIGH, KINDS, LOW, Keeper, keep, keeper
from tests.pairs import ModuleVAE
from tests.resuming import binary, numbers, only, run, same
from tests.training import fresh

AT = 4


@pytest.fixture(autouse=True)
def every_checkpoint_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(saving, "_KEPT", 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_what_programs_keep_changes_no_bit(kind: str, tmp_path: Path):
    """And where it is left out, the numbers are others."""
    saved, again = tmp_path / "saved", tmp_path / "again"
    whole = numbers(*run(lambda: keeper(kind), binary, {}, run_dir=saved, checkpoint_every=AT))
    from_four = only(step_folder(saved / "checkpoints", AT), again)
    assert same(whole, numbers(*run(lambda: keeper(kind), binary, {}, seed=1, run_dir=from_four, resume=True)))
    found = read(step_folder(saved / "checkpoints", AT))
    tensors = {name: t for name, t in found.tensors.items() if not name.startswith("value/")}
    write(tmp_path / "without/checkpoints", AT, tensors, found.plain | {"values": {}})
    less = numbers(*run(lambda: keeper(kind), binary, {}, seed=1, run_dir=tmp_path / "without", resume=True))
    assert not same(whole, less)


@pytest.mark.parametrize("kind", ["a number that stays", "a list that grows", "another list", "a set", "another array"])
def test_a_fit_that_goes_on_twice_still_has_it(kind: str, tmp_path: Path):
    """First with the same object, which has it already, then with a new one, as in another process."""
    whole = numbers(*run(lambda: keeper(kind), binary, {"epochs": 3}))
    pair = fresh(0, lambda: keeper(kind))
    for epochs, resume in ((1, False), (2, True)):
        run(lambda: pair, binary, {"epochs": epochs}, run_dir=tmp_path, resume=resume)
    assert same(
        whole, numbers(*run(lambda: keeper(kind), binary, {"epochs": 3}, seed=1, run_dir=tmp_path, resume=True))
    )


UNNAMEABLE = HIGH

LOST = {
    "an object": (lambda: SimpleNamespace(n=1.0), lambda own: keep(own, SimpleNamespace(n=own.kept.n + 1.0))),
    "a list of objects": (list, lambda own: own.kept.append(SimpleNamespace())),
    "another list of tensors": (list, lambda own: keep(own, [*own.kept, torch.ones(1)])),
    "another list that is too long": (list, lambda own: keep(own, [1.0] * 1001)),
    "another dictionary": (dict, lambda own: keep(own, {**own.kept, "a": 1.0})),
    "keys that are no text": (dict, lambda own: own.kept.update({len(own.kept): 1.0})),
    "an array of objects": (lambda: np.array([None]), lambda own: keep(own, np.array([own]))),
    "keys of one name": (lambda: {1: 0.0, "[1]": 0.0}, lambda own: own.kept.update({1: own.kept[1] + 1.0})),
    "a key that no file can name": (lambda: {UNNAMEABLE: torch.zeros(1)}, lambda own: own.kept[UNNAMEABLE].add_(1.0)),
    "a key of two halves": (lambda: {HIGH + LOW: 0.0}, lambda own: own.kept.update({HIGH + LOW: 1.0})),
    "a sparse tensor": (lambda: torch.eye(2).to_sparse(), lambda own: own.kept.mul_(1.1)),
    "another sparse tensor": (lambda: torch.eye(2).to_sparse(), lambda own: keep(own, own.kept * 1.1)),
    "a tensor that is resized": (lambda: torch.zeros(1), lambda own: own.kept.resize_(len(own.kept) + 1).fill_(1.0)),
    "a part of a parameter": (lambda: None, lambda own: keep(own, own.decoder[0].weight.data[0])),
}


@pytest.mark.parametrize("kind", LOST)
def test_what_no_checkpoint_can_hold_is_said_once_by_its_name(kind: str, tmp_path: Path):
    make, change = LOST[kind]
    with pytest.warns(UserWarning, match=r"checkpoints do not hold 'self\.kept[^']*', which the programs") as said:
        run(lambda: Keeper(make(), change, lambda own: 1.0), binary, {}, run_dir=tmp_path, checkpoint_every=3)
    names = {str(w.message) for w in said}
    assert len(said) == len(names)
    assert "self.kept" in newest(tmp_path / "checkpoints").plain["lost"][0]
    with pytest.warns(UserWarning, match=r"not bit by bit.*'self\.kept"):
        run(lambda: Keeper(make(), change, lambda own: 1.0), binary, {}, run_dir=tmp_path, resume=True)


class Stumbling(ModuleVAE):
    """Counts its runs in training; the sixth by a clock that nobody puts back is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.clock = 0, itertools.count()

    def model(self, x):
        now = next(self.clock) if self.training else 0
        self.calls += self.training
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            logits = self.decoder(z) * (torch.nan if now == 5 else 1.0)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def test_a_fit_that_goes_back_gives_programs_what_they_kept_then():
    with pytest.warns(UserWarning, match="goes back to step 3"):
        pair, fit = run(Stumbling, binary, {"on_nonfinite": "rollback"})
    assert len(fit.rolled_back) == 1
    assert pair.calls == fit.steps == 9


def test_what_was_not_changed_then_is_put_back_too():
    own = fresh(0, lambda: keeper("a tensor in place"))
    belongings, before = Belongings(as_pair(own)), own.kept.clone()
    taken = belongings.taken()
    own.kept.add_(1.0)
    belongings.put(taken.plain, taken.tensors)
    assert torch.equal(own.kept, before)


def test_a_list_that_took_the_place_of_another_goes_back_and_is_nobody_elses():
    own = fresh(0, lambda: Keeper([0.0], None, None))
    belongings = Belongings(as_pair(own))
    own.kept = [1.0, float("nan")]
    judged = belongings.taken()
    own.kept.append(2.0)
    assert len(*judged.plain.values()) == 2
    belongings.put_back(judged.plain, judged.tensors)
    own.kept.append(3.0)
    belongings.put_back(judged.plain, judged.tensors)
    assert repr(own.kept) == "[1.0, nan]"


def test_a_list_that_came_to_stand_in_two_places_is_lost():
    own = fresh(0, lambda: Keeper([0.0], None, None))
    belongings = Belongings(as_pair(own))
    own.change = own.kept = [1.0]
    assert belongings.taken() == ({}, {}, ("self.kept", "self.change"))


def test_a_variable_that_both_programs_share_stands_in_one_place():
    def make():
        log, mean = [0.0], torch.zeros(1)

        def model(x):
            nonlocal log, mean
            log, mean = [*log, 1.0], mean + 1.0

        def guide(x):
            return log, mean

        return Pair(model, guide)

    one, other = make(), make()
    belongings, again = Belongings(one), Belongings(other)
    one.model(binary)
    taken = belongings.taken()
    assert not taken.lost
    again.put(taken.plain, taken.tensors)
    assert other.guide(binary) == ([0.0, 1.0], torch.ones(1))


def test_a_list_within_a_list_that_grows_is_still_the_one_that_it_was():
    own = fresh(0, lambda: Keeper([[0.0]], None, None))
    belongings, inner = Belongings(as_pair(own)), own.kept[0]
    own.kept.append([1.0])
    taken = belongings.taken()
    belongings.put(taken.plain, taken.tensors)
    assert own.kept == [[0.0], [1.0]]
    assert own.kept[0] is inner


def test_a_number_that_becomes_nan_is_another_one():
    own = fresh(0, lambda: keeper("a tensor in place"))
    belongings = Belongings(as_pair(own))
    own.kept.fill_(torch.nan)
    (name,) = belongings.taken().tensors
    assert name.endswith("self.kept")


EXACT = {
    "a zero of the other sign": (lambda: [0.0], lambda kept: kept.__setitem__(0, -0.0)),
    "a whole number": (lambda: [1.0], lambda kept: kept.__setitem__(0, 1)),
    "zeros of the other sign": (lambda: torch.zeros(2), lambda kept: kept.neg_()),
    "complex zeros of the other sign": (lambda: torch.zeros(2, dtype=torch.complex64), lambda kept: kept.neg_()),
    "a zero of the other sign in a set": (lambda: {0.0}, lambda kept: (kept.remove(0.0), kept.add(-0.0))),
    "a whole number in a set": (lambda: {1.0}, lambda kept: (kept.remove(1.0), kept.add(1))),
    "what no key leads to": (lambda: {None: 1.0}, lambda kept: kept.update({None: 2.0})),
}


@pytest.mark.parametrize("kind", EXACT)
def test_what_is_equal_and_has_other_bits_is_kept(kind: str):
    make, change = EXACT[kind]
    one, other = (fresh(0, lambda: Keeper(make(), None, None)) for _ in range(2))
    belongings, again = (Belongings(as_pair(own)) for own in (one, other))
    change(one.kept)
    taken = belongings.taken()
    assert not again.misplaced(taken.plain, taken.tensors)
    again.put(taken.plain, taken.tensors)
    assert repr(other.kept) == repr(one.kept) != repr(make())


def test_of_two_keys_of_one_name_neither_takes_the_place_of_the_other():
    one, other = (fresh(0, lambda: Keeper({1: 0.0, "[1]": 0.0, "x": 0.0}, None, None)) for _ in range(2))
    belongings, again = (Belongings(as_pair(own)) for own in (one, other))
    one.kept.update({1: 5.0, "[1]": 7.0, "x": 9.0})
    taken = belongings.taken()
    again.put(taken.plain, taken.tensors)
    assert other.kept == {1: 0.0, "[1]": 0.0, "x": 9.0}
    assert taken.lost == ("self.kept.[1]",)


def test_a_place_beyond_the_end_of_a_list_is_refused():
    own = fresh(0, lambda: Keeper([0.0], None, None))
    belongings = Belongings(as_pair(own))
    own.kept += [1.0, 2.0]
    plain = {name: value for name, value in belongings.taken().plain.items() if not name.endswith("kept.1")}
    with pytest.raises(CheckpointError, match=r"self\.kept\.2: expected a place in a list of 1 entries or at its end"):
        belongings.put(plain, {})


def test_what_has_gone_from_a_list_since_is_put_back():
    own = fresh(0, lambda: Keeper([0.0, 1.0, 2.0], None, None))
    belongings = Belongings(as_pair(own))
    own.kept[2] = 5.0
    judged = belongings.taken()
    del own.kept[:]
    belongings.put_back(judged.plain, judged.tensors)
    assert own.kept == [0.0, 1.0, 5.0]
    del own.kept[1:]
    shorter = belongings.taken()
    belongings.put_back(shorter.plain, shorter.tensors)
    assert own.kept == [0.0]


def test_buffers_that_are_replaced_are_saved_as_buffers():
    class Buffered(ModuleVAE):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(2))

    own = Buffered()
    belongings = Belongings(as_pair(own))
    own.mean = own.mean + 1.0
    assert belongings.taken() == ({}, {}, ())


def test_large_tensors_are_seen_to_be_written_to():
    own = fresh(0, lambda: keeper("a tensor in place"))
    own.kept, own.other = torch.zeros(1 << 21), nn.Identity()
    belongings = Belongings(as_pair(own))
    assert not belongings.taken().tensors
    own.kept[3] = 1.0
    assert belongings.taken().tensors


def test_a_key_of_thousands_of_digits_is_no_number():
    one, other = (fresh(0, lambda: Keeper({"7" * 5000: 1.0}, None, None)) for _ in range(2))
    belongings, again = (Belongings(as_pair(own)) for own in (one, other))
    one.kept["7" * 5000] = one.kept["8" * 5000] = 2.0
    taken = belongings.taken()
    assert not again.misplaced(taken.plain, taken.tensors)
    again.put(taken.plain, taken.tensors)
    assert other.kept == one.kept
