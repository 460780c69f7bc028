"""What programs keep belongs to a pair: in the file of its parameters, and where the best one is put back."""

from __future__ import annotations

import copy
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.belongings import Belongings
from ppl_vae.errors import DataError
from ppl_vae.pair import as_pair
from ppl_vae.rundir import RunDirectory
from ppl_vae.storage import files, tensors
from tests.keeping import Keeper, keeper
from tests.pairs import ModuleVAE
from tests.resuming import binary, run
from tests.training import fresh, state


def look(own: Keeper) -> float:
    return float(own.look(own))


KEPT = [
    "a number",
    "another tensor",
    "another list",
    "an array in place",
    "a list that shrinks",
    "a dictionary that grows",
    "a set",
]


@pytest.mark.parametrize("kind", KEPT)
def test_a_pair_opened_again_keeps_what_the_trained_one_does(kind: str, tmp_path: Path):
    trained, _ = run(lambda: keeper(kind), binary, {"epochs": 1}, run_dir=tmp_path)
    again = fresh(1, lambda: keeper(kind))
    assert look(again) != look(trained)
    as_pair(again).prepare(binary)
    RunDirectory(tmp_path).read_parameters(again)
    assert look(again) == look(trained)
    assert all(torch.equal(value, state(again)[name]) for name, value in state(trained).items())
    RunDirectory(tmp_path).read_parameters(trained)
    assert look(again) == look(trained)


def test_what_no_file_holds_is_said_when_it_is_read(tmp_path: Path):
    def make():
        return Keeper((), lambda own: setattr(own, "kept", (*own.kept, 1.0)), lambda own: 1.0)

    with pytest.warns(UserWarning, match="checkpoints do not hold"):
        run(make, binary, {"epochs": 1}, run_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"parameters\.safetensors does not hold 'self\.kept', which the programs"):
        RunDirectory(tmp_path).read_parameters(fresh(1, make))


def test_values_of_another_pair_are_refused_and_nothing_is_changed(tmp_path: Path):
    run(lambda: keeper("a list that shrinks"), binary, {"epochs": 1}, run_dir=tmp_path)
    other = fresh(1)
    before = state(other)
    with pytest.raises(DataError, match=r"self\.kept: expected a value of that name in the programs"):
        RunDirectory(tmp_path).read_parameters(other)
    assert all(torch.equal(before[name], value) for name, value in state(other).items())


