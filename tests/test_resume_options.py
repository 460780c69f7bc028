"""Options and pairs of other forms: what decides a run is compared, and what no file can hold is said at the start."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.errors import CheckpointError, PairError
from ppl_vae.rundir import as_plain
from ppl_vae.storage import steps
from ppl_vae.svi.code import code_within
from tests.pairs import ModuleVAE
from tests.resuming import binary, numbers, run, same

ONE = {"epochs": 1}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "beta": ({"objective": pv.ELBO(beta=np.float32(4))}, {"objective": pv.ELBO(beta=np.float32(9))}, "objective"),
    "rate": ({"learning_rate": np.float32(0.01)}, {"learning_rate": np.float32(0.1)}, "learning_rate = 0.00999"),
    "seed": ({"seed": np.int64(3)}, {"seed": np.int64(4)}, "seed = 3, found 4"),
    "partial": (
        {"optimizer": functools.partial(torch.optim.AdamW, weight_decay=np.float32(0.1))},
        {"optimizer": functools.partial(torch.optim.AdamW, weight_decay=np.float32(0.5))},
        "optimizer",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_in_numbers_of_numpy_is_compared(name: str, tmp_path: Path):
    first, second, said = OPTIONS[name]
    run(ModuleVAE, binary, ONE | first, run_dir=tmp_path)
    with pytest.raises(CheckpointError, match=f"began with {said}"):
        run(ModuleVAE, binary, second, run_dir=tmp_path, resume=True)
    run(ModuleVAE, binary, first, run_dir=tmp_path, resume=True)


def test_a_number_of_numpy_is_the_number_itself(tmp_path: Path):
    run(ModuleVAE, binary, ONE | {"seed": np.int64(3)}, run_dir=tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 3
    run(ModuleVAE, binary, {"seed": 3}, run_dir=tmp_path, resume=True)
    for one, other in ((np.float64(0.5), 0.5), (np.bool_(True), True), (np.array(3), 3), (torch.tensor(0.5), 0.5)):
        assert as_plain(one) == as_plain(other)
        assert code_within(one) == code_within(other)
    assert as_plain(np.longdouble(1)) != as_plain(np.longdouble(2))


def scaled(factor: Any) -> Any:
    return lambda step: float(factor)


def test_a_number_of_numpy_that_a_function_closes_over_is_compared():
    assert code_within(scaled(np.float32(0.5))) != code_within(scaled(np.float32(0.25)))
    assert code_within(scaled(torch.tensor(0.5))) != code_within(scaled(torch.tensor(0.25)))


def test_whole_numbers_of_numpy_are_whole_numbers(tmp_path: Path):
    options = {"epochs": 2, "batch_size": 4, "patience": 3, "validation": binary[:5]}
    whole = numbers(*run(ModuleVAE, binary, options))
    of_numpy = options | {name: np.int64(options[name]) for name in ("epochs", "batch_size", "patience")}
    found = run(ModuleVAE, binary, of_numpy, run_dir=tmp_path, checkpoint_every=np.int64(4))
    assert same(whole, numbers(*found))
    assert steps(tmp_path / "checkpoints") == [4, 6]


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A schedule with a field."""

    entries: Any

    def __call__(self, step: int) -> float:
        return 1.0


def nested(levels: int) -> list:
    return [nested(levels - 1)] if levels else []


CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE


@pytest.mark.parametrize(
    "entries", [10**5000, chr(0xD83D) + chr(0xDE00), nested(40), CYCLE], ids=["digits", "halves", "levels", "cycle"]
)
def test_options_that_no_checkpoint_holds_are_refused_before_the_first_step(entries: Any, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no checkpoint could hold the options: .* leave out run_dir"):
        run(ModuleVAE, binary, ONE | {"schedule": Table(entries)}, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(ModuleVAE, binary, ONE | {"schedule": Table(entries)})


@pytest.mark.parametrize("resume", [1, 0, np.True_, "yes"])
def test_resume_is_one_of_its_values(resume: Any, tmp_path: Path):
    """1 equals True, and would begin anew where True is refused."""
    with pytest.raises(ValueError, match=r"resume: expected 'auto', True or False, found"):
        run(ModuleVAE, binary, ONE, run_dir=tmp_path / "run", resume=resume)


class Expanded(ModuleVAE):
    """A buffer whose numbers share one place in memory."""

    def __init__(self, own: bool = False) -> None:
        super().__init__()
        shared = torch.zeros(1).expand(2)
        self.register_buffer("loc", shared.clone() if own else shared)
        self.register_buffer("one", torch.ones(1).expand(1))

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(self.loc.expand(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


def test_an_expanded_buffer_is_refused_where_it_would_have_to_be_put_back(tmp_path: Path):
    for options in ({"validation": binary[:5]}, {"on_nonfinite": "skip"}, {"run_dir": tmp_path / "run"}):
        with pytest.raises(PairError, match=r"loc: expected a place in memory for each number.*tensor\.clone\(\)"):
            run(Expanded, binary, ONE, **options)
    assert not (tmp_path / "run").exists()
    whole = numbers(*run(Expanded, binary, ONE))
    owned = functools.partial(Expanded, own=True)
    assert same(whole, numbers(*run(owned, binary, ONE, run_dir=tmp_path / "run", on_nonfinite="skip")))


class Extra(nn.Module):
    """Says what it keeps beside tensors."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.kept = kept

    def get_extra_state(self) -> Any:
        return self.kept

    def set_extra_state(self, state: Any) -> None:
        self.kept = state


class WithExtra(ModuleVAE):
    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.extra = Extra(kept)


def test_extra_state_that_no_file_holds_is_refused_before_the_first_step(tmp_path: Path):
    make = functools.partial(WithExtra, {"a": 1})
    with pytest.raises(
        CheckpointError, match=r"extra\._extra_state': expected a tensor, found dict: let get_extra_stat"
    ):
        run(make, binary, ONE, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(make, binary, ONE)
    made, _ = run(functools.partial(WithExtra, torch.tensor(7.0)), binary, ONE, run_dir=tmp_path / "run")
    other = WithExtra(torch.tensor(0.0))
    pv.rundir.RunDirectory(tmp_path / "run").read_parameters(other)
    assert other.extra.kept == made.extra.kept
