"""Buffers that steps move, however and whenever: put back after a bad step, and finite in every checkpoint (F6)."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.pair import as_pair
from ppl_vae.rundir import RunDirectory
from ppl_vae.storage import newest
from ppl_vae.svi.moving import Moving
from tests.nonfinite import same
from tests.pairs import ModuleVAE, binary_rows
from tests.training import fresh, train

LARGE = 1 << 15


class Buffers(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("rests", torch.full((size,), -math.inf))
        self.register_buffer("moves", torch.zeros(size))


def write(module: nn.Module) -> None:
    module.moves += 1.0


def write_uncounted(module: nn.Module) -> None:
    module.moves.data.add_(1.0)


def replace(module: nn.Module) -> None:
    module.moves = module.moves + 1.0


@pytest.mark.parametrize("act", [write, write_uncounted, replace])
@pytest.mark.parametrize("first", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [3, LARGE])
def test_a_buffer_is_put_back_whenever_it_began_to_move(size: int, first: int, act):
    """What torch does not count in a large one is put back from the step after it was found."""
    module = Buffers(size)
    moving = Moving(module)
    for step in range(1, 12):
        moving.look()
        moving.remember()
        if step < first:
            continue
        before, tensor = module.moves.clone(), module.moves
        act(module)
        if size == 3 or act is not write_uncounted or step > 8:
            moving.put_back()
            assert module.moves is tensor
            assert torch.equal(module.moves, before)
            act(module)
    assert moving.some
    assert not moving.overflowed()


@pytest.mark.parametrize(
    "resized", [torch.full((5,), 7.0), torch.full((1,), 7.0), torch.full((3,), 0.1, dtype=torch.float64)]
)
@pytest.mark.parametrize("size", [3, LARGE])
def test_a_buffer_that_was_resized_in_place_is_put_back_as_it_then_was(size: int, resized: torch.Tensor):
    module = Buffers(size)
    moving = Moving(module)
    for step in range(1, 8):
        moving.look()
        moving.remember()
        before, tensor = module.moves.detach().clone(), module.moves
        if step == 4:
            tensor.data = resized.clone()
            moving.put_back()
            assert torch.equal(module.moves, before)
        if step >= 4:
            tensor.data = resized.clone()
        if step > 5:
            write_uncounted(module)
            assert moving.marks() == [False, True]
            moving.put_back()
            assert module.moves is tensor
            assert torch.equal(module.moves, resized)


def test_a_small_buffer_is_remembered_though_nobody_has_seen_it_move():
    module = Buffers(3)
    moving = Moving(module)
    for step in range(1, 5):  # what is not counted is looked for after two steps and after four
        moving.look()
        moving.remember()
        before = module.moves.clone()
        if step >= 3:
            write_uncounted(module)
    moving.put_back()
    assert torch.equal(module.moves, before)
    assert float(before[0]) == 1.0


def test_what_rests_does_not_move_and_may_be_infinite():
    module = Buffers(LARGE)
    moving = Moving(module)
    for _ in range(3):
        moving.look()
        moving.remember()
        module.rests.copy_(module.rests.clone())  # counted as written to
        assert moving.marks() == [False, False]
    assert not moving.some
    assert not moving.overflowed()
    module.moves[5] = math.nan
    assert moving.marks() == [False, True]
    assert moving.overflowed() == "moves"
    moving.put_back()
    assert not moving.overflowed()


class Alternating(ModuleVAE):
    """Every second run of the guide in training writes to a buffer that the guide reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("runs", torch.zeros((), dtype=torch.int64))

    def guide(self, x):
        if self.training:
            self.runs += 1
            if self.runs % 2 == 0:
                self.note(x)
        with pyro.plate("data", x.shape[0]):
            loc, raw = self.encoder(x - self.mean.clone().clamp(-1.0, 1.0)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    def note(self, x):
        self.mean.lerp_(x.mean(0), 0.5)


def bad_at(step: int):
    return pv.ELBO(beta=lambda now: math.nan if now == step else 1.0)


@pytest.mark.parametrize("bad", [5, 6])
def test_a_bad_step_leaves_no_trace_in_a_fit_that_resumed(bad: int, tmp_path: Path):
    x, options = binary_rows(20), {"batch_size": 2, "epochs": 1, "on_nonfinite": "skip", "objective": bad_at(bad)}
    straight, resumed = fresh(make=Alternating), fresh(make=Alternating)
    with pytest.warns(UserWarning, match="step is skipped"):
        train(straight, x, **options)
    train(fresh(make=Alternating), x, steps=3, run_dir=tmp_path / "run", **options)
    with pytest.warns(UserWarning, match="step is skipped"):
        train(resumed, x, run_dir=tmp_path / "run", resume=True, **options)
    assert int(straight.runs) == 9
    assert same(straight, resumed)


class Overflowing(Alternating):
    def note(self, x):
        self.mean.fill_(math.inf)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_buffer_that_a_step_moves_to_infinity_is_named_and_kept_nowhere(policy: str, tmp_path: Path):
    """Loss and gradient are finite, and stay so: the second step is the one to name."""
    pair, run = fresh(make=Overflowing), tmp_path / "run"
    options = {"on_nonfinite": policy, "run_dir": run, "checkpoint_every": 1}
    with pytest.raises(pv.EstimateError, match=r"step 2: .* are finite, but buffer '.*mean', which the programs move"):
        train(pair, binary_rows(20), **options)
    assert not (run / "bad-steps").exists()
    assert newest(run / "checkpoints").step == 1
    again = as_pair(fresh(seed=5, make=Overflowing))
    RunDirectory(run).read_parameters(again)
    assert same(pair, again)
    assert not torch.isinf(pair.mean).any()


class Fatal(Overflowing):
    """The next step reads it."""

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            edge = torch.where(torch.isfinite(self.mean) | (self.runs % 2 == 0), 0.0, torch.nan)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + edge).to_event(1), obs=x)


def test_a_bad_step_is_told_from_the_buffer_that_made_it_so():
    with pytest.raises(pv.EstimateError, match=r"step 2: .* are finite, but buffer '.*mean', which the programs move"):
        train(fresh(make=Fatal), binary_rows(20), on_nonfinite="skip")
