"""What runs on a GPU gives what the CPU gives: densities to rounding, estimates within their errors, states bit by bit.

Other tests that take the fixture `device` run there too: compiled steps, resuming, optima, the self-test.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.pair import as_pair, frozen_modes
from ppl_vae.rng import seeded
from ppl_vae.rundir import RunDirectory
from ppl_vae.svi import guard, saving, stepper
from ppl_vae.tape import run_program
from tests.commands import SMALL_VAE, TINY, succeed
from tests.nonfinite import BATCH, Gaussian, bad_steps, clean, poisoned
from tests.pairs import ModuleVAE, binary_rows, closure_pair, small_ppca
from tests.resuming import binary, numbers, only, run, same
from tests.statistical import assert_close, assert_estimates, assert_within
from tests.training import fresh, state, train
from tests.zoo import ZOO

QUICK = pv.Annealing(num_chains=8, num_temperatures=40, num_leapfrog=4)


@pytest.fixture
def cuda() -> torch.device:
    """The GPU, where torch sees one."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


def on(device: torch.device, tensors: dict) -> dict:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


# Densities


def densities(pair: pv.Pair, batch: tuple, latents: dict | None = None) -> tuple[dict, dict]:
    """log p and log q of every site, and the latents: those given, or drawn."""
    with seeded(0, batch[0].device), frozen_modes(pair):
        q = run_program(pair, pair.guide, batch, None, None, latents)
        p = run_program(pair, pair.model, batch, None, None, q.replay)
    sites = [(f"{role} {name}", site) for role, tape in (("q", q), ("p", p)) for name, site in tape.sites.items()]
    return {name: site["fn"].log_prob(site["value"]).detach() for name, site in sites}, q.replay


@pytest.mark.usefixtures("float64")  # flows of Pyro are inverted in the default type
@pytest.mark.parametrize("name", ZOO)
def test_densities_of_the_same_latents(name: str, cuda: torch.device):
    case = ZOO[name]
    pair = as_pair(case.make()).double()
    data = case.data if isinstance(case.data, tuple) else (case.data,)
    batch = tuple(x.double() if x.is_floating_point() else x for x in data)
    pair.prepare(*batch)
    expected, latents = densities(pair, batch)
    found, _ = densities(pair.to(cuda), tuple(x.to(cuda) for x in batch), on(cuda, latents))
    assert found.keys() == expected.keys()
    for site, values in expected.items():
        assert found[site].device == cuda
        assert_within(found[site], values, relative=1e-8, absolute=1e-8, reason="rounding, inverses of flows")


