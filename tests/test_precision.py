"""As many samples as a datum needs: precision that is asked for, without bias, whatever the blocks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.compile import Lazy
from ppl_vae.evaluation import scoring, weighing
from ppl_vae.evaluation.precision import samples_needed
from ppl_vae.weights import Stream
from tests.pairs import (
    HierarchicalVAE,
    ModuleVAE,
    binary_rows,
    exponential_and_normal,
    of_two_kinds,
    scaled_guide,
    small_ppca,
)
from tests.running import estimate
from tests.statistical import assert_mean, assert_within

pytestmark = pytest.mark.usefixtures("float64")


def test_samples_go_to_the_data_that_need_them():
    ppca = small_ppca()
    x = ppca.sample(300, seed=1)
    ll = estimate(of_two_kinds(ppca, 1.5), x, 4000, target_stderr=0.03)
    easy = x[:, 0].numpy() > 0
    assert (ll.num_pilot[easy] == 200).all()
    assert (ll.num_drawn[easy] == 200).all()
    assert (ll.num_drawn[~easy] > 200).all()
    assert (ll.num_drawn % 200 == 0).all()
    assert (ll.num_drawn < 4000).all()
    assert ((ll.num_pilot - 200 < ll.num_drawn / 4) & (ll.num_drawn / 4 <= ll.num_pilot)).all()
    assert (ll.stderr <= 0.03).mean() > 0.97
    assert (ll.stderr <= 1.2 * 0.03).all()
    assert ll.num_samples == 4000
    error = np.abs(ll.value - ppca.log_prob(x).numpy())
    assert (error <= 5.91 * ll.stderr + 1e-9).all()
    mean = (ll.num_drawn + ll.num_pilot).mean()
    assert f"{mean:.0f} samples each" in str(ll)


def test_the_cap_holds():
    ppca = small_ppca()
    ll = estimate(scaled_guide(ppca, 1.5), ppca.sample(20, seed=1), 1003, target_stderr=1e-4)
    assert (ll.num_drawn == 1003).all()


@pytest.mark.parametrize(("width", "target"), [(1.0, 0.1), (1.5, 1e-4)])
def test_compiling_is_decided_on_what_pilots_ask_for(width, target, monkeypatch):
    """It was on the cap, ten times what an easy guide needs; a hard one needs all of it, ten times what is sure."""
    asked: list[int] = []

    class Asked(Lazy):
        def __call__(self, *arguments):
            asked.append(self._calls_left)
            return super().__call__(*arguments)

    monkeypatch.setattr(scoring, "Lazy", Asked)
    ppca = small_ppca()
    pair, x = scaled_guide(ppca, width), ppca.sample(600, seed=1)
    ll = estimate(pair, x, 2000, num_probes=0, target_stderr=target)
    assert (ll.num_drawn == (100 if width == 1.0 else 2000)).all()
    assert asked[0] <= len(asked)
    after_pilot = next((i for i in range(1, len(asked)) if asked[i] > asked[i - 1]), 0)
    reason = "chunks of the last block are not full"
    assert_within(float(asked[after_pilot]), float(len(asked) - after_pilot), relative=0.1, reason=reason)


def test_memory_and_chunks_change_no_number_of_a_precise_evaluation(monkeypatch):
    """S14: noise belongs to blocks of data, whoever wants more of it."""
    x, pair = binary_rows(40), HierarchicalVAE()
    whole = estimate(pair, x, 600, target_stderr=0.15, num_draws=4)
    assert len(set(whole.num_drawn)) > 1
    for chunk, memory in ((64, 1 << 28), (100_000, 1 << 28), (1024, 20_000)):
        monkeypatch.setattr(scoring, "CHUNK_ROWS", chunk)
        cut = estimate(pair, x, 600, target_stderr=0.15, num_draws=4, memory=memory)
        np.testing.assert_allclose(whole.value, cut.value, rtol=1e-10)
        np.testing.assert_array_equal(whole.num_drawn, cut.num_drawn)
        for name, draws in whole.posterior.items():
            np.testing.assert_allclose(draws, cut.posterior[name], rtol=1e-10)


def test_an_estimate_owes_nothing_to_what_others_want():
    """A datum has the samples of its place in the block, whether or not its neighbours take as many."""
    ppca = small_ppca()
    x = ppca.sample(30, seed=3)
    mixed = estimate(of_two_kinds(ppca, 1.5), x, 2000, target_stderr=0.033)
    alone = estimate(scaled_guide(ppca, 1.5), x, 2000, target_stderr=0.033)
    hard = x[:, 0].numpy() <= 0
    np.testing.assert_allclose(mixed.value[hard], alone.value[hard], rtol=1e-12)
    for name in ("num_drawn", "num_pilot"):
        np.testing.assert_array_equal(getattr(mixed, name)[hard], getattr(alone, name)[hard])
    assert len(set(mixed.num_pilot[hard])) > 1


def test_no_noise_is_used_twice(monkeypatch):
    used, seeded = [], weighing.seeded

    def recorded(seed, device):
        used.append(seed)
        return seeded(seed, device)

    monkeypatch.setattr(weighing, "seeded", recorded)
    estimate(ModuleVAE(), binary_rows(300), 1000, target_stderr=1e-4)
    assert len(used) == len(set(used)) == 2 * 25


def test_samples_that_decide_are_in_no_estimate():
    """E p-hat = p: using the pilot again would keep those estimates small that have missed large weights."""
    ppca = small_ppca(21, 20)
    x = ppca.sample(1, seed=5).expand(1000, -1).contiguous()
    ll = estimate(scaled_guide(ppca, 0.9), x, 1000, target_stderr=0.12, num_draws=0, num_probes=0)
    assert len(set(ll.num_drawn)) > 1
    assert_mean(np.exp(ll.value - float(ppca.log_prob(x[:1]))), 1.0, effect=0.05)


def summary(log_weight: torch.Tensor):
    stream = Stream(log_weight.shape[1], len(log_weight))
    stream.add(log_weight)
    return stream.summary()


def test_samples_that_a_datum_needs():
    """For the error, by chi2 and skewness; for a tail that may be tamed, by its shape; none more than the cap."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(250, 2, generator=generator)
    usual, pilot = summary(0.7 * noise), np.full(2, 250)
    chi_square = 250 / usual.ess - 1
    for target in (0.05, 0.03):
        exact = chi_square * (1 + np.maximum(4 * usual.skewness, 2 / 250**0.5)) / target**2
        needed = samples_needed(usual, pilot, 250, target, 5000)
        assert ((needed >= exact) & (needed < exact + 250)).all()
    heavy = summary(0.02 * noise)._replace(khat=np.array([0.65, 0.9]))
    assert samples_needed(heavy, pilot, 250, 0.1, 5000).tolist() == [750, 250]  # no K up to 5000 serves 0.9
    assert samples_needed(summary(torch.zeros(250, 1)), pilot[:1], 250, 0.1, 5000).tolist() == [250]
    assert samples_needed(usual, pilot, 250, 1e-5, 5000).tolist() == [5000, 5000]


