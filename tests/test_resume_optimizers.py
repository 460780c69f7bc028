"""Whatever an optimiser keeps a fit that goes on has: beside the state of parameters, and of another one inside."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ppl_vae.errors import CheckpointError
from ppl_vae.storage import newest
from ppl_vae.svi.moments import check_moments, moments, put_moments
from ppl_vae.svi.update import make_update
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


class Easing(torch.optim.Adam):
    """Lowers its betas, which are a tuple among the options of each group, and counts in a list among them."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.param_groups[0]["counts"] = [0, 0]

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            group["counts"][0] += 1
            group["betas"] = (group["betas"][0] * 0.9 ** group["counts"][0], group["betas"][1])


class Weighted(torch.optim.SGD):
    """A tensor among its options, which another one replaces, and tuples in the states of parameters."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.param_groups[0]["weight"] = torch.ones(2)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["weight"] = group["weight"] * 0.8
            for p in group["params"]:
                mean, count = self.state[p].get("mean", (torch.zeros_like(p), 0))
                self.state[p]["mean"] = mean + p.grad, count + 1
                p.sub_(mean + p.grad, alpha=group["lr"] * float(group["weight"][1]) / (count + 1))


class Listing(torch.optim.SGD):
    """Lists of tensors in the states of parameters, written to and replaced, as second-order methods keep them."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                held = self.state[p].setdefault("held", [torch.zeros_like(p), [torch.ones(()), 0]])
                held[0].add_(p.grad)
                held[1][0], held[1][1] = held[1][0] * 0.8, held[1][1] + 1
                p.sub_(held[0], alpha=group["lr"] * float(held[1][0]) / held[1][1])


class Cycling(torch.optim.Adam):
    """Keeps schedulers of torch, and reads what they have said last."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(self, max_lr=lr, total_steps=20)
        self.decay = torch.optim.lr_scheduler.ExponentialLR(self, 0.5)

    def step(self, closure=None):
        self.param_groups[0]["lr"] = self.cycle.get_last_lr()[0] + self.decay.get_last_lr()[0]
        super().step()
        self.cycle.step()
        self.decay.step()


class Twice(Wrapping):
    """Keeps the other one under two names."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.inner = self.optimizer = self.base


class InDictionary(Wrapping):
    """Keeps the other one in a dictionary of an object."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.held = SimpleNamespace(base={"a": self.base})
        del self.base

    def step(self, closure=None):
        self.held.base["a"].step()


class Sharing(Wrapping):
    """Shows the states of the other one as its own."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.state = self.base.state


def hooked(parameters, lr):
    """One of torch's own classes: another one that nothing but a hook knows."""
    optimizer = torch.optim.SGD(parameters, lr=lr)
    inner = torch.optim.Adam(optimizer.param_groups[0]["params"], lr=0.01)
    optimizer.register_step_post_hook(lambda optimizer, arguments, options: inner.step())
    return optimizer


def scheduled(parameters, lr):
    """One of torch's own classes: a scheduler among its attributes, stepped by a hook."""
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    optimizer.cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=20)
    optimizer.register_step_post_hook(lambda optimizer, arguments, options: optimizer.cycle.step())
    return optimizer


def counting(parameters, lr):
    """One of torch's own classes: numbers among its attributes, and in a list that nothing but a hook knows."""
    optimizer, calls = torch.optim.SGD(parameters, lr=lr), [0]
    optimizer.count = 0

    @torch.no_grad()
    def decay(optimizer, arguments, options):
        optimizer.count, calls[0] = optimizer.count + 1, calls[0] + 1
        for p in optimizer.param_groups[0]["params"]:
            p.mul_(1 - 0.1 / (optimizer.count + calls[0]))

    optimizer.register_step_post_hook(decay)
    return optimizer