def test_convolutions_in_single_precision_keep_their_digits(cuda: torch.device):
    """cuDNN would round their factors to ten bits by default: three digits of each log-probability."""
    images = (torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    exact = fresh(make=lambda: pv.autoregressive.PixelCNN((1, 28, 28), 16, 4)).double()
    single = deepcopy(exact).float()
    expected = pv.log_likelihood(exact, images.double(), 1, device="cpu", progress=False)
    found = pv.log_likelihood(single, images, 1, device=cuda, progress=False)
    assert_within(found.value, expected.value, relative=1e-6, reason="sums of 784 numbers in single precision")


# Fits


def test_a_fit_is_that_of_the_cpu(cuda: torch.device):
    """Without latents nothing is drawn, and both take the same steps."""
    one, other = (fresh(make=lambda: pv.autoregressive.MADE(5, [8])) for _ in range(2))
    for pair, device in ((one, "cpu"), (other, cuda)):
        train(pair, binary_rows(24), epochs=5, device=device, validation=binary_rows(9), clip_norm=1.0)
    for name, values in state(one).items():
        assert_within(state(other)[name].cpu(), values, absolute=1e-4, reason="thirty steps of Adam, other sums")


@pytest.mark.parametrize("make", [ModuleVAE, closure_pair], ids=["module", "closure"])
def test_data_of_every_kind_train(make, cuda: torch.device, tmp_path):
    x = binary_rows(24) if make is ModuleVAE else torch.randn(24, 3)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    kinds = (x, x.numpy(), mapped, torch.utils.data.TensorDataset(x), x.to(cuda))
    found = []
    for data in kinds:
        pair = fresh(make=make)
        train(pair, data, device="auto")
        found.append(state(pair))
        assert as_pair(pair).device == cuda
    for other in found[1:]:
        assert all(torch.equal(other[name], value) for name, value in found[0].items())


def test_parameters_of_two_types_train(cuda: torch.device):
    x = torch.randn(64, 2, dtype=torch.float64)
    mixture, guide = pv.TrainableGMM(pv.GMM.fit(x, 2, max_iter=1)), pv.AmortisedCategorical(2, 2, [4])
    pair = pv.Pair(mixture.model, guide.guide)
    before = state(pair)
    train(pair, x, objective=pv.ELBO(discrete="enumerate"), device=cuda)
    assert {value.dtype for value in before.values()} == {torch.float32, torch.float64}
    assert not any(torch.equal(state(pair)[name].cpu(), value) for name, value in before.items())


def test_a_pair_that_is_on_the_gpu_trains_again_on_binary_draws(cuda: torch.device):
    pair = fresh()
    for _ in range(2):
        train(pair, binary_rows(24) * 0.5 + 0.2, binarize="dynamic", validation=binary_rows(9), device=cuda)
    assert as_pair(pair).device == cuda


def test_a_run_of_the_gpu_goes_on_and_is_read_on_the_cpu(cuda: torch.device, tmp_path):
    x = binary_rows(24)
    pair = fresh()
    train(pair, x, device=cuda, run_dir=tmp_path / "run")
    with pytest.warns(UserWarning, match="device"):
        train(fresh(), x, device="cpu", run_dir=tmp_path / "run", resume=True, epochs=3)
    read_back = as_pair(fresh(seed=5))
    RunDirectory(tmp_path / "run").read_parameters(read_back)
    assert read_back.device.type == "cpu"
    assert all(bool(torch.isfinite(p).all()) for p in read_back.parameters())


class Tempered(ModuleVAE):
    """A pair with a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            logits = self.decoder(z) * self.temperature.exp()
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


OPTIMIZERS = {
    "AdamW": torch.optim.AdamW,
    "fused": partial(torch.optim.AdamW, fused=True),
    "capturable": partial(torch.optim.AdamW, capturable=True),
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "Adam of the house": None,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_at_every_step_of_an_optimiser(name: str, device: torch.device, tmp_path: Path, monkeypatch):
    """Its tensors without dimensions are where torch has them: steps on the CPU, or beside the parameters."""
    if name == "capturable" and device.type == "cpu":
        pytest.skip("on a GPU only")
    monkeypatch.setattr(saving, "_KEPT", 1000)
    options = {"optimizer": OPTIMIZERS[name], "device": device, "epochs": 2}
    whole = numbers(*run(Tempered, binary, options, run_dir=tmp_path / "saved", checkpoint_every=1))
    for checkpoint in sorted((tmp_path / "saved" / "checkpoints").iterdir()):
        root = only(checkpoint, tmp_path / checkpoint.name)
        assert same(whole, numbers(*run(Tempered, binary, options, seed=1, run_dir=root, resume=True)))


# Numbers that are not finite


def test_a_bad_step_is_found_late_and_no_step_after_it_is_taken(cuda: torch.device, generator: torch.Generator):
    """The host looks every fifty steps: parameters are those before the bad one all the same."""
    x, first = poisoned(clean(generator)), bad_steps(3)[0]
    stopped, before = fresh(make=Gaussian), fresh(make=Gaussian)
    with pytest.raises(pv.EstimateError, match=rf"step {first + 1}: .*site 'x' of the model"):
        train(stopped, x, epochs=40, batch_size=BATCH, device=cuda)
    if first:
        train(before, x, steps=first, epochs=None, batch_size=BATCH, device=cuda)
    for one, other in zip(state(stopped).values(), state(before.to(cuda)).values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("optimizer", [None, partial(torch.optim.Adam, fused=True)])
def test_a_gpu_waits_for_no_step_that_moves_parameters_alone(
    optimizer, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
):
    """A prior of constant buffers does not count as moved; running means do."""
    guards = []

    class Noted(guard.Guard):
        def __init__(self, device):
            super().__init__(device)
            guards.append(self)

    monkeypatch.setattr(stepper, "Guard", Noted)
    decoder, encoder = pv.decoders.Gaussian.mlp(2, [8], 3), pv.encoders.DiagonalNormal.mlp(3, [8], 2)
    vae = fresh(make=lambda: pv.VAE(pv.priors.StandardNormal(2), decoder, encoder))
    train(vae, torch.randn(24, 3), epochs=20, device=cuda, optimizer=optimizer)
    train(fresh(make=lambda: Gaussian(nn.BatchNorm1d(4))), torch.randn(24, 3), device=cuda, optimizer=optimizer)
    assert [made.late for made in guards] == [True, False]


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_policies_and_the_step_done_again(policy: str, cuda: torch.device, generator: torch.Generator, tmp_path):
    x, pair = poisoned(clean(generator)), fresh(make=Gaussian)
    options = {"epochs": 3, "device": cuda, "run_dir": tmp_path / "run", "on_nonfinite": policy}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if policy == "rollback":
            with pytest.raises(pv.EstimateError, match="went back 10 times"):
                train(pair, x, **options)
        else:
            assert train(pair, x, **options).skipped == tuple(bad_steps(3))
    assert all(bool(torch.isfinite(p).all()) for p in pair.parameters())
    for device in ("cpu", cuda):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if device == "cpu" else "error")  # the noise there is another
            again = pv.replay(fresh(make=Gaussian), tmp_path / "run", device=device)
        assert not again.is_finite
        assert "site 'x'" in again.reason


# Evaluations


@pytest.fixture
def trained(cuda: torch.device) -> tuple[pv.VAE, torch.Tensor]:
    """A VAE of two latent dimensions, trained on the GPU for a moment, and data."""
    x = small_ppca(dim=5, latent=2).sample(256, seed=1).float()
    decoder, encoder = pv.decoders.Gaussian.mlp(2, [16], 5), pv.encoders.DiagonalNormal.mlp(5, [16], 2)
    vae = fresh(make=lambda: pv.VAE(pv.priors.StandardNormal(2), decoder, encoder))
    fit = pv.fit(
        vae, x, epochs=60, batch_size=64, learning_rate=5e-3, validation=x[:64], record_kl=True, progress=False
    )
    assert np.isfinite(fit.history["elbo"]).all()
    return vae, x[:32]


def test_the_evidence_is_that_of_the_cpu(trained, cuda: torch.device):
    vae, x = trained
    found = pv.log_evidence(vae, x, device=cuda, progress=False)
    assert_within(found, pv.log_evidence(vae, x, device="cpu", progress=False), absolute=1e-4, reason="float32")


def test_estimates_agree_with_the_evidence(trained, cuda: torch.device):
    vae, x = trained
    exact = pv.log_evidence(vae, x, device="cpu", progress=False)
    ll = pv.log_likelihood(vae, x, 4000, target_stderr=0.02, progress=False)
    assert_estimates(ll.value, ll.stderr, exact, effect=1.0)
    further = pv.escalate(ll, vae, x, until="reliable", progress=False)
    assert set(further.verdict) <= {"reliable", "noisy", "unreliable"}
    sandwich = pv.bidirectional_monte_carlo(vae, x, QUICK, progress=False)
    assert abs(sandwich.gap) < 0.1
    annealed = pv.annealed_importance_sampling(vae, x, QUICK, progress=False)
    assert_estimates(annealed.value, annealed.stderr, exact, effect=2.0, degrees=7)
    curve = pv.k_curve(vae, x, 512, progress=False)
    assert np.all(np.diff(curve.mean) > -1e-4)
    assert curve.mean[-1] == pytest.approx(exact.mean(), abs=0.1)


def test_memory_and_chunks_change_no_number(trained):
    """S14: by default a GPU scores as many draws at once as its share of memory holds."""
    vae, x = trained
    whole, cut = (pv.log_likelihood(vae, x, 3000, memory=m, progress=False) for m in (1 << 30, 1 << 20))
    assert_within(cut.value, whole.value, absolute=1e-4, reason="float32")


@pytest.mark.filterwarnings("ignore:draws of:UserWarning")  # of so short a training
def test_accounts_of_a_pair(trained):
    vae, x = trained
    parts = pv.gap_decomposition(vae, x, 500, search=pv.LocalSearch(num_steps=60, max_rounds=2), progress=False)
    assert_close(parts.approximation + parts.amortisation, parts.log_evidence - parts.elbo, torch.float32, scale=10.0)
    book = pv.ledger(vae, x, num_aggregate=64, progress=False)
    assert_close(book.elbo.value, -(book.distortion.value + book.rate.value), torch.float32, scale=10.0)
    found = pv.calibrate(vae, x, 60, 19, progress=False)
    assert found.num_simulations == 60
    drawn = pv.posterior_predictive(vae, x, 4, progress=False)
    other = pv.VAE(vae.prior, deepcopy(vae.decoder), vae.encoder)
    comparison = pv.compare({"one": vae, "other": other}, x, 200, progress=False)
    assert comparison.differences
    for result in (parts, book, found, drawn, comparison):
        assert str(result)
    assert vae.sample(3).shape == (3, 5)
    assert vae.reconstruct(x.to(vae.decoder.get_submodule("network").layers[0].weight.device)).shape == (1, 32, 5)


def test_exact_models_take_data_of_the_gpu(cuda: torch.device):
    x = small_ppca(dim=5, latent=2).sample(300, seed=1)
    for fit in (lambda x: pv.PPCA.fit(x, 2), lambda x: pv.GMM.fit(x, 3, seed=0)):
        found, expected = fit(x.to(cuda)), fit(x)
        assert_within(found.log_prob(x.to(cuda)).cpu(), expected.log_prob(x), absolute=1e-6, reason="EM to its end")


class Wide(ModuleVAE):
    """A decoder of 20,000 units: 1024 draws take 80 MB for each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 20_000), nn.Tanh(), nn.Linear(20_000, 5))


