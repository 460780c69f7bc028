"""Functions of the log-weight matrix against arviz, closed forms and their own parts."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from scipy import special, stats

from ppl_vae.errors import EstimateError
from ppl_vae.pareto import fit_tails
from ppl_vae.weights import Stream, khat_threshold, leave_one_out, log_mean_exp, tail_size
from tests.statistical import assert_close, assert_mean


def summarise(log_weight, pieces=1):
    stream = Stream(log_weight.shape[1], len(log_weight))
    for block in log_weight.chunk(pieces):
        stream.add(block)
    return stream.summary()


def log_weights(k=2000, n=5, seed=0):
    return torch.randn(k, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_summary_is_the_formula():
    log_weight = log_weights()
    w = log_weight.exp().numpy()
    got = summarise(log_weight)
    k = len(w)
    assert_close(got.value, np.log(w.mean(0)))
    assert_close(got.ess, w.sum(0) ** 2 / (w**2).sum(0))
    assert_close(got.stderr, w.std(0, ddof=1) / w.mean(0) / math.sqrt(k))
    assert_close(got.elbo, log_weight.mean(0).numpy())
    assert_close(got.skewness, stats.skew(w) / math.sqrt(k))


@pytest.mark.parametrize("pieces", [2, 7, 300])
def test_streaming_changes_nothing(pieces):
    whole, streamed = summarise(log_weights()), summarise(log_weights(), pieces)
    for a, b in zip(whole, streamed, strict=True):
        assert_close(a, b)


def test_values_far_below_zero_do_not_underflow():
    got = summarise(log_weights() - 5000.0)
    assert_close(got.value, summarise(log_weights()).value - 5000.0)


def test_khat_equals_arviz_on_a_thousand_tails():
    """S10a: heavy, light and bounded tails."""
    arviz = pytest.importorskip("arviz")
    if int(arviz.__version__.split(".")[0]) >= 1:
        pytest.skip("arviz 1.x smooths by another function; 0.x is the judge here")
    rng = np.random.default_rng(0)
    shapes = rng.uniform(0.05, 2.0, 1000)
    for k in (100, 1000):
        rows = [s * (rng.exponential(size=k) if i % 2 else rng.normal(size=k)) for i, s in enumerate(shapes)]
        largest = np.sort(np.stack(rows), axis=1)[:, ::-1][:, : tail_size(k) + 1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            judge = np.array([arviz.psislw(row.copy())[1] for row in rows])
        assert_close(fit_tails(largest, k).khat, judge, scale=1.0)


def test_smoothed_values_are_those_of_arviz():
    """PSIS on the same weights: log-mean-exp of what arviz leaves unnormalised, of tails of every shape."""
    arviz = pytest.importorskip("arviz")
    if int(arviz.__version__.split(".")[0]) >= 1:
        pytest.skip("arviz 1.x smooths by another function; 0.x is the judge here")
    log_weight = log_weights(1000, 40) * torch.linspace(0.02, 2.0, 40)
    got = summarise(log_weight - 70, 3)
    smooth = np.stack([arviz.psislw(row.numpy().copy(), normalize=False)[0] for row in log_weight.T - 70])
    valid = got.khat < khat_threshold(1000)
    assert 10 < valid.sum() < 40
    assert np.isnan(got.smoothed[~valid]).all()
    assert_close(got.smoothed[valid], special.logsumexp(smooth[valid], 1) - math.log(1000))
    assert (abs(got.smoothed - got.value)[valid] > 1e-6).any()


def test_columns_that_are_not_wanted_are_left_as_they_are():
    """As many draws as each datum wants: the summary of each column is that of its own draws alone."""
    log_weight, wanted = log_weights(300, 3), torch.tensor([100, 300, 200])
    stream = Stream(3, wanted)
    for j, block in enumerate(log_weight.split(100)):
        stream.add(block, wanted > 100 * j)
    got = stream.summary()
    for n, k in enumerate(wanted.tolist()):
        for a, b in zip(got, summarise(log_weight[:k, n : n + 1]), strict=True):
            assert_close(a[n : n + 1], b)


@pytest.mark.parametrize("s", [0.45, 0.6, 0.8])
def test_khat_of_a_narrow_gaussian_proposal_has_a_closed_form(s, generator):
    """S10b: a Gaussian proposal s times as wide as its target has weights with k = 1 - s^2; 8 repetitions of 10^5."""
    z = s * torch.randn(100_000, 8, generator=generator, dtype=torch.float64)
    log_weight = -0.5 * z**2 + 0.5 * (z / s) ** 2
    # The shape of a tail of M draws has standard error (1 + k) / sqrt(M).
    sigma = (2 - s**2) / math.sqrt(tail_size(100_000))
    assert_mean(summarise(log_weight).khat, 1 - s**2, sigma, effect=0.25)


def test_equal_weights_are_the_best_case():
    for log_weight in (torch.full((40, 3), -7.25), -80 + 1e-5 * torch.randn(40, 3)):
        got = summarise(log_weight)
        assert (got.khat == -np.inf).all()
        assert (got.ess == 40).all()
        assert (got.stderr == 0).all()


@pytest.mark.parametrize("k", [500, 2000])
def test_weights_that_hardly_differ_have_no_tail_that_counts(k):
    """Of a guide that is the posterior but for its third moment; the shape of the cubes alone is above 0.8."""
    z = torch.randn(k, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cubes = z**3 - 3 * z
    assert np.median(summarise(1e-1 * cubes).khat) > 0.8
    nearly_equal = summarise(1e-4 * cubes)
    assert (nearly_equal.khat <= 0).all()
    assert np.isfinite(nearly_equal.smoothed).all()
    assert (nearly_equal.stderr > 0).all()


def test_few_weights_that_hardly_differ_say_nothing():
    """Eleven draws of a guide that misses half of p(x) are alike."""
    assert (summarise(1e-3 * torch.randn(11, 20, generator=torch.Generator().manual_seed(0))).khat == np.inf).all()


def test_a_tail_ends_where_many_draws_share_the_largest_weight():
    """Weights of few values, as of discrete latents."""
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.binomial(12, 0.5, size=(1000, 10)) * 0.3)
    assert (summarise(values.clamp_max(2.4)).khat <= 0).all()
    assert np.median(summarise(values + 2 * (values > 2.9)).khat) > 0.3  # drawn by three in a thousand


def test_too_few_draws_to_tell():
    got = summarise(log_weights(k=9))
    assert (got.khat == np.inf).all()
    assert (got.khat >= khat_threshold(9)).all()
    single = summarise(log_weights(k=1))
    assert np.isnan(single.stderr).all()
    assert (single.khat == np.inf).all()


def test_zero_weights_count_in_k():
    log_weight = log_weights(k=100)
    log_weight[::2] = -torch.inf
    got = summarise(log_weight)
    assert_close(got.value, summarise(log_weight[1::2]).value - math.log(2))
    assert (got.zero_weights == 50).all()
    assert (got.elbo == -np.inf).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_impossible_weights_are_errors(bad):
    log_weight = log_weights(k=20)
    log_weight[3, 2] = bad
    with pytest.raises(EstimateError, match="row 2"):
        summarise(log_weight)


def test_all_weights_zero_is_an_error():
    log_weight = log_weights(k=20)
    log_weight[:, 1] = -torch.inf
    stream = Stream(log_weight.shape[1], 20)
    stream.add(log_weight)
    with pytest.raises(EstimateError, match="row 1: all 20 weights are zero"):
        stream.check_possible()
    said, others = stream.summary(), summarise(log_weight[:, [0]])
    assert (said.value[1], said.ess[1], said.khat[1]) == (-np.inf, 0.0, np.inf)
    assert np.isnan(said.stderr[1])
    assert_close(said.value[0], others.value[0])


def test_a_wrong_number_of_draws_is_an_error():
    stream = Stream(2, 10)
    stream.add(log_weights(k=9, n=2))
    with pytest.raises(EstimateError, match="expected 10 draws per datum, found 9"):
        stream.summary()


def test_bounds_rise_with_k_on_the_same_draws():
    """S5, pathwise: splitting the same 64 draws into blocks never raises the mean bound (Jensen)."""
    log_weight = 3 * log_weights(k=64, n=2000)
    bounds = [log_mean_exp(log_weight.reshape(-1, k, 2000), 1).mean(0) for k in (1, 2, 4, 8, 16, 32, 64)]
    for lower, upper in itertools.pairwise(bounds):
        assert bool((upper >= lower).all())


def test_leaving_one_out_puts_the_geometric_mean_of_the_others_in_its_place(float64):
    """Against a sum for every k, where one weight is nearly all of the sum too."""
    log_weight = 3 * torch.randn(5, 4)
    log_weight[2, 1] += 80.0
    for k in range(5):
        others = torch.cat([log_weight[:k], log_weight[k + 1 :]])
        replaced = torch.cat([others, others.mean(0, keepdim=True)])
        assert_close(leave_one_out(log_weight)[k], replaced.logsumexp(0) - math.log(5))


def test_leaving_one_out_knows_weights_of_zero():
    """With one draw outside the support; with all others outside it there is nothing to say."""
    nothing = -torch.inf
    found = leave_one_out(torch.tensor([[nothing, nothing], [0.0, nothing], [1.0, 1.0]]))
    without_first = math.log((1.0 + math.e + math.exp(0.5)) / 3)
    expected = [[without_first, 1.0 - math.log(3)], [1.0 - math.log(3)] * 2, [-math.log(3), nothing]]
    assert_close(found, torch.tensor(expected))
