"""Buffers that programs replace by others, of another shape or type, belong to a pair like others."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vae.belongings import Belongings
from ppl_vae.errors import CheckpointError, DataError
from ppl_vae.pair import as_pair, kept_buffers
from ppl_vae.rundir import RunDirectory
from ppl_vae.storage import step_folder
from ppl_vae.svi import saving
from ppl_vae.svi.kept import named, put_parameters
from tests.pairs import ModuleVAE
from tests.resuming import binary, numbers, only, run, same
from tests.training import fresh, state

AT = 4


class Growing(ModuleVAE):
    """A buffer grows, one comes where none was, and one goes; by a clock that nobody puts back one step is bad."""

    def __init__(self, bad: int = -1, entries: int = 0) -> None:
        super().__init__()
        self.clock, self.bad = itertools.count(), bad
        self.register_buffer("seen", torch.zeros(entries))
        self.register_buffer("late", None)
        self.register_buffer("early", torch.ones(()))

    def model(self, x):
        weight = 1.0
        if self.training:
            self.seen = torch.cat([self.seen, x.mean().reshape(1)])
            self.late = torch.ones(2, dtype=torch.float64) * len(self.seen)
            self.early = None
            weight = torch.nan if next(self.clock) == self.bad else 1.0
        parts = [buffer.sum().float() for buffer in (self.seen, self.late, self.early) if buffer is not None]
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            logits = weight * self.decoder(z) + 0.01 * sum(parts)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


@pytest.mark.parametrize("options", [{}, {"validation": binary[:5], "learning_rate": 0.3}], ids=["last", "best"])
def test_buffers_of_another_shape_change_no_bit(options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(saving, "_KEPT", 1000)
    saved, again = tmp_path / "saved", tmp_path / "again"
    pair, fit = run(Growing, binary, options, run_dir=saved, checkpoint_every=AT)
    from_four = only(step_folder(saved / "checkpoints", AT), again)
    resumed = run(Growing, binary, options, seed=1, run_dir=from_four, resume=True)
    assert same(numbers(pair, fit), numbers(*resumed))
    opened = fresh(1, Growing)
    RunDirectory(saved).read_parameters(opened)
    assert (len(opened.seen), len(opened.late), opened.early) == (fit.best_step, 2, None)
    assert all(torch.equal(value, state(opened)[name]) for name, value in state(pair).items())


def test_a_fit_that_goes_back_gives_buffers_the_shape_that_they_had():
    with pytest.warns(UserWarning, match="goes back to step 3"):
        pair, _ = run(lambda: Growing(bad=5), binary, {"on_nonfinite": "rollback"})
    assert len(pair.seen) == 9


def test_a_buffer_of_another_beginning_is_refused(tmp_path: Path):
    class Resting(ModuleVAE):
        def __init__(self, entries: int) -> None:
            super().__init__()
            self.register_buffer("rest", torch.zeros(entries))

    run(lambda: Resting(2), binary, {"epochs": 1}, run_dir=tmp_path)
    with pytest.raises(CheckpointError, match=r"buffer/.*rest: expected a tensor of shape \(3,\)"):
        run(lambda: Resting(3), binary, {}, run_dir=tmp_path, resume=True)
    with pytest.raises(DataError, match=r"rest of shape \(3,\)"):
        RunDirectory(tmp_path).read_parameters(Resting(3))


def test_a_buffer_becomes_no_number():
    """As a stranger's checkpoint would have it: a module without its tensor is none."""
    belongings = Belongings(pair := Growing(entries=3))
    pair.seen = torch.zeros(5)
    (name,) = (n for n in belongings.taken().tensors if n.endswith(":seen"))
    assert Belongings(Growing(entries=3)).misplaced({name.replace("tensor", "value", 1): 3}, {})
    assert not Belongings(Growing(entries=3)).misplaced({}, {name: torch.zeros(5)})


def test_a_buffer_of_another_type_is_given_back():
    pair = Growing(entries=3)
    with kept_buffers(pair):
        pair.seen.data = pair.seen.half()
    assert pair.seen.dtype == torch.float32


def test_a_module_under_two_names_has_its_buffers_under_both():
    pair = Growing(entries=3)
    pair.first = pair.second = Growing(entries=3)
    belongings = Belongings(pair)
    pair.first.seen = torch.zeros(4)
    (name,) = (n for n in belongings.taken().tensors if n.endswith("first.seen"))
    assert belongings.remade(pair, [name]) == {"first.seen", "second.seen"}


class Tied(ModuleVAE):
    """Two means, one tensor or two at the beginning, that steps make two or one."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.tied, self.steps = tied, 0
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("slow", self.mean if tied else torch.zeros(1))

    def model(self, x):
        if self.training:
            self.steps += 1
            self.mean = 0.9 * self.mean + 0.1 * x.mean()
            if not self.tied and self.steps > AT:
                self.slow = self.mean
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            logits = self.decoder(z) + self.mean - 2.0 * self.slow
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def test_buffers_that_were_one_tensor_become_two_and_change_no_bit(tmp_path: Path):
    def make():
        return Tied(tied=True)

    whole = numbers(*run(make, binary, {}))
    run(make, binary, {"epochs": 1}, run_dir=tmp_path)
    pair, fit = run(make, binary, {}, seed=1, run_dir=tmp_path, resume=True)
    assert same(whole, numbers(pair, fit))
    opened = fresh(1, make)
    RunDirectory(tmp_path).read_parameters(opened)
    assert (opened.mean, opened.slow) == (pair.mean, pair.slow)


@pytest.mark.filterwarnings("ignore:checkpoints do not hold")
def test_buffers_that_become_one_tensor_are_named_and_the_best_pair_has_two(tmp_path: Path):
    belongings = Belongings(pair := Tied(tied=False))
    assert not belongings.taken().lost
    pair.slow = pair.mean
    assert len(belongings.taken().lost) == 2
    options = {"validation": binary[:5], "learning_rate": 0.3}
    best, fit = run(lambda: Tied(tied=False), binary, options, run_dir=tmp_path)
    assert fit.best_step > 0
    stopped, _ = run(lambda: Tied(tied=False), binary, {"epochs": None, "steps": fit.best_step, "learning_rate": 0.3})
    assert (best.mean, best.slow) == (stopped.mean, stopped.slow)


def test_a_state_with_one_name_of_a_buffer_is_taken():
    """As earlier versions wrote it; one with other numbers for the same tensor is not."""
    pair = as_pair(Tied(tied=True))
    found = {name: torch.ones_like(tensor) for name, tensor in named(pair).items()}
    (second,) = (name for name in found if name.endswith("slow"))
    put_parameters(pair, {name: tensor for name, tensor in found.items() if name != second})
    with pytest.raises(CheckpointError, match=r"slow: expected the numbers of .*mean, which is the same tensor"):
        put_parameters(pair, found | {second: torch.zeros(1)})
    put_parameters(pair, {name: tensor * torch.nan for name, tensor in found.items()})