class Following(ModuleVAE):
    """What evaluations read follows its training: a frozen copy of the decoder, numbers, tensors; runs are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = copy.deepcopy(self.decoder).requires_grad_(False)
        self.mean, self.seen, self.share, self.runs = torch.zeros(5), {"runs": 0}, torch.zeros(1), []

    def model(self, x):
        if self.training:
            with torch.no_grad():
                for slow, fast in zip(self.slow.parameters(), self.decoder.parameters(), strict=True):
                    slow.lerp_(fast, 0.5)
            self.mean = 0.5 * self.mean + 0.5 * x.mean(0)
            self.share += 0.1
            self.seen["runs"] += 1
            self.last = float(x.mean())
            self.runs.append(self.last)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            decoder = self.decoder if self.training else self.slow
            logits = decoder(z) + self.mean + self.share + self.seen["runs"]
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class Hiding(Following):
    """The same copy in a list, which registers nothing."""

    def __init__(self) -> None:
        super().__init__()
        slow = self.slow
        del self.slow
        self.__dict__["slow"], self.hidden = slow, [slow]


def test_what_has_come_since_goes_and_records_stay():
    own = Following()
    belongings = Belongings(as_pair(own))
    first = belongings.taken()
    own.model(binary)
    assert belongings.taken().plain
    belongings.put_back(first.plain, first.tensors)
    assert not own.mean.any()
    assert not own.share.any()
    assert own.seen == {"runs": 0}
    assert not hasattr(own, "last")
    assert len(own.runs) == 1


class Leaving(nn.Module):
    """Attributes, entries of dictionaries and a buffer that go."""

    def __init__(self) -> None:
        super().__init__()
        self.flag, self.early, self.entries, self.mixed = 1.0, 2.0, dict.fromkeys("abcd", 0.0), {"a": 1.0, 3: 2.0}
        self.register_buffer("mean", torch.ones(2))

    def parts(self):
        return self.flag, hasattr(self, "early"), [*self.entries.items()], [*self.mixed.items()], self.mean.tolist()


def test_what_has_gone_since_comes_back():
    own = Leaving()
    belongings = Belongings(own)
    belongings.taken()
    del own.early, own.entries["b"]
    own.entries |= {"c": 5.0, "new": 6.0}
    then, taken = own.parts(), belongings.taken()
    del own.flag, own.mean, own.entries["a"], own.entries["new"], own.mixed[3], own.mixed["a"]
    own.entries["later"] = 1.0
    belongings.put_back(taken.plain, taken.tensors)
    assert own.entries.pop("later") == 1.0  # a record
    assert own.parts() == then
    belongings.put_back(taken.plain, taken.tensors)
    assert own.parts() == then


OPTIONS = {"validation": binary[:5], "learning_rate": 0.3, "epochs": 4}


@pytest.mark.parametrize("make", [Following, Hiding])
@pytest.mark.parametrize("resumed", [False, True])
def test_the_best_pair_is_the_one_that_was_judged(resumed: bool, make: type[Following], tmp_path: Path):
    """It is the one of a fit that stops there, and has what was recorded since."""
    if resumed:
        run(make, binary, OPTIONS | {"epochs": 2}, run_dir=tmp_path)
    best, fit = run(make, binary, OPTIONS, run_dir=tmp_path, resume="auto")
    assert 0 < fit.best_step < fit.steps
    stopped, _ = run(make, binary, OPTIONS | {"epochs": None, "steps": fit.best_step})
    assert all(torch.equal(value, state(best)[name]) for name, value in state(stopped).items())
    assert all(map(torch.equal, best.slow.parameters(), stopped.slow.parameters()))
    assert torch.equal(best.mean, stopped.mean)
    assert torch.equal(best.share, stopped.share)
    assert (best.seen, best.last) == (stopped.seen, stopped.last)
    assert len(best.runs) > len(stopped.runs)
    opened = fresh(1, make)
    RunDirectory(tmp_path).read_parameters(opened)
    values = [pv.log_likelihood(pair, binary, 20, progress=False).mean for pair in (best, stopped, opened)]
    assert len(set(values)) == 1


class Counting(ModuleVAE):
    """Two buffers that `state_dict` leaves out; one gets another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("shares", torch.zeros(1), persistent=False)

    def model(self, x: torch.Tensor) -> None:
        if self.training:
            self.seen += 1.0
            self.shares = torch.cat([self.shares, self.seen[None]])
        super().model(x)


def test_buffers_that_no_state_holds_are_in_the_file_of_parameters(tmp_path: Path):
    trained, _ = run(Counting, binary, {"epochs": 1}, run_dir=tmp_path)
    again = fresh(1, Counting)
    RunDirectory(tmp_path).read_parameters(again)
    assert trained.seen > 0
    assert torch.equal(again.seen, trained.seen)
    assert torch.equal(again.shares, trained.shares)
    with pytest.raises(DataError, match=r"expected no programs.*seen, found programs.*seen"):
        RunDirectory(tmp_path).read_parameters(fresh(1))


def test_a_file_of_before_has_no_such_buffers_and_is_read(tmp_path: Path):
    pair = as_pair(Counting())
    files.replace(tmp_path / "parameters.safetensors", tensors.sealed(pair.state_dict()))
    RunDirectory(tmp_path).read_parameters(again := fresh(1, Counting))
    assert not again.seen