class Gaining(torch.optim.SGD):
    """Adds a number and a tensor to the options of its groups."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            group["weight"] = group.get("weight", torch.ones(2)) * 0.9
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] * float(group["weight"][1]) / group["count"])


def test_an_optimiser_under_two_names_is_kept_once(tmp_path: Path):
    for optimizer in (Wrapping, Twice, Sharing):
        run(ModuleVAE, binary, OPTIONS | {"epochs": 1, "optimizer": optimizer}, run_dir=tmp_path / optimizer.__name__)
    names = ("Wrapping", "Twice", "Sharing")
    wrapping, twice, sharing = (newest(tmp_path / name / "checkpoints").plain["optimizer"]["entries"] for name in names)
    assert wrapping == twice
    assert sharing == wrapping[len(sharing) :]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize(
    "optimizer",
    [
        *(Pulled, Slowing, Wrapping, Twice, InDictionary, Sharing, Easing, Weighted, Listing, Cycling, Gaining),
        *(hooked, scheduled, counting),
    ],
)
def test_what_an_optimiser_keeps_changes_no_bit(optimizer, tmp_path: Path):
    options = OPTIONS | {"optimizer": optimizer}
    whole = numbers(*run(ModuleVAE, binary, options))
    run(ModuleVAE, binary, options | {"epochs": 1}, run_dir=tmp_path)
    assert same(whole, numbers(*run(ModuleVAE, binary, options, seed=1, run_dir=tmp_path, resume=True)))


class Tuned(ModuleVAE):
    """A pair whose model moves a number by an optimiser of its own, whose rate falls, in every step."""

    def __init__(self):
        super().__init__()
        self.shift = torch.zeros(1)
        self.tuner = torch.optim.Adam([self.shift], lr=0.1)
        self.decay = torch.optim.lr_scheduler.ExponentialLR(self.tuner, 0.8)

    def model(self, x):
        if self.training:
            self.shift.grad = x.mean().reshape(1) - self.shift
            self.tuner.step()
            self.decay.step()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + self.shift.clone()).to_event(1), obs=x)


@pytest.mark.parametrize("optimizer", [None, Wrapping])
def test_what_an_optimiser_of_the_programs_keeps_changes_no_bit(optimizer, tmp_path: Path):
    options = OPTIONS | {"optimizer": optimizer}
    whole, _ = run(Tuned, binary, options)
    run(Tuned, binary, options | {"epochs": 1}, run_dir=tmp_path)
    pieces, _ = run(Tuned, binary, options, seed=1, run_dir=tmp_path, resume=True)
    assert all(map(torch.equal, whole.parameters(), pieces.parameters()))
    assert torch.equal(whole.shift, pieces.shift)
    assert whole.tuner.param_groups[0]["lr"] == pieces.tuner.param_groups[0]["lr"]


def test_lists_that_an_optimiser_keeps_are_rolled_back():
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    update = make_update(Listing, parameters, 0.1)
    update(parameters, [torch.ones(2)], None)
    before = moments(update)
    tensors = {name: tensor.clone() for name, tensor in before.tensors.items()}
    for _ in range(2):
        update(parameters, [torch.ones(2)], None)
    check_moments(update, tensors, before.plain)
    put_moments(update, tensors, before.plain)
    first, (weight, count) = update.optimizer.state[parameters[0]]["held"]
    assert (first.tolist(), float(weight), count) == ([1.0, 1.0], pytest.approx(0.8), 1)


def test_a_bare_list_in_a_file_holds_no_marks_of_tensors():
    """As earlier versions wrote lists of numbers, and as a stranger may write others."""
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    update = make_update(Listing, parameters, 0.1)
    update(parameters, [torch.ones(2)], None)
    found = moments(update)
    bare = {"held": [{"tensor": True}, [{"tensor": True}, 1]]}
    put_moments(update, found.tensors, found.plain | {"entries": [bare]})
    first, (weight, count) = update.optimizer.state[parameters[0]]["held"]
    assert (first.tolist(), float(weight), count) == ([1.0, 1.0], pytest.approx(0.8), 1)


def test_what_else_an_optimiser_changes_is_named(tmp_path: Path):
    class Replacing(torch.optim.SGD):
        def __init__(self, parameters, lr):
            super().__init__(parameters, lr=lr)
            self.kept = self.param_groups[0]["option"] = SimpleNamespace()

        def step(self, closure=None):
            super().step()
            self.kept, self.param_groups[0]["option"] = SimpleNamespace(), SimpleNamespace()
            self.param_groups[0] |= {3: 0.5, "new": SimpleNamespace()}

    options = OPTIONS | {"optimizer": Replacing, "epochs": 1}
    names = ["optimizer.kept", "optimizer.param_groups.0.option", "optimizer.groups[0].3", "optimizer.groups[0].new"]
    with pytest.warns(UserWarning, match=r"checkpoints do not hold 'optimizer\.kept', .*option', .*3', .*new', which"):
        run(ModuleVAE, binary, options, run_dir=tmp_path)
    assert newest(tmp_path / "checkpoints").plain["lost"] == names


class Measuring(torch.optim.SGD):
    """Keeps of each parameter what no checkpoint holds, a number and a dictionary beside it."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state.setdefault("norms", np.zeros(3))[0] += 1.0
            state.setdefault("sparse", torch.eye(2).to_sparse())
            state[0] = torch.ones(1)
            state["n"], state["seen"] = state.get("n", np.int64(0)) + 1, {"n": int(state["norms"][0])}
        super().step()