def test_memory_of_the_gpu_that_runs_out(cuda: torch.device):
    """The allocator itself fails: the same numbers from smaller pieces, and one warning."""
    x, pair = binary_rows(64), fresh(make=Wide)
    options = {"num_probes": 0, "progress": False, "device": cuda, "compile": False}
    whole = pv.log_likelihood(pair, x, 64, **options)
    torch.cuda.empty_cache()
    taken = torch.cuda.memory_reserved(cuda) + (64 << 20)
    torch.cuda.set_per_process_memory_fraction(taken / torch.cuda.get_device_properties(cuda).total_memory)
    try:
        with pytest.warns(UserWarning, match="memory ran out"):
            cut = pv.log_likelihood(pair, x, 64, memory=1 << 34, **options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_within(cut.value, whole.value, absolute=1e-4, reason="float32")


# Saves, and what programs keep


def test_a_save_takes_no_memory_of_the_gpu(cuda: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path):
    seen, write = [], saving.write

    def noted(folder, step, tensors, plain):
        seen.extend(tensor.device.type for tensor in tensors.values())
        return write(folder, step, tensors, plain)

    monkeypatch.setattr(saving, "write", noted)
    options = {"device": cuda, "run_dir": tmp_path / "run", "checkpoint_every": 1, "validation": binary_rows(9)}
    train(fresh(), binary_rows(24), on_nonfinite="rollback", **options)
    assert set(seen) == {"cpu"}


CENTRED = """
import torch, pyro, pyro.distributions as dist
from torch import nn

class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.mean = nn.Linear(64, 4), nn.Linear(2, 64), None

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        if self.training:
            self.mean = x.mean(0)
        loc, raw = self.encoder(x if self.mean is None else x - self.mean).chunk(2, -1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
"""


def test_what_programs_keep_on_the_gpu_is_there_where_a_run_is_evaluated(cuda: torch.device, tmp_path):
    file, run = tmp_path / "centred.py", tmp_path / "run"
    file.write_text(CENTRED)
    succeed("fit", f"{file}:Centred", "--data", "digits", "--binarize", "none", "--run-dir", run, *TINY)
    for device in ("cuda", "cpu"):
        succeed("evaluate", run, "--pair", f"{file}:Centred", "--limit", "10", "--device", device)
    anew = ["--num-samples", "20", "--limit", "10", "--device", "cuda"]
    succeed("compare", run, "--pair", f"{file}:Centred", *anew)


# The command


def test_the_command_takes_the_gpu(cuda: torch.device, tmp_path):
    run = tmp_path / "run"
    succeed("fit", *SMALL_VAE, "--run-dir", run, *TINY)
    for method in ("is", "ais", "bdmc"):
        succeed("evaluate", run, "--limit", "10", "--method", method, "--device", "cuda")
    succeed("evaluate", run, "--limit", "10", "--num-samples", "50", "--device", "cpu")