def test_light_weights_seldom_miss_the_target():
    """Six latents, a guide 0.8 / 0.7 times as wide: bounded weights, whose variance moves by chance alone."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))

    x = 1.4 * torch.randn(1000, 6, generator=torch.Generator().manual_seed(0))
    ll = estimate(pv.Pair(model, guide), x, 1000, target_stderr=0.02, num_draws=0, num_probes=0)
    assert (ll.num_drawn < 1000).all()
    assert (ll.stderr > 0.02).mean() < 0.15


def test_heavy_weights_seldom_miss_the_target_and_are_counted():
    """Log-normal weights, of which a twentieth of the cap has seen too little: one in five missed it by that alone."""
    sigma, x = 1.2, torch.zeros(1000)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full_like(x, sigma), 1.0))
            pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    ll = estimate(pv.Pair(model, guide), x, 5000, target_stderr=0.05, num_draws=0, num_probes=0)
    stopped, missed = ll.num_drawn < 5000, ll.stderr > 0.05
    assert stopped.mean() > 0.9
    assert missed[stopped].mean() < 0.16  # of 0.10, with 5.91 standard errors
    assert (ll.num_drawn + ll.num_pilot).mean() < 0.7 * 5000
    assert f"; {missed.sum()} have a standard error above the 0.05 asked for" in str(ll)
    assert ll.target_stderr == 0.05
    exact = dist.Normal(torch.tensor(0.0), 1.0).log_prob(torch.tensor(0.0)).item()
    assert_mean(np.exp(ll.value - exact), 1.0, effect=0.02)


def test_thresholds_that_are_named_are_those_of_the_samples_drawn():
    """Where a datum got 250 samples, k-hat is judged at 250."""
    ppca = small_ppca(21, 20)
    ll = estimate(scaled_guide(ppca, 1.1), ppca.sample(200, seed=5), 5000, target_stderr=0.5, num_draws=0)
    assert (ll.num_drawn == 250).all()
    few = dataclasses.replace(ll, khat=np.where(np.arange(200) == 0, 0.62, 0.2))
    assert few.verdict[0] == "unreliable"
    assert "have k-hat above 0.58, or" in str(few)
    mixed = dataclasses.replace(ll, num_drawn=np.where(np.arange(200) < 2, 250, 5000), khat=np.full(200, 0.8))
    assert "have k-hat above 0.58 to 0.70, or" in str(mixed)


def test_a_pilot_of_zeros_asks_for_all_samples():
    """Two and a half standard deviations from the support: 1 of 161 draws counts, none of 250 for some data."""
    pair, x = exponential_and_normal(1.0, -3.0), torch.full((20,), 0.5)
    ll = estimate(pair, x, 5000, target_stderr=0.05, num_draws=0, num_probes=0)
    assert (ll.num_drawn == 5000).all()
    assert np.isfinite(ll.value).all()


@pytest.mark.parametrize(
    ("target", "found"),
    [(0, "positive number, found 0"), (-1.0, "positive number"), ("a", "finite number")],
)
def test_targets_that_are_none(target, found):
    with pytest.raises(ValueError, match=f"target_stderr: expected a {found}"):
        estimate(ModuleVAE(), binary_rows(), 500, target_stderr=target)


def test_pairs_without_latents_and_few_samples_have_nothing_to_adapt():
    x = binary_rows(4)
    made = estimate(pv.autoregressive.MADE(5, [8]), x, 1000, target_stderr=0.1)
    assert (made.num_drawn == 1000).all()
    few = estimate(ModuleVAE(), x, 60, target_stderr=0.1)
    assert (few.num_drawn == 60).all()
    assert (few.num_pilot == 0).all()


def test_programs_may_differ_in_precision():
    """A guide in single precision and data in double: samples go where they are needed all the same."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=torch.float32), 1.0))
            pyro.sample("x", dist.Normal(z.double(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            scale = torch.where(x > 0, 1.0, 2.0).float()
            pyro.sample("z", dist.Normal(x.float() / 2, 0.5**0.5 * scale))

    x = torch.linspace(-2, 2, 20)
    ll = estimate(pv.Pair(model, guide), x, 2000, target_stderr=0.02, num_probes=0)
    assert len(set(ll.num_drawn)) > 1
    assert_mean((ll.value - dist.Normal(0.0, 2**0.5).log_prob(x).numpy()) / ll.stderr.clip(1e-6), 0.0, effect=2.0)
