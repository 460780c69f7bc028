"""The bound against K: its definition, its law, and where it goes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

import ppl_vae as pv
from ppl_vae.evaluation.curve import _bounds
from ppl_vae.figures import bound_against_samples
from tests.pairs import ModuleVAE, binary_rows, chi_square, exponential_and_normal, scaled_guide, small_ppca
from tests.running import estimate
from tests.statistical import assert_close, assert_estimates, assert_mean

pytestmark = pytest.mark.usefixtures("float64")


def curve_of(pair, x, k, seed=0):
    return pv.k_curve(pair, x, k, seed, progress=False)


def test_bounds_are_means_over_blocks():
    log_weight = 2 * torch.randn(16, 5)
    found = _bounds(log_weight)
    for bound, k in zip(found, (1, 2, 4, 8, 16), strict=True):
        blocks = log_weight.reshape(16 // k, k, 5).numpy()
        assert_close(bound, (special.logsumexp(blocks, 1) - np.log(k)).mean(0))
    assert bool((found.diff(dim=0) >= 0).all())


def test_the_ends_are_the_elbo_and_the_estimate_of_the_same_samples():
    pair, x = ModuleVAE(), binary_rows(7)
    curve, ll = curve_of(pair, x, 64), estimate(pair, x, 64)
    assert curve.num_samples.tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert_close(curve.bounds[0], ll.elbo)
    assert_close(curve.bounds[-1], ll.value)
    assert_close(curve.chi_square, 64 / ll.ess - 1, scale=1.0)


def test_bounds_rise_by_the_law_to_log_p():
    """S5: each doubling adds chi2 / 4k, and the extrapolation has lost that bias."""
    s, dim, k = 1.3, 2, 64
    ppca = small_ppca(3, dim)
    x = ppca.sample(1, seed=5).expand(20_000, -1).contiguous()
    curve = curve_of(scaled_guide(ppca, s), x, k)
    exact, chi2 = float(ppca.log_prob(x[:1])), chi_square(s, dim)
    assert_mean(np.diff(curve.bounds, axis=0)[-1], chi2 / (2 * k), effect=0.3 * chi2 / (2 * k))
    assert_mean(curve.extrapolated, exact, effect=0.01)
    assert curve.follows_law
    assert curve.law[-1] == pytest.approx(chi2 / (2 * k), rel=0.1)
    assert "follows chi2 / 2K" in str(curve)


def test_the_extrapolation_has_lost_the_bias_of_few_samples():
    """chi2 / 2K is 0.017 nats at K = 32."""
    ppca = small_ppca(5, 4)
    x = ppca.sample(1, seed=5).expand(20_000, -1).contiguous()
    curve = curve_of(scaled_guide(ppca, 1.5), x, 32)
    assert_mean(curve.extrapolated, float(ppca.log_prob(x[:1])), effect=0.017)


def test_a_bound_that_still_rises_is_said_to():
    ppca = small_ppca(12, 10)
    curve = curve_of(scaled_guide(ppca, 0.5), ppca.sample(500, seed=1), 32)
    assert not curve.follows_law
    assert "still rising" in str(curve)
    assert np.isnan(curve.extrapolated).all()
    assert ", not extrapolated (500 data)" in str(curve)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_no_limit_is_given_where_the_first_bounds_lie_far_down(k):
    """Under a guide twice as wide L_1 does, by more than the law: the last rise led 0.06 to 0.4 nats too high."""
    ppca = small_ppca(5, 2)
    x = ppca.sample(2000, seed=1)
    curve = curve_of(scaled_guide(ppca, 2.0), x, k)
    rise = np.diff(curve.bounds, axis=0)[-1]
    assert (curve.bounds[-1] + rise - ppca.log_prob(x).numpy()).mean() > 0.03
    assert np.isnan(curve.extrapolated).all()
    bound, _ = bound_against_samples(curve, "Bound").axes
    assert bound.get_legend_handles_labels()[1] == ["bound with k samples"]


@pytest.mark.parametrize("seed", range(3))
def test_weights_without_variance_have_no_law(seed):
    """Their Pareto shape is 1 - 0.5^2; the chi2 of the samples agrees with the rise all the same, at some seeds."""
    ppca = small_ppca(3, 1)
    x = ppca.sample(400, seed=seed + 1)
    curve = curve_of(scaled_guide(ppca, 0.5), x, 1024, seed)
    assert curve.khat > 0.5
    assert not curve.has_law
    assert not curve.follows_law
    assert "chi2 looks infinite" in str(curve)
    assert bound_against_samples(curve, "Bound").axes[1].get_title() == "no law: chi2 looks infinite"
    light = curve_of(scaled_guide(ppca, 0.75), x, 1024, seed)
    assert light.khat < 0.5
    assert light.has_law


@pytest.mark.parametrize("n", [1, 5, 300])
def test_the_bound_of_a_perfect_guide_follows_any_law(n):
    """All that rises is rounding; so it is without latents."""
    ppca = small_ppca()
    for pair, x in ((ppca, ppca.sample(n, seed=1)), (pv.autoregressive.MADE(5, [8]), binary_rows(n))):
        curve = curve_of(pair, x, 16)
        assert abs(curve.rise[-1]) < 1e-9
        assert curve.follows_law
        assert str(curve).endswith("it follows chi2 / 2K")


def test_weights_of_zero_are_no_warnings():
    """Half of the draws of a normal guide lie outside the support of Exponential(1): L_1 is minus infinity."""
    x = torch.linspace(0.0, 1.0, 5)
    curve = curve_of(exponential_and_normal(0.0, 0.0), x, 1024)
    exact = [integrate.quad(lambda z, v=v: np.exp(-z) * stats.norm.pdf(v - z), 0, 50)[0] for v in x.tolist()]
    assert np.isneginf(curve.mean[0])
    assert not np.isnan(curve.rise).any()
    assert np.isposinf(curve.rise).any()
    assert_estimates(curve.extrapolated, np.sqrt(curve.chi_square / 1024), np.log(exact), effect=0.7)
    assert not curve.can_tell  # of five data
    assert "nats per datum extrapolated" in str(curve)


@pytest.mark.parametrize("n", [1, 3])
def test_few_data_cannot_tell(n):
    """Where three standard errors are above the law, any rise agrees with it."""
    ppca = small_ppca(12, 10)
    curve = curve_of(scaled_guide(ppca, 0.7), ppca.sample(n, seed=1), 16)
    assert not curve.can_tell
    assert not curve.follows_law
    assert "cannot be told" in str(curve)
    assert bound_against_samples(curve, "Bound").axes[1].get_title().startswith("too few data")


@pytest.mark.parametrize(("k", "message"), [(100, "a power of two, such as 4096, found 100"), (1, "at least 2")])
def test_samples_are_a_power_of_two(k, message):
    with pytest.raises(ValueError, match=f"num_samples: expected {message}"):
        curve_of(ModuleVAE(), binary_rows(), k)


def test_the_figure_says_whether_the_law_holds():
    ppca = small_ppca()
    curve = curve_of(scaled_guide(ppca, 1.3), ppca.sample(50, seed=1), 128)
    for rising in (curve, dataclasses.replace(curve, chi_square=10 * curve.chi_square + 1)):
        _, rise = bound_against_samples(rising, "Bound").axes
        assert rise.get_title() == ("as the law says" if rising.follows_law else "not yet as the law says")
    assert curve.follows_law
    assert not rising.follows_law
