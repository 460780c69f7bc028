"""Gaussian mixtures: densities, posteriors and samples against scikit-learn, scipy and themselves; construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from ppl_vae.errors import DataError, EstimateError
from ppl_vae.exact import GMM, mixture
from tests.mixtures import KINDS, C, D, dense, random_gmm, scikit_learn
from tests.statistical import assert_close, assert_mean, assert_within


def data_with_far_points(gmm: GMM) -> np.ndarray:
    far = np.random.default_rng(7).normal(size=(20, gmm.means.shape[1])) * 1e4
    return np.concatenate([gmm.sample(200, seed=1).numpy(), far])


@pytest.mark.parametrize("kind", KINDS)
def test_density_and_posterior_equal_scikit_learn(kind):
    gmm = random_gmm(kind)
    x = data_with_far_points(gmm)
    judge = scikit_learn(gmm)
    assert_close(gmm.log_prob(x).numpy(), judge.score_samples(x))
    assert_close(gmm.posterior(x).probs, judge.predict_proba(x), scale=1.0)
    assert gmm.num_parameters == judge._n_parameters()


@pytest.mark.parametrize("kind", KINDS)
def test_density_equals_the_sum_over_components(kind):
    gmm = random_gmm(kind, seed=1)
    x = gmm.sample(50).numpy()
    components = zip(gmm.weights.numpy(), gmm.means.numpy(), dense(gmm), strict=True)
    terms = [np.log(w) + multivariate_normal(m, s).logpdf(x) for w, m, s in components]
    assert_close(gmm.log_prob(x).numpy(), logsumexp(terms, axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_one_component_is_a_normal_distribution(kind):
    gmm = random_gmm(kind, num_components=1)
    x = gmm.sample(20).numpy()
    judge = multivariate_normal(gmm.means[0].numpy(), dense(gmm)[0])
    assert_close(gmm.log_prob(x).numpy(), judge.logpdf(x))
    assert (gmm.posterior(x).probs == 1).all()


def test_components_of_equal_means_and_covariances_share_by_weight():
    gmm = GMM([0.2, 0.8], np.ones((2, D)), np.ones(2))
    x = gmm.sample(10)
    assert_close(gmm.posterior(x).probs, gmm.weights.expand(10, 2))


def test_far_points_underflow_nowhere():
    gmm = GMM([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
    x = torch.tensor([[-1e6], [1e6]], dtype=torch.float64)
    nearest = -0.5 * ((1e6 - 1) ** 2 + np.log(2 * np.pi)) + np.log(0.5)
    assert_within(
        gmm.log_prob(x), [nearest, nearest], relative=1e-15, reason="the spacing of doubles: log(0.5) has to be seen"
    )
    assert gmm.posterior(x).probs.tolist() == [[1, 0], [0, 1]]


def test_permuting_components_permutes_the_posterior_only():
    gmm, order = random_gmm(), torch.tensor([2, 0, 1])
    permuted = GMM(gmm.weights[order], gmm.means[order], gmm.covariances[order])
    x = gmm.sample(30)
    assert_close(permuted.log_prob(x), gmm.log_prob(x))
    assert_close(permuted.posterior(x).probs, gmm.posterior(x).probs[:, order], scale=1e-200)


def test_a_component_of_weight_zero_does_not_exist():
    gmm = random_gmm()
    with_dead = GMM([*gmm.weights.tolist(), 0.0], [*gmm.means.tolist(), [0.0] * D], [*dense(gmm), np.eye(D)])
    x = gmm.sample(30)
    assert_close(with_dead.log_prob(x), gmm.log_prob(x))
    assert (with_dead.posterior(x).probs[:, -1] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_dtype_and_container_of_the_data_do_not_matter(kind):
    gmm = random_gmm(kind)
    single = gmm.sample(30).float()
    expected = gmm.log_prob(single.double())
    for x in (single, single.numpy(), single.double().numpy()):
        assert torch.equal(gmm.log_prob(x), expected)
    read_only = single.numpy().copy()
    read_only.flags.writeable = False
    assert torch.equal(gmm.log_prob(read_only), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_a_block_changes_no_number(kind, monkeypatch):
    gmm = random_gmm(kind)
    x = gmm.sample(301)
    whole, whole_fit = gmm.log_prob(x), GMM.fit(x, 2, covariance_type=kind, max_iter=5)
    monkeypatch.setattr(mixture, "BLOCK_ELEMENTS", 7 * C * D)
    assert_close(gmm.log_prob(x), whole)
    assert_close(GMM.fit(x, 2, covariance_type=kind, max_iter=5).history, whole_fit.history)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments_of_the_mixture(kind, seed):
    gmm = random_gmm(kind)
    x = gmm.sample(20_000, seed=seed).numpy()
    weights, means = gmm.weights.numpy(), gmm.means.numpy()
    mean = weights @ means
    second = np.einsum("c,cij->ij", weights, dense(gmm) + means[:, :, None] * means[:, None, :])
    for i in range(D):
        assert_mean(x[:, i], mean[i], sigma=np.sqrt(second[i, i] - mean[i] ** 2), effect=0.4)
        assert_mean(x[:, i] * x[:, 0], second[i, 0], effect=1.5)
    assert torch.equal(gmm.sample(5, seed=3), gmm.sample(5, seed=3))
    assert not torch.equal(gmm.sample(5, seed=3), gmm.sample(5, seed=4))


def test_ambiguous_covariances_need_a_type():
    arguments = ([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [[1.0, 0.5], [0.5, 2.0]])
    with pytest.raises(DataError, match="both diag and tied"):
        GMM(*arguments)
    x = torch.tensor([[0.3, -0.2]])
    as_diag = GMM(*arguments, "diag").log_prob(x)
    as_tied = GMM(*arguments, covariance_type="tied").log_prob(x)
    assert abs(as_diag - as_tied) > 0.01


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        ([0.5, 0.6], [[0.0], [1.0]], [1.0, 1.0], "sum 1"),
        ([-0.5, 1.5], [[0.0], [1.0]], [1.0, 1.0], "probabilities"),
        ([1.0], [[0.0], [1.0]], [1.0, 1.0], "one for each mean"),
        ([float("nan"), 1.0], [[0.0], [1.0]], [1.0, 1.0], "probabilities"),
        ([0.5, 0.5], [0.0, 1.0], [1.0, 1.0], "shape"),
        ([0.5, 0.5], [[0.0], [float("nan")]], [1.0, 1.0], "row 1"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0, 1.0], "covariances have shape"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, float("inf")], "NaN or infinite"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]], "symmetric"),
    ],
)
def test_parameters_that_describe_no_mixture_are_errors(weights, means, covariances, message):
    with pytest.raises(DataError, match=message):
        GMM(weights, means, covariances)


def test_a_covariance_that_is_not_positive_definite_is_named():
    with pytest.raises(EstimateError, match="covariance 1"):
        GMM([0.5, 0.5], np.zeros((2, 2)), [np.eye(2), [[1.0, 2.0], [2.0, 1.0]]])
    with pytest.raises(EstimateError, match="covariance 0"):
        GMM([0.5, 0.5], np.zeros((2, 1)), [0.0, 1.0])


def test_an_unknown_covariance_type_is_an_error():
    with pytest.raises(DataError, match="expected one of"):
        GMM([1.0], [[0.0, 0.0]], [1.0], "diagonal")
    with pytest.raises(DataError, match="expected one of"):
        GMM.fit(np.eye(2), 1, covariance_type="diagonal")


def test_data_of_another_dimension_are_an_error():
    with pytest.raises(DataError, match=r"expected \(N, 4\)"):
        random_gmm().log_prob(np.zeros((5, 3)))
    with pytest.raises(DataError, match="row 1"):
        random_gmm().posterior(np.array([[0.0] * 4, [np.nan] * 4]))
