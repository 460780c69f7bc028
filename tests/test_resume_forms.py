"""States of another form, with hashes that are right, are refused before anything is changed; odd numbers are kept."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ppl_vae as pv
from ppl_vae.errors import CheckpointError
from ppl_vae.storage import Checkpoint, newest, steps, write
from ppl_vae.svi import stepper
from tests.pairs import ModuleVAE
from tests.resuming import Rounding, binary, numbers, run, same
from tests.training import fresh, state

OPTIONS = {"validation": binary[:5], "epochs": 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The state of a fit in the middle of an epoch."""
    root = tmp_path_factory.mktemp("state")
    run(ModuleVAE, binary, OPTIONS | {"steps": 5}, run_dir=root)
    return newest(root / "checkpoints")


def refused(root: Path, step: int, tensors: dict, plain: dict) -> str:
    """Why a fit does not go on from a state with hashes that are right, and changes nothing; empty if it does."""
    path = write(root / "checkpoints", step, tensors, plain)
    pair = fresh(seed=1)
    before = state(pair)
    try:
        run(lambda: pair, binary, OPTIONS, run_dir=root, resume=True)
    except CheckpointError as error:
        assert all(torch.equal(before[name], value) for name, value in state(pair).items())
        assert path.is_dir()
        assert not (root / "history.jsonl").exists()
        return str(error)
    return ""


def put(plain: dict, place: tuple, value: object) -> dict:
    """A copy with another value in a place."""
    changed = copy.deepcopy(plain)
    *way, last = place
    home = changed
    for key in way:
        home = home[key]
    home[last] = value
    return changed


def places(value: object, way: tuple = ()) -> list[tuple]:
    """Where values stand in a plain state; of long lists, the first few."""
    inside = list(value.items()) if isinstance(value, dict) else list(enumerate(value[:3]))
    found = [(*way, key) for key, _ in inside]
    deeper = [places(entry, (*way, key)) for key, entry in inside if isinstance(entry, dict | list)]
    return found + [place for more in deeper for place in more]


ODD = {
    "step before the first": (("step",), -5),
    "step of text": (("step",), "x"),
    "a step before that of the manifest": (("step",), 1),
    "a step after that of the manifest": (("step",), 6),
    "seen": (("seen",), "x"),
    "seconds": (("seconds",), "x"),
    "epoch": (("epoch",), {}),
    "rate": (("policy", "rate"), "x"),
    "learning rate": (("optimizer", "groups", 0, "lr"), "x"),
    "a learning rate that is no number": (("optimizer", "groups", 0, "lr"), {"float": "nan"}),
    "a parameter whose state is a number": (("optimizer", "entries", 1), {"float": "nan"}),
    "a group that is a number": (("optimizer", "groups", 0), {"float": "inf"}),
    "a best step that is still to come": (("best", "step"), 6),
    "a best epoch that is still to come": (("best", "epoch"), 3),
    "no learning rate": (("optimizer", "groups", 0, "lr"), None),
    "parameters of a group": (("optimizer", "groups", 0, "params"), [1]),
    "words of Python": (("random", "python", 1, 0), 2**70),
    "words of NumPy": (("random", "numpy", 1, 0), 2**70),
    "place in the words": (("random", "python", 1, 624), 2**31),
    "values": (("values",), {"0:nobody": 3}),
    "a number of no kind": (("values",), {"0:nobody": {"bytes": ["object", "00"]}}),
    "more": (("more",), 1),
}


@pytest.mark.parametrize("what", ODD)
def test_plain_values_of_another_form_are_refused(what: str, saved: Checkpoint, tmp_path: Path):
    assert refused(tmp_path, saved.step, saved.tensors, put(saved.plain, *ODD[what]))


@pytest.mark.parametrize("missing", ["step", "optimizer", "random", "compile", "facts", "values", "policy"])
def test_a_state_without_a_part_is_an_error_in_words(missing: str, saved: Checkpoint, tmp_path: Path):
    less = {name: value for name, value in saved.plain.items() if name != missing}
    words = refused(tmp_path, saved.step, saved.tensors, less)
    assert "began with" in words if missing == "facts" else f"none of '{missing}'" in words
    assert missing == "facts" or f"that ppl_vae {saved.library} has left" in words


