"""A compiled step computes what the step computes, with the same noise, and where compiling pays it is done."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

import ppl_vae as pv
from ppl_vae.compile import Payback, build, compile_function
from ppl_vae.device import full_precision
from ppl_vae.pair import as_pair, kept_buffers
from ppl_vae.rng import seeded
from ppl_vae.svi.gradient import Gradient
from tests.pairs import DiscreteVAE, HierarchicalVAE, ModuleVAE, binary_rows
from tests.training import fitted
from tests.zoo import ZOO, Plain, batch_norm

TOLERANCE = 1e-5  # of the largest number of an output or, where all cancel, of the whole gradient


# A few go through torch's compiler, which takes 6 to 40 seconds a pair; all others do with -m slow.
THROUGH_THE_COMPILER = {
    *("Bernoulli", "DReG, parameters held by distributions", "discrete, enumerated", "convolutional"),
    "batch normalisation and dropout",
}


@pytest.mark.parametrize("name", ZOO)
def test_captured_equals_as_written(name, interpreted):
    """Loss, metrics and every gradient by the graph that a compiler is given: torch runs it operation by operation."""
    assert_compiles(name, torch.device("cpu"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in THROUGH_THE_COMPILER else pytest.mark.slow) for name in ZOO]
)
def test_compiled_equals_as_written(name, device):
    assert_compiles(name, device)


def assert_compiles(name, device):
    """The same numbers on two batches, two values of beta and new noise."""
    case = ZOO[name]
    made = case.make()
    pair = as_pair(made)
    data = case.data if isinstance(case.data, tuple) else (case.data,)
    objective = case.objective(made) if callable(case.objective) else case.objective
    layout = pv.check(pair, data).layout
    pair, data = pair.to(device), tuple(x.to(device) for x in data)  # now that it has its parameters
    parameters = [p for p in pair.parameters() if p.requires_grad]
    gradient = Gradient(pair, objective, layout, parameters, binarize=False, clip_norm=None)
    if hasattr(objective, "begin"):
        objective.begin(pair)

    def arguments(beta, *rows):
        return torch.tensor(rows, device=device), torch.tensor(beta, dtype=torch.float64), *data

    examples = [arguments(1.0, *range(12)), arguments(0.3, *range(19, 7, -1))]
    with pyro.validation_enabled(False), full_precision(device):
        compiled = compile_function(gradient, examples, pair)
        for seed, example in enumerate(examples, start=17):
            with seeded(seed, device), kept_buffers(pair):
                expected = [t.detach() for t in gradient(*example)]
            with seeded(seed, device):
                found = compiled(*example)
            whole = max(float(t.abs().nan_to_num().max()) for t in expected[1:])
            for one, other in zip(expected, found, strict=True):
                scale = max(float(one.abs().nan_to_num().max()), whole)
                torch.testing.assert_close(one, other, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True)
        draws = bool(layout.local_latents) and getattr(objective, "discrete", "") != "enumerate"
        one, other = (compiled(*examples[0])[0].nan_to_num() for _ in range(2))
        assert torch.equal(one, other) != draws


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (ModuleVAE, {"binarize": "dynamic", "objective": pv.ELBO(beta=pv.schedules.Linear(0.0, 1.0, 6))}),
        (ModuleVAE, {"clip_norm": 0.5, "schedule": pv.schedules.Cosine(1.0, 0.1, 9)}),
        (ModuleVAE, {"optimizer": torch.optim.SGD}),
        (DiscreteVAE, {"objective": pv.ELBO(baseline="running")}),
    ],
    ids=["binarised, annealed", "clipped, scheduled", "another optimiser", "running baseline"],
)
def test_a_compiled_fit_is_the_fit(make, options, device, interpreted):
    """The same parameters after three epochs of two whole batches and a smaller one."""
    assert_one_fit(make, options, device)


def test_a_fit_through_the_compiler_is_the_fit(device):
    assert_one_fit(ModuleVAE, {"binarize": "dynamic", "clip_norm": 0.5}, device)


def assert_one_fit(make, options, device):
    x = torch.rand(20, 5, generator=torch.Generator().manual_seed(0)) if "binarize" in options else binary_rows(20)
    torch.manual_seed(0)
    one = make()
    other = make()
    other.load_state_dict(one.state_dict())
    start = [p.detach().clone() for p in one.parameters()]
    plain = fitted(one, x, epochs=3, compile=False, device=device, **options)
    compiled = fitted(other, x, epochs=3, compile=True, device=device, **options)
    assert compiled.compiled
    assert not plain.compiled
    for a, b, before in zip(one.parameters(), other.parameters(), start, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert not torch.equal(a.cpu(), before)
    np.testing.assert_allclose(plain.history["elbo"], compiled.history["elbo"], rtol=1e-5)
    np.testing.assert_allclose(plain.history["grad_norm"], compiled.history["grad_norm"], rtol=1e-4)


def test_buffers_move_as_often_as_steps_are_taken(interpreted):
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    one, other = batch_norm(), batch_norm()
    other.load_state_dict(one.state_dict())
    fitted(one, x, epochs=2, compile=False)
    assert fitted(other, x, epochs=2, compile=True).compiled
    for a, b in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert int(one.encoder[1].num_batches_tracked) == 6


def test_memory_mapped_data(tmp_path, interpreted):
    np.save(tmp_path / "x.npy", binary_rows(20).numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    torch.manual_seed(0)
    one, other = ModuleVAE(), ModuleVAE()
    other.load_state_dict(one.state_dict())
    fitted(one, binary_rows(20), epochs=2, compile=False)
    assert fitted(other, mapped, epochs=2, compile=True).compiled
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("version", "device", "stays"),
    [("2.11.0+cu130", "cuda", True), ("2.13.0", "cuda", False), ("2.11.0", "cpu", False)],
)
def test_noise_stays_where_programs_draw_it(version, device, stays, monkeypatch):
    """A compiler of before 2.13 moved it on GPUs; one that may not move anything breaks steps on CPUs."""
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    assert ("reorder_for_locality" in build._options(torch.device(device))) == stays


def test_short_fits_are_not_compiled():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fitted(ModuleVAE(), binary_rows(20), epochs=2).compiled


@pytest.mark.parametrize(
    ("operations", "size", "calls", "expected"),
    [(100, 1, 10_000, True), (100, 1, 1_000, False), (1, 100_000, 10_000, False), (1, 100_000, 2_000_000, True)],
)
def test_compiling_is_chosen_where_it_pays(operations, size, calls, expected):
    """After the first call: 10 microseconds an operation and 0.2 nanoseconds a byte against 8 seconds."""
    decide, x = Payback("auto"), torch.ones(size)
    assert not decide.due(calls)
    with decide.watching():
        for _ in range(operations):
            x = x + 1.0
    assert decide.due(calls) == expected
    assert not decide.due(calls)  # once


@pytest.mark.parametrize("make", [ModuleVAE, HierarchicalVAE])
def test_a_compiled_evaluation_is_the_evaluation(make, interpreted):
    """The same weights, whole chunks and smaller ones: 64 particles of 20 rows in chunks of 13 particles."""
    assert_one_evaluation(make)


def test_an_evaluation_through_the_compiler_is_the_evaluation():
    assert_one_evaluation(ModuleVAE)


def assert_one_evaluation(make):
    torch.manual_seed(0)
    pair, x = make(), binary_rows(20)
    plain = pv.log_likelihood(pair, x, 250, compile=False, progress=False)
    compiled = pv.log_likelihood(pair, x, 250, compile=True, progress=False)
    np.testing.assert_allclose(plain.value, compiled.value, rtol=1e-5)
    np.testing.assert_allclose(plain.stderr, compiled.stderr, rtol=1e-3)
    np.testing.assert_allclose(plain.elbo, compiled.elbo, rtol=1e-5)


def test_an_epoch_of_one_full_batch_and_a_smaller_one_compiles(interpreted):
    assert pv.fit(ModuleVAE(), binary_rows(6), batch_size=4, epochs=1, compile=True, progress=False).compiled


def test_data_that_are_less_than_one_batch_compile(interpreted):
    """Every batch is the whole data set, so that all steps have one shape."""
    assert pv.fit(ModuleVAE(), binary_rows(6), batch_size=128, epochs=2, compile=True, progress=False).compiled


class OtherForFew(Plain):
    """Small batches go another way."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.of_few = nn.Linear(6, 4)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = (self.encoder if len(x) >= 8 else self.of_few)(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_gradients_go_to_the_parameters_they_belong_to(interpreted):
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    one, other = OtherForFew(nn.Linear(6, 4)), OtherForFew(nn.Linear(6, 4))
    other.load_state_dict(one.state_dict())
    fitted(one, x, epochs=3, compile=False)
    assert fitted(other, x, epochs=3, compile=True).compiled
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_weights_of_large_log_weights_are_no_obstacle():
    """Log-weights of hundreds of nats carry their rounding into the weights of particles: by more than 1e-5."""
    torch.manual_seed(0)
    decoder = pv.decoders.Bernoulli.mlp(50, [200, 200], 784)
    vae = pv.VAE(pv.priors.StandardNormal(50), decoder, pv.encoders.DiagonalNormal.mlp(784, [200, 200], 50))
    x = (torch.rand(64, 784, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    assert pv.fit(vae, x, objective=pv.IWAE(5), batch_size=32, epochs=1, compile=True, progress=False).compiled


def test_what_was_compiled_before_is_found_again(tmp_path, monkeypatch):
    """A second fit of the same step takes the code of the first: compiled once, on disk for other processes."""
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for _ in range(2):
        before = dict(counters["inductor"])
        assert fitted(ModuleVAE(), binary_rows(20), epochs=1, compile=True).compiled
    found = counters["inductor"]["fxgraph_cache_hit"] - before.get("fxgraph_cache_hit", 0)
    missed = counters["inductor"]["fxgraph_cache_miss"] - before.get("fxgraph_cache_miss", 0)
    assert (found, missed) == (1, 0)
