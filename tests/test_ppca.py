"""Probabilistic PCA against the direct covariance, scipy, scikit-learn and its own posterior."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from ppl_vae.errors import DataError
from ppl_vae.exact import PPCA
from tests.running import log_weights
from tests.statistical import assert_close, assert_mean, assert_within

D, L = 6, 2


def random_ppca(seed: int = 0, scale: float = 0.7, dim: int = D, latent_dim: int = L) -> PPCA:
    rng = np.random.default_rng(seed)
    return PPCA(rng.normal(size=(dim, latent_dim)), rng.normal(size=dim), scale)


@pytest.mark.parametrize("scale", [1e-3, 0.7, 30.0])
def test_log_prob_by_three_routes(scale):
    ppca = random_ppca(scale=scale)
    x = np.concatenate([ppca.sample(40).numpy(), 1e3 * np.random.default_rng(1).normal(size=(10, D))])
    found = ppca.log_prob(x).numpy()
    W, b = ppca.loading.numpy(), ppca.bias.numpy()
    covariance = W @ W.T + scale**2 * np.eye(D)
    # The judges invert the covariance, whose condition number at scale 1e-3 costs them six digits.
    tolerance = {"relative": 1e-10 if scale > 0.1 else 1e-7, "reason": "rounding times the condition of the judges"}
    assert_within(found, multivariate_normal(b, covariance).logpdf(x), **tolerance)
    low_rank = dist.LowRankMultivariateNormal(ppca.bias, ppca.loading, ppca.scale.square().expand(D))
    assert_within(found, low_rank.log_prob(torch.as_tensor(x)), **tolerance)
    assert_close(ppca.covariance.numpy(), covariance)


def test_posterior_is_the_conditional_of_the_joint_normal():
    ppca = random_ppca()
    x = ppca.sample(15)
    gain = ppca.loading.mT @ torch.linalg.inv(ppca.covariance)
    posterior = ppca.posterior(x)
    assert_close(posterior.mean, (x - ppca.bias) @ gain.mT, scale=1.0)
    expected = (torch.eye(L) - gain @ ppca.loading).expand(15, L, L)
    assert_close(posterior.covariance_matrix, expected, scale=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-2, 0.7])
def test_every_log_weight_of_the_exact_guide_is_log_p(dtype, scale):
    ppca = random_ppca(scale=scale)
    x = ppca.sample(11).to(dtype)
    found = log_weights(ppca.model, ppca.guide, x, num_particles=5)
    assert_close(found, ppca.log_prob(x).expand(5, 11), torch.float64, scale=1.0)


def test_samples_have_the_moments_of_the_model(seed):
    ppca = random_ppca()
    x = ppca.sample(20_000, seed=seed).numpy()
    mean, covariance = ppca.bias.numpy(), ppca.covariance.numpy()
    for i in range(D):
        assert_mean(x[:, i], mean[i], sigma=np.sqrt(covariance[i, i]), effect=0.3)
        # Isserlis: the variance of a product of two normals.
        sigma = np.sqrt(covariance[i, i] * covariance[0, 0] + covariance[i, 0] ** 2)
        assert_mean((x[:, i] - mean[i]) * (x[:, 0] - mean[0]), covariance[i, 0], sigma, effect=0.5)
    assert torch.equal(ppca.sample(4, seed=1), ppca.sample(4, seed=1))
    assert not torch.equal(ppca.sample(4, seed=1), ppca.sample(4, seed=2))


def test_fit_equals_scikit_learn():
    x = random_ppca(3).sample(300).numpy() + 5.0
    ppca, judge = PPCA.fit(x, L), PCA(L).fit(x)
    # scikit-learn divides by N - 1 where the maximum of the likelihood divides by N.
    assert_close(ppca.covariance.numpy(), judge.get_covariance() * 299 / 300)
    assert_close(ppca.bias.numpy(), judge.mean_)


def test_no_nearby_parameters_are_more_likely():
    x = random_ppca(4).sample(200)
    ppca = PPCA.fit(x, L)
    best = ppca.log_prob(x).mean()
    parameters = [p.clone().requires_grad_() for p in (ppca.loading, ppca.bias, ppca.scale)]
    W, b, s = parameters
    loss = dist.MultivariateNormal(b, W @ W.mT + s**2 * torch.eye(D).double()).log_prob(x).mean()
    assert_close(loss.detach(), best)
    for gradient in torch.autograd.grad(loss, parameters):
        assert_close(gradient, torch.zeros_like(gradient), scale=1.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        nearby = [p.numpy() + 1e-2 * rng.normal(size=p.shape) for p in (ppca.loading, ppca.bias, ppca.scale)]
        assert PPCA(*nearby).log_prob(x).mean() < best


def test_fit_recovers_the_log_likelihood_of_the_truth():
    truth = random_ppca(5)
    x = truth.sample(2000)
    gain = 2 * 2000 * (PPCA.fit(x, L).log_prob(x).mean() - truth.log_prob(x).mean()).item()
    # Wilks: twice the gain is chi-squared with num_parameters degrees of freedom; 80 leaves a false alarm of 3e-9.
    assert truth.num_parameters == 18
    assert 0 < gain < 80


@pytest.mark.parametrize(("dim", "latent_dim", "expected"), [(2, 1, 5), (6, 2, 18), (5, 4, 20)])
def test_number_of_parameters(dim, latent_dim, expected):
    # The covariance of latent_dim = dim - 1 is any covariance: D (D + 1) / 2 of it and D of the mean.
    assert random_ppca(dim=dim, latent_dim=latent_dim).num_parameters == expected


def test_dtype_and_container_of_the_data_do_not_matter():
    ppca = random_ppca()
    single = ppca.sample(30).float()
    for x in (single, single.numpy(), single.double().numpy()):
        assert torch.equal(ppca.log_prob(x), ppca.log_prob(single.double()))
        assert torch.equal(PPCA.fit(x, L).scale, PPCA.fit(single.double(), L).scale)


@pytest.mark.parametrize(
    ("x", "latent_dim", "message"),
    [
        (np.eye(5), 5, "1 <= latent_dim < 5"),
        (np.eye(5), 0, "1 <= latent_dim < 5"),
        (np.ones((1, 5)), 1, "1 rows"),
        (np.full((7, 5), 0.1), 1, "more than latent_dim"),
        (np.random.default_rng(0).normal(size=(3, 5)), 2, "more than latent_dim"),
        (np.random.default_rng(0).normal(size=(50, 2)) @ np.ones((2, 5)) * 1e3, 1, "more than latent_dim"),
        (
            np.random.default_rng(0).normal(size=(250, 3)) * 1e200,
            1,
            r"up to .*e\+200, whose squares overflow: rescale it",
        ),
        (np.array([[0.0, 1.0], [np.nan, 1.0]]), 1, "row 1"),
        (np.zeros((0, 5)), 1, "at least one row"),
        (np.zeros(5), 1, "one datum a row"),
        (np.zeros((3, 5), dtype=complex), 1, "dtype"),
    ],
)
def test_data_without_a_maximum_of_the_likelihood_are_errors(x, latent_dim, message):
    with pytest.raises(DataError, match=message):
        PPCA.fit(x, latent_dim)


def test_rank_deficient_data_with_noise_left_are_fitted():
    x = np.random.default_rng(0).normal(size=(50, 3)) @ np.random.default_rng(1).normal(size=(3, D))
    assert PPCA.fit(x, L).log_prob(x).isfinite().all()


@pytest.mark.parametrize(
    ("loading", "bias", "scale", "message"),
    [
        (np.eye(2), np.zeros(2), 1.0, "latent_dim"),
        (np.ones((2, 1)), np.zeros(3), 1.0, "bias"),
        (np.ones((2, 1)), np.zeros(2), 0.0, "positive"),
        (np.ones((2, 1)), np.zeros(2), np.ones(2), "scale"),
        (np.ones((2, 1)), [0.0, np.nan], 1.0, "bias"),
        ([[1.0], [np.inf]], np.zeros(2), 1.0, "row 1"),
    ],
)
def test_parameters_that_describe_no_model_are_errors(loading, bias, scale, message):
    with pytest.raises(DataError, match=message):
        PPCA(loading, bias, scale)
