"""Expectation maximisation against scikit-learn, closed forms and its own monotony; bad data (RELIABILITY F7)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from ppl_vae.arrays import Rows
from ppl_vae.errors import DataError, EstimateError
from ppl_vae.exact import GMM, em
from tests.mixtures import KINDS, C, D, dense, random_gmm
from tests.statistical import assert_close, assert_within


def assert_increasing(history: tuple[float, ...]) -> None:
    gains = np.diff(history)
    assert len(gains)
    assert_close(np.minimum(gains, 0.0), np.zeros_like(gains), scale=max(1.0, np.abs(history).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_em_reaches_scikit_learn_from_the_same_start(kind):
    x = random_gmm("full", seed=5).sample(400).numpy()
    init = GMM.fit(x, C, covariance_type=kind, max_iter=1)
    precisions = 1 / init.covariances.numpy() if kind in ("diag", "spherical") else np.linalg.inv(init.covariances)
    judge = GaussianMixture(
        C,
        covariance_type=kind,
        weights_init=init.weights.numpy(),
        means_init=init.means.numpy(),
        precisions_init=precisions,
        reg_covar=1e-6,
        tol=1e-12,
        max_iter=2000,
    ).fit(x)
    gmm = GMM.fit(x, C, covariance_type=kind, init=init, tol=1e-12, max_iter=2000)
    assert gmm.converged
    assert_within(gmm.log_prob(x).mean(), judge.score(x), absolute=1e-6, reason="both stop at gains below 1e-12")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("floor", [1e-6, 0.5])
def test_the_log_likelihood_increases_at_every_iteration(kind, floor):
    x = random_gmm("full", seed=2).sample(300)
    x[:, 0] = 1e3  # a constant column far from the origin: only the floor keeps its variance positive
    gmm = GMM.fit(x, 4, covariance_type=kind, tol=1e-9, covariance_floor=floor)
    assert_increasing(gmm.history)
    assert gmm.history[-1] > gmm.history[0] + 0.01
    assert_close(gmm.history[-1], gmm.log_prob(x).mean().item())
    assert np.linalg.eigvalsh(dense(gmm)).min() >= floor * (1 - 1e-6)


@pytest.mark.parametrize("kind", ["full", "diag", "tied"])
def test_the_floor_moves_only_what_lies_below_it(kind):
    x = np.array([[-2.0, 3.0], [2.0, 3.0]])
    gmm = GMM.fit(x, 1, covariance_type=kind, covariance_floor=0.5)
    assert_close(dense(gmm), [np.diag([4.0, 0.5])], scale=1.0)


def test_no_component_starts_as_a_spike_on_one_datum():
    x = torch.cat([random_gmm(num_components=1).sample(200), torch.full((1, D), 1e3)])
    parameters = em.start(em.sample_of(Rows([x]), "full", 2), 2, "full", floor=1e-6, seed=0)
    assert parameters.weights.min() < 0.01
    assert torch.linalg.eigvalsh(parameters.covariances).min() > 0.01


def test_one_m_step_is_the_weighted_mean_and_covariance():
    init = random_gmm(seed=3)
    x = random_gmm(seed=4).sample(200)
    gmm = GMM.fit(x, C, init=init, max_iter=1)
    responsibilities, rows = init.posterior(x).probs.numpy(), x.numpy()
    assert_close(gmm.weights.numpy(), responsibilities.mean(0))
    for c in range(C):
        mean = np.average(rows, axis=0, weights=responsibilities[:, c])
        covariance = np.cov(rows.T, aweights=responsibilities[:, c], bias=True)
        assert_close(gmm.means[c].numpy(), mean)
        assert_close(gmm.covariances[c], covariance, scale=1.0)


def test_data_far_from_the_origin_lose_no_digits():
    # Multiples of 2^-20 move by 2^20 without rounding, so that both fits see the same deviations.
    x = torch.round(random_gmm(seed=2).sample(200) * 2**20) / 2**20
    near, far = (GMM.fit(x + offset, 2, max_iter=20) for offset in (0.0, 2.0**20))
    assert_within(far.history, near.history, relative=1e-8, reason="20 iterations carry the rounding of the means")


def test_an_empty_component_moves_to_the_data_explained_worst():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(200, 2)), rng.normal(size=(20, 2)) + 30.0])
    init = GMM([0.5, 0.5], [[0.0, 0.0], [-1e3, -1e3]], [1.0, 1.0], "spherical")
    gmm = GMM.fit(x, 2, covariance_type="spherical", init=init)
    assert_increasing(gmm.history)
    assert_within(gmm.weights, [200 / 220, 20 / 220], relative=1e-6, reason="the iteration stops at a tolerance")


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_component_stays_where_moving_it_gains_nothing(kind):
    x = np.linspace(-1.0, 1.0, 51)[:, None]
    covariances = np.full({"full": (2, 1, 1), "diag": (2, 1), "tied": (1, 1), "spherical": 2}[kind], x.var())
    init = GMM([0.5, 0.5], [[0.0], [6.0]], covariances, kind)
    gmm = GMM.fit(x, 2, covariance_type=kind, init=init)
    assert_increasing(gmm.history)
    assert gmm.converged
    assert gmm.means[1].item() == 6.0
    assert_close(gmm.history[-1], multivariate_normal(0.0, x.var()).logpdf(x).mean())


def test_duplicates_fewer_than_components_are_fitted():
    gmm = GMM.fit(np.ones((10, 2)), 3)
    expected = -np.log(2 * np.pi * 1e-6)
    assert_close(gmm.history[-1], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_one_datum(kind):
    gmm = GMM.fit([[1.0, 2.0]], 1, covariance_type=kind)
    assert_close(gmm.means, [[1.0, 2.0]])
    assert_within(
        dense(gmm), [1e-6 * np.eye(2)], absolute=1e-12, reason="a variance of 1e-6 is what is left of squares of 1"
    )


def test_more_restarts_never_lower_the_likelihood():
    x = random_gmm("full", seed=8, num_components=6, dim=2, spread=3.0).sample(200)
    single, several = (GMM.fit(x, 6, num_restarts=n, max_iter=60).history[-1] for n in (1, 6))
    assert several >= single
    assert several > min(GMM.fit(x, 6, seed=s, max_iter=60).history[-1] for s in range(4))


def test_a_fit_is_a_function_of_its_seed_and_moves_no_generator():
    x = random_gmm(seed=8).sample(100)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (GMM.fit(x, C, seed=4) for _ in range(2))
    first.sample(3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert first.history == second.history
    assert torch.equal(first.covariances, second.covariances)


def test_max_iter_and_tol_stop_the_fit(capfd):
    x = random_gmm(seed=8).sample(200)
    short = GMM.fit(x, C, max_iter=2, tol=0.0, progress=True)
    assert (len(short.history), short.converged) == (3, False)
    loose = GMM.fit(x, C, tol=10.0)
    assert (len(loose.history), loose.converged) == (2, True)
    assert capfd.readouterr().err == ""  # which is no terminal here


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([[0.0], [1.0], [np.nan], [np.inf]]), "row 2"),
        (np.array([[0.0], [1.0], [np.inf], [2.0]], dtype=np.float32), "row 2"),
        (np.zeros(5), "one datum a row"),
        (np.zeros((0, 1)), "at least one row"),
        (np.zeros((5, 1), dtype=complex), "dtype complex128"),
        (torch.zeros(5, 1, dtype=torch.complex64), "dtype torch.complex64"),
        (np.array([["a"], ["b"]]), "dtype"),
        (np.zeros((2, 1)), "2 rows"),
    ],
)
def test_bad_data_are_typed_errors(x, message):
    with pytest.raises(DataError, match=message):
        GMM.fit(x, 3)


def test_bad_options_are_errors():
    x = random_gmm().sample(20)
    wrong = {"max_iter": [0, 2.5], "num_restarts": [0, "3"], "covariance_floor": [0.0], "tol": [-1.0, np.nan, "1"]}
    for name, values in ({"num_components": [0, 2.5, "3"]} | wrong).items():
        for value in values:
            with pytest.raises(ValueError, match=f"{name}: expected"):
                GMM.fit(x, **{"num_components": 2, name: value})
    with pytest.raises(ValueError, match="one start"):
        GMM.fit(x, C, init=random_gmm(), num_restarts=2)
    for other in (random_gmm("diag"), random_gmm(num_components=2), random_gmm(dim=3)):
        with pytest.raises(DataError, match="init has"):
            GMM.fit(x, C, init=other)


def test_data_that_overflow_are_an_error():
    with pytest.raises(EstimateError, match="rescale"):
        GMM.fit(np.array([[0.0], [1e200], [-1e200]]), 1, init=GMM([1.0], [[0.0]], [1.0]), covariance_type="spherical")
