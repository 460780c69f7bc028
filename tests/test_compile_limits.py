"""What cannot be compiled says why and trains as written; what changes during a compiled fit is seen."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae.compile import CaptureError, build, capture, compile_function
from ppl_vae.pair import as_pair
from ppl_vae.rng import seeded
from tests.pairs import ModuleVAE, binary_rows
from tests.training import fitted
from tests.zoo import Plain


class Branching(Plain):
    """Looks at the values of its data."""

    def model(self, x):
        if x.sum() > 0:
            x = x + 0.0
        super().model(x)


class Peeking(Plain):
    """Looks at the values of its latents."""

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            shift = 0.0 if float(z.detach().abs().max()) < 1e6 else 1.0
            pyro.sample("x", dist.Normal(self.decoder(z) + shift, 1.0).to_event(1), obs=x)


class Counting(Plain):
    """Counts its calls, and uses the count."""

    calls = 0.0

    def guide(self, x):
        self.calls += 1.0
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(self.encoder(x)[:, :2] + 0.1 * self.calls, 1.0).to_event(1))


class NoiseFromNumpy(Plain):
    """Draws outside torch."""

    spread = 1.0

    def guide(self, x):
        shift = self.spread * float(np.random.default_rng().normal())
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(self.encoder(x)[:, :2] + shift, 1.0).to_event(1))


class LittleNoiseFromNumpy(NoiseFromNumpy):
    """So little that it might be taken for rounding."""

    spread = 1e-4


class CountingInABuffer(Plain):
    """Averages over all batches, as a batch norm without momentum: by a number that it reads from a buffer."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(encoder)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("average", torch.zeros(6))

    def guide(self, x):
        with torch.no_grad():
            self.calls += 1
            self.average += (x.mean(0) - self.average) / float(self.calls)
        super().guide(x - self.average)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (CountingInABuffer, r"`self.average \+= .*`: a number is read from a tensor"),
        (Branching, r"test_compile_limits.py, line \d+, `if x.sum\(\) > 0:`"),
        (Counting, "change .*calls"),
        (NoiseFromNumpy, "changes from call to call"),
        (LittleNoiseFromNumpy, "changes from call to call"),
    ],
)
def test_what_cannot_be_compiled_says_why_once_and_trains(kind, reason, interpreted):
    pair, x = kind(nn.Linear(6, 4)), torch.randn(20, 6)
    before = [p.detach().clone() for p in pair.parameters()]
    with pytest.warns(UserWarning, match=reason) as caught:
        result = fitted(pair, x, epochs=3, compile=True)
    assert len(caught) == 1
    assert not result.compiled
    assert result.steps == 9
    assert all(bool((p != b).any()) for p, b in zip(pair.parameters(), before, strict=True))


def test_an_objective_that_leaves_torch_is_refused():
    with pytest.warns(UserWarning, match="this fit runs uncompiled"):
        fitted(ModuleVAE(), binary_rows(8), epochs=1, objective=pv.from_pyro(pyro.infer.Trace_ELBO()), compile=True)


def test_a_graph_sees_what_it_holds_change():
    weight = nn.Parameter(torch.tensor(2.0))
    captured = capture(lambda x: (weight * x,), torch.ones(3))
    assert len(captured.tensors) == 1
    with torch.no_grad():
        weight.fill_(5.0)
        assert captured.graph(*captured.tensors, torch.ones(3))[0].tolist() == [5.0, 5.0, 5.0]


def test_a_capture_names_the_line():
    def looks(x: Tensor):
        return (x if float(x.sum()) > 0 else -x,)

    with pytest.raises(CaptureError, match=r"return \(x if float"):
        capture(looks, torch.ones(3))


