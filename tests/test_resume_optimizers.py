"""Whatever an optimiser keeps a fit that goes on has: beside the state of parameters, and of another one inside."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ppl_vae.storage import newest
from tests.pairs import ModuleVAE
from tests.resuming import binary, numbers, run, same

OPTIONS = {"learning_rate": 0.1}


class Pulled(torch.optim.SGD):
    """Every other step goes half the way back to a slow copy of the parameters, kept in a list."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]
        self.n = 0

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        self.n += 1
        if self.n % 2 == 0:
            for slow, p in zip(self.slow, self.param_groups[0]["params"], strict=True):
                p.copy_(slow.lerp_(p, 0.5))


class Slowing(torch.optim.SGD):
    """Counts its steps among the states of parameters."""

    @torch.no_grad()
    def step(self, closure=None):
        self.state["n"] = self.state.get("n", 0) + 1
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=0.1 / self.state["n"])


class Wrapping(torch.optim.Optimizer):
    """Leaves its steps to another one, which has states of its own."""

    def __init__(self, parameters, lr):
        self.base = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
        super().__init__(self.base.param_groups, {"lr": lr})
        self.param_groups = self.base.param_groups

    def step(self, closure=None):
        self.base.step()


class Twice(Wrapping):
    """Keeps the other one under two names."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.inner = self.optimizer = self.base


def test_an_optimiser_under_two_names_is_kept_once(tmp_path: Path):
    for optimizer in (Wrapping, Twice):
        run(ModuleVAE, binary, OPTIONS | {"epochs": 1, "optimizer": optimizer}, run_dir=tmp_path / optimizer.__name__)
    plains = [newest(tmp_path / name / "checkpoints").plain["optimizer"] for name in ("Wrapping", "Twice")]
    assert plains[0]["entries"] == plains[1]["entries"]


@pytest.mark.parametrize("optimizer", [Pulled, Slowing, Wrapping, Twice])
def test_what_an_optimiser_keeps_changes_no_bit(optimizer, tmp_path: Path):
    options = OPTIONS | {"optimizer": optimizer}
    whole = numbers(*run(ModuleVAE, binary, options))
    run(ModuleVAE, binary, options | {"epochs": 1}, run_dir=tmp_path)
    assert same(whole, numbers(*run(ModuleVAE, binary, options, seed=1, run_dir=tmp_path, resume=True)))


def test_what_else_an_optimiser_changes_is_named(tmp_path: Path):
    class Replacing(torch.optim.SGD):
        def __init__(self, parameters, lr):
            super().__init__(parameters, lr=lr)
            self.kept = SimpleNamespace()

        def step(self, closure=None):
            super().step()
            self.kept = SimpleNamespace()

    options = OPTIONS | {"optimizer": Replacing, "epochs": 1}
    with pytest.warns(UserWarning, match=r"checkpoints do not hold 'optimizer\.kept', which"):
        run(ModuleVAE, binary, options, run_dir=tmp_path)
    assert newest(tmp_path / "checkpoints").plain["lost"] == ["optimizer.kept"]
