"""Every part of the state of a fit is needed, and a state of another form is refused before anything is changed."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_vae.storage import Checkpoint, read, step_folder, write
from ppl_vae.svi import saving, stepper
from tests.pairs import ModuleVAE
from tests.resuming import CASES, MOODY, Moody, Rounding, binary, numbers, run, same


class Wandering(torch.optim.SGD):
    """Plain numbers beside its parameters, and a pace of its own among its options: both grow with the steps."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        for group in self.param_groups:
            group["pace"] = 1.0

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["pace"] *= 1.1
            for p in group["params"]:
                own = self.state[p]
                own["count"] = own.get("count", 0) + 1
                p.sub_(p.grad, alpha=group["lr"] * group["pace"] * own["count"])


class Skipping(Moody):
    """Its second run in training is not finite."""

    def model(self, x):
        super().model(x * (torch.nan if self.training and self.calls == 1 else 1.0))


STATES = CASES | {
    **MOODY,
    "skipping": (Skipping, binary, {"on_nonfinite": "skip"}),
    "wandering": (ModuleVAE, binary, {"optimizer": Wandering}),
    "compiled": (ModuleVAE, binary, {"compile": True}),
}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch):
    """Every checkpoint stays, and no test waits for the compiler."""
    monkeypatch.setattr(saving, "_KEPT", 1000)
    monkeypatch.setattr(stepper, "compile_function", Rounding)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


_left: dict[tuple[Path, str], tuple[tuple, list[Checkpoint]]] = {}


def left_by(name: str, folder: Path) -> tuple[tuple, list[Checkpoint]]:
    """What a fit leaves, made once, and its states: two within an epoch, the later ones first where they tell more."""
    if (folder, name) not in _left:
        random.seed(1), np.random.seed(1)  # noqa: NPY002
        root = folder / name
        whole = numbers(*run(*STATES[name], run_dir=root, checkpoint_every=1))
        _left[folder, name] = whole, [read(step_folder(root / "checkpoints", step)) for step in (5, 7, 2)]
    return _left[folder, name]


def begun(part: str, plain: dict, tensors: dict) -> tuple[dict, dict]:
    """A state of which one part is as it is when a fit begins, or another fit would have it."""
    kind, _, name = part.partition(" ")
    if kind == "tensors":
        return plain, {k: torch.zeros_like(t) if k.startswith(name) else t for k, t in tensors.items()}
    if name == "python":
        version, internal, gauss = random.Random(3).getstate()
        return plain | {"random": plain["random"] | {"python": [version, list(internal), gauss]}}, tensors
    if name == "numpy":
        word, keys, *rest = np.random.RandomState(3).get_state(legacy=True)
        return plain | {"random": plain["random"] | {"numpy": [str(word), [int(k) for k in keys], *rest]}}, tensors
    if name == "best":
        return plain | {"best": None}, {k: t for k, t in tensors.items() if not k.startswith("best/")}
    if name == "skipped":
        return plain | {"policy": plain["policy"] | {"skipped": []}}, tensors
    optimizer = copy.deepcopy(plain["optimizer"])
    if name == "entries":
        optimizer["entries"] = [entry | {"count": 0} for entry in optimizer["entries"]]
    if name == "groups":
        optimizer["groups"] = [group | {"pace": 1.0} for group in optimizer["groups"]]
    others = {
        **{"step": 0, "epoch": 0, "seen": 0, "values": {}, "optimizer": optimizer, "entries": optimizer},
        "policy": {"skipped": [], "rolled_back": [], "rate": 0.5},
        "compile": {"compiled": False, "payback": {"decided": True, "operations": None}},
    }
    place = "optimizer" if name in ("entries", "groups") else name
    return plain | {place: others[place]}, tensors


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("tensors parameter/", "defaults"),
        ("tensors buffer/", "buffers and dropout"),
        ("tensors buffer/", "a running baseline"),
        ("tensors optimizer/", "defaults"),
        ("tensors optimizer/", "momentum and a schedule"),
        ("tensors best/", "patience"),
        ("tensors sums", "defaults"),
        ("tensors sums", "an end within an epoch"),
        ("tensors value/", "moody"),
        ("tensors history", "defaults"),
        ("plain step", "beta that grows"),
        ("plain step", "momentum and a schedule"),
        ("plain epoch", "defaults"),
        ("plain seen", "defaults"),
        ("plain seen", "an end within an epoch"),
        ("plain best", "patience"),
        ("plain values", "moody"),
        ("plain python", "moody"),
        ("plain numpy", "moody"),
        ("plain entries", "wandering"),
        ("plain groups", "wandering"),
        ("plain policy", "defaults"),
        ("plain skipped", "skipping"),
        ("plain compile", "compiled"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*The step is skipped:UserWarning")
def test_every_part_of_the_state_is_needed(part: str, name: str, tmp_path: Path, folder: Path, kept: None):
    """Without it the numbers are others; with it, through the same hands, they are the same."""
    whole, states = left_by(name, folder)

    def gone_on(plain: dict, tensors: dict) -> tuple:
        root = tmp_path / f"{len([*tmp_path.iterdir()])}"
        write(root / "checkpoints", plain["step"], tensors, plain)
        return numbers(*run(*STATES[name], seed=1, run_dir=root, resume=True))

    assert any(not same(whole, gone_on(*begun(part, found.plain, found.tensors))) for found in states)
    assert same(whole, gone_on(states[0].plain, states[0].tensors))