def test_what_an_optimiser_keeps_of_each_parameter_and_no_checkpoint_holds_is_lost(tmp_path: Path):
    options = OPTIONS | {"optimizer": Measuring, "epochs": 1}
    with pytest.warns(
        UserWarning, match=r"do not hold 'optimizer\.entries\[0\]\.norms', .*sparse', .*0', .*entries\[1"
    ):
        run(ModuleVAE, binary, options, run_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"norms"):
        run(ModuleVAE, binary, options | {"epochs": 2}, run_dir=tmp_path, resume=True)
    entries = newest(tmp_path / "checkpoints").plain["optimizer"]["entries"]
    assert entries[0].keys() == {"norms", "sparse", "n", "seen"}
    assert entries[0]["seen"] == {"n": 3}  # counted anew
    update = make_update(Measuring, parameters := [torch.nn.Parameter(torch.zeros(2))], 0.1)
    own, first = update.optimizer.state[parameters[0]], moments(update)
    update(parameters, [torch.ones(2)], None)
    found = moments(update)
    update(parameters, [torch.ones(2)], None)
    check_moments(update, found.tensors, found.plain)
    put_moments(update, found.tensors, found.plain)
    assert (own["n"], own["norms"][0]) == (1, 2.0)
    put_moments(update, first.tensors, first.plain)
    assert own.keys() == {0}


def test_an_option_that_no_checkpoint_holds_is_not_overwritten():
    """As a stranger's checkpoint would have it: a list becomes a number."""

    def listing(parameters, lr):
        optimizer = torch.optim.SGD(parameters, lr=lr)
        optimizer.param_groups[0]["extra"] = [object()]
        return optimizer

    update = make_update(listing, [torch.nn.Parameter(torch.zeros(2))], 0.1)
    found = moments(update)
    groups = [found.plain["groups"][0] | {"extra": 0.1}]
    with pytest.raises(CheckpointError, match=r"groups\[0\]\.extra: expected no option"):
        check_moments(update, found.tensors, found.plain | {"groups": groups})


def test_no_step_with_a_hook_is_told_to_do_nothing():
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    update = make_update(partial(torch.optim.Adam, fused=True), parameters, 0.1)
    assert update.can_skip
    update.optimizer.register_step_post_hook(lambda optimizer, arguments, options: None)
    assert not update.can_skip


OPTIONS_OF = {
    "counted": partial(torch.optim.Adam, foreach=False),
    "fused": partial(torch.optim.Adam, fused=True),
    "capturable": partial(torch.optim.Adam, capturable=True),
    "momentum": partial(torch.optim.SGD, momentum=0.9, foreach=False),
}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", OPTIONS_OF)
def test_tensors_of_an_optimiser_go_where_torch_has_them(name: str):
    """A GPU that there need not be: what came from a file, on the CPU, is where it was before."""

    def made():
        parameters = [torch.nn.Parameter(torch.zeros(shape, device="cuda")) for shape in ((), (3,))]
        return parameters, make_update(OPTIONS_OF[name], parameters, 0.1)

    def places(parameters, update):
        return [(key, str(t.device)) for p in parameters for key, t in update.optimizer.state[p].items()]

    with FakeTensorMode():
        parameters, update = made()
        update(parameters, [torch.ones_like(p) for p in parameters], None)
        state = moments(update)
        read = {where: tensor.detach().cpu() for where, tensor in state.tensors.items()}
        others, again = made()
        check_moments(again, read, state.plain)
        put_moments(again, read, state.plain)
        assert places(others, again) == places(parameters, update)