@pytest.mark.parametrize("kind", ["missing", "shape", "dtype", "name", "more"])
def test_tensors_of_another_pair_are_refused_by_name(kind: str, saved: Checkpoint, tmp_path: Path):
    """F12: a parameter, a buffer, a moment or a best value that is absent, or has another form or name."""
    for prefix in ("parameter/", "optimizer/", "best/", "sums", "history"):
        name = next(name for name in sorted(saved.tensors) if name.startswith(prefix))
        tensors = dict(saved.tensors)
        found = tensors.pop(name)
        if kind != "missing":
            other = {"shape": found[None], "dtype": found.to(torch.int32)}.get(kind, found)
            tensors[f"{name}-renamed" if kind == "name" else name] = other
        if kind == "more":
            tensors[f"{name}-more"] = found
        words = refused(tmp_path / prefix.strip("/"), saved.step, tensors, saved.plain)
        assert name in words, words


SOMETHING = st.sampled_from(
    [None, True, -5, -1, 0, 1, 2**70, 0.5, -0.5, "x", [], [1], {}, {"a": 1}, {"tensor": True}, {"float": "inf"}]
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 10**6), value=SOMETHING, missing=st.none() | st.integers(0, 10**6))
def test_whatever_a_state_says_is_taken_or_refused(
    where: int, value: object, missing: int | None, saved: Checkpoint, tmp_path_factory, monkeypatch
):
    monkeypatch.setattr(stepper, "compile_function", Rounding)
    everywhere = places({k: v for k, v in saved.plain.items() if k != "facts"})
    place = everywhere[where % len(everywhere)]
    plain, tensors = put(saved.plain, place, value), dict(saved.tensors)
    if missing is not None:
        tensors.pop(sorted(tensors)[missing % len(tensors)])
    try:
        refused(tmp_path_factory.mktemp("any"), saved.step, tensors, plain)
    except pv.EstimateError:
        assert place[:2] == ("optimizer", "groups")  # options that make numbers overflow are options all the same


# Values that JSON has no word for


class Watchful(ModuleVAE):
    """Keeps the best it has seen, from minus infinity on, and numbers of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.best, self.last, self.wave, self.small = 0.0, 0.0, 1j, np.float32(0.1)

    def model(self, x):
        self.best = max(self.best, float(x.mean())) if self.wave.imag > 1 else -float("inf")
        self.last, self.wave, self.small = float("nan"), self.wave + 1j, self.small + np.float32(0.1)
        super().model(x)


def test_numbers_that_programs_keep_come_back_as_they_were(tmp_path: Path):
    pair, _ = run(Watchful, binary, {"epochs": 1}, run_dir=tmp_path / "run")
    again, _ = run(Watchful, binary, {"epochs": 1}, seed=1, run_dir=tmp_path / "run", resume=True)
    assert (again.wave, again.small, again.best) == (pair.wave, pair.small, pair.best)
    assert type(again.small) is np.float32
    assert again.last != again.last


def test_what_no_checkpoint_can_hold_is_refused_before_the_first_step(tmp_path: Path):
    pair = fresh()
    pair.register_buffer("wave", torch.zeros(2, dtype=torch.complex128))
    before = state(pair)
    with pytest.raises(CheckpointError, match=r"no checkpoint could hold the pair: tensor 'buffer/.*wave'"):
        run(lambda: pair, binary, {}, run_dir=tmp_path / "run")
    assert all(torch.equal(before[name], value) for name, value in state(pair).items())
    assert not (tmp_path / "run").exists()


def test_what_a_program_keeps_and_json_cannot_is_said_and_the_run_goes_on(tmp_path: Path):
    class Odd(ModuleVAE):
        def __init__(self) -> None:
            super().__init__()
            self.mood = ""

        def model(self, x):
            self.mood = np.str_("good")
            super().model(x)

    with pytest.warns(UserWarning, match=r"checkpoints do not hold 'self\.mood'"):
        run(Odd, binary, {}, run_dir=tmp_path / "run", checkpoint_every=1)


def test_a_long_history_does_not_fill_the_plain_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = {"validation": binary[:5], "record_kl": True, "epochs": 3}
    whole = numbers(*run(ModuleVAE, binary, options, run_dir=tmp_path / "run", checkpoint_every=4))
    assert steps(tmp_path / "run/checkpoints") == [8, 9]
    assert same(whole, numbers(*run(ModuleVAE, binary, options, seed=1, run_dir=tmp_path / "run", resume=True)))
    plain = newest(tmp_path / "run/checkpoints").plain
    assert "history" not in plain