@pytest.mark.parametrize(
    "read",
    [
        lambda held, x: x * held.item(),
        lambda held, x: x * float(held),
        lambda held, x: x * held.tolist(),
        lambda held, x: x * float(held.numpy()),
        lambda held, x: x * float(np.asarray(held)),
        lambda held, x: x * float(np.from_dlpack(held)),
        lambda held, x: x + torch.full((3,), held),
        lambda held, x: torch.add(x, x, alpha=held),
        lambda held, x: x if torch.equal(held, torch.ones(())) else -x,
        lambda held, x: x if torch.allclose(held, held) else -x,
        lambda held, x: x if held > 1 else -x,
    ],
    ids=["item", "float", "list", "numpy", "array", "dlpack", "full", "alpha", "equal", "allclose", "branch"],
)
def test_a_number_that_is_read_from_a_tensor_is_no_constant(read):
    """A graph kept what the tensor was at the capture, though it is a buffer that steps change."""
    held = torch.tensor(2.0)
    with pytest.raises(CaptureError):
        capture(lambda x: (read(held, x),), torch.ones(3))


def test_an_evaluation_that_cannot_be_compiled_says_why(interpreted):
    pair, x = Peeking(nn.Linear(6, 4)), torch.randn(20, 6)
    plain = pv.log_likelihood(pair, x, 50, compile=False, progress=False)
    with pytest.warns(UserWarning, match="the model of this evaluation runs uncompiled: test_compile_limits.py, line"):
        found = pv.log_likelihood(pair, x, 50, compile=True, progress=False)
    np.testing.assert_allclose(plain.value, found.value, rtol=1e-6)


class Annealed(Plain):
    """Weighs its latent by a count of its own, which a few calls do not show in the numbers."""

    step = 0

    def model(self, x):
        self.step += 1
        with pyro.plate("data", x.shape[0]), pyro.poutine.scale(scale=0.01 if self.step < 100 else 1.0):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)


class Replacing(Plain):
    """Puts new tensors in the place of its own."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.mean = torch.zeros(6)
        self.register_buffer("centre", torch.zeros(6))

    def model(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        self.centre = 0.9 * self.centre + 0.1 * x.mean(0)
        self.decoder.weight.data = self.decoder.weight.data.clamp(min=-1.0)
        super().model(x)


class Moving(Plain):
    """Writes into a tensor that is no buffer."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.mean = torch.zeros(6)

    def guide(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        super().guide(x + self.mean)


@pytest.mark.parametrize("kind", [Counting, Annealed, Replacing, Moving])
def test_a_trial_of_compiling_leaves_no_trace(kind, interpreted):
    """What is not compiled trains as if nobody had tried: the same parameters, buffers and attributes."""
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    one, other = kind(nn.Linear(6, 4)), kind(nn.Linear(6, 4))
    other.load_state_dict(one.state_dict())
    fitted(one, x, epochs=2, compile=False)
    with pytest.warns(UserWarning, match="this fit runs uncompiled"):
        fitted(other, x, epochs=2, compile=True)
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for name in ("calls", "step"):
        assert getattr(one, name, 0) == getattr(other, name, 0)
    if hasattr(one, "mean"):
        assert torch.equal(one.mean, other.mean)


class Kept:
    """A plain object with networks, a weight that something else sets, and a count with a late effect."""

    def __init__(self, seed=0):
        with seeded(seed):
            self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)
        self.weight, self.calls = 0.0, 0

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            with pyro.poutine.scale(scale=0.1 + self.weight):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]), pyro.poutine.scale(scale=0.1 + self.weight):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class KeptCount(Kept):
    """Sets its own weight, from a count of its runs."""

    def guide(self, x):
        self.calls += 1
        self.weight = 1.0 - max(0.3, 1.0 - 1e-5 * self.calls)
        super().guide(x)


def test_a_weight_set_from_outside_ends_a_compiled_fit(interpreted):
    """The schedule sets a weight that the programs read; as compiled they would keep the one of the trial."""
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))

    def fit_of(kept, compile):
        def schedule(step):
            kept.weight = 0.0 if step < 4 else 1.0
            return 1.0

        return fitted(kept, x, epochs=3, compile=compile, schedule=schedule, learning_rate=0.1)

    one, other = Kept(), Kept()
    fit_of(one, False)
    with pytest.warns(UserWarning, match="goes on uncompiled: 'self.weight'.* was 0.0 .* is 1.0 now") as caught:
        result = fit_of(other, True)
    assert len(caught) == 1
    assert not result.compiled
    for a, b in zip(as_pair(one).parameters(), as_pair(other).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_count_on_a_plain_object_is_seen_in_the_trial(interpreted):
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    one, other = KeptCount(), KeptCount()
    fitted(one, x, epochs=2, compile=False)
    with pytest.warns(UserWarning, match="this fit runs uncompiled: the programs change 'self.weight'"):
        fitted(other, x, epochs=2, compile=True)
    assert one.calls == other.calls == 6
    for a, b in zip(as_pair(one).parameters(), as_pair(other).parameters(), strict=True):
        assert torch.equal(a, b)


class Rebinding(torch.optim.Optimizer):
    """Gives every parameter new memory in each step."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


def test_an_optimiser_that_rebinds_memory():
    torch.manual_seed(0)
    one, other = ModuleVAE(), ModuleVAE()
    other.load_state_dict(one.state_dict())
    options = {"epochs": 3, "optimizer": Rebinding, "learning_rate": 0.05}
    fitted(one, binary_rows(20), compile=False, **options)
    assert fitted(other, binary_rows(20), compile=True, **options).compiled
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Transposing(Rebinding):
    """Gives every matrix other strides too."""

    def step(self):
        super().step()
        for p in self.param_groups[0]["params"]:
            p.data = p.data.t().contiguous().t() if p.dim() == 2 else p.data


def test_an_optimiser_that_changes_strides_ends_a_compiled_fit(interpreted):
    torch.manual_seed(0)
    one, other = ModuleVAE(), ModuleVAE()
    other.load_state_dict(one.state_dict())
    options = {"epochs": 3, "optimizer": Transposing, "learning_rate": 0.05}
    fitted(one, binary_rows(20), compile=False, **options)
    with pytest.warns(UserWarning, match=r"goes on uncompiled: '.*weight'.* with strides .* is .* with strides"):
        assert not fitted(other, binary_rows(20), compile=True, **options).compiled
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_autocast_is_named_where_it_stands_in_the_way(interpreted):
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.warns(UserWarning, match="torch.autocast is on"):
        assert not fitted(Plain(nn.Linear(6, 4)), torch.randn(20, 6), epochs=1, compile=True).compiled


def test_noise_is_not_taken_for_the_rounding_of_an_ill_conditioned_step(interpreted):
    """The last digit of the weight moves these values by 1e-2; what changes from call to call by 1e-4 is still seen."""
    module = nn.Linear(1, 1, bias=False)
    unseen = itertools.cycle([8e-5, -8e-5])

    def function(x):
        return torch.sin(1e5 * module.weight) * x + next(unseen), torch.sin(1e5 * module.weight)

    with pytest.raises(CaptureError, match="changes from call to call"):
        compile_function(function, [[torch.linspace(0, 1, 5)], [torch.linspace(1, 2, 5)]], module)


def test_a_step_that_is_not_finite_is_not_blamed_on_python(interpreted):
    """What is no number here and there, in another order of operations, is no sign of noise outside torch."""
    module, unseen = nn.Linear(5, 1), itertools.cycle([torch.nan, 1.0])

    def function(x):
        return module(x) * next(unseen), module.weight * torch.nan

    with pytest.raises(CaptureError, match="the step is not finite on the rows that it was tried on"):
        compile_function(function, [[torch.linspace(0, 1, 5)], [torch.linspace(1, 2, 5)]], module)


@pytest.mark.parametrize(("edges", "compiles"), [(1, True), (2, False)])
def test_a_number_that_rounds_across_an_edge_differs_once(edges: int, compiles: bool, interpreted, monkeypatch):
    """As in a spline, where a draw lies on the edge of a bin in one trial of a thousand."""
    module, compared, calls = nn.Linear(5, 1), build._compare, []

    def compare(*arguments):
        calls.append(arguments)
        if len(calls) <= edges:
            raise CaptureError("the compiled step differs from the step by 7.4e-07")
        compared(*arguments)

    def function(x):
        return (module(x),)

    monkeypatch.setattr(build, "_compare", compare)
    with nullcontext() if compiles else pytest.raises(CaptureError, match=r"7\.4e-07"):
        compile_function(function, [[torch.linspace(0, 1, 5)], [torch.linspace(1, 2, 5)]], module)
    assert len(calls) == (4 if compiles else 2)  # both others of the first example, then the second example
