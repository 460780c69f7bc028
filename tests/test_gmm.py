"""Gaussian mixtures against scikit-learn, scipy, brute force and themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae.errors import DataError, EstimateError
from ppl_vae.exact import GMM, AmortisedCategorical, TrainableGMM, em, mixture
from ppl_vae.exact.mixture import Component
from tests.statistical import assert_mean

KINDS = ["full", "diag", "tied", "spherical"]
C, D = 3, 4


def random_covariances(rng: np.random.Generator, kind: str, num_components: int = C, dim: int = D) -> np.ndarray:
    roots = rng.normal(size=(num_components, dim, dim))
    full = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(dim)
    diagonals = full.diagonal(axis1=1, axis2=2)
    return {"full": full, "diag": diagonals, "tied": full[0], "spherical": diagonals.mean(1)}[kind]


def random_gmm(kind: str = "full", seed: int = 0, num_components: int = C, dim: int = D, spread: float = 2.0) -> GMM:
    rng = np.random.default_rng(seed)
    weights, means = rng.dirichlet(np.full(num_components, 3.0)), spread * rng.normal(size=(num_components, dim))
    return GMM(weights, means, random_covariances(rng, kind, num_components, dim), covariance_type=kind)


def dense(gmm: GMM) -> np.ndarray:
    """The covariances as (C, D, D), by means independent of the library."""
    num_components, dim = gmm.means.shape
    covariances, identity = gmm.covariances.numpy(), np.eye(dim)
    return {
        "full": lambda: covariances,
        "diag": lambda: covariances[:, :, None] * identity,
        "tied": lambda: np.broadcast_to(covariances, (num_components, dim, dim)),
        "spherical": lambda: covariances[:, None, None] * identity,
    }[gmm.covariance_type]()


def scikit_learn(gmm: GMM) -> GaussianMixture:
    judge = GaussianMixture(len(gmm.weights), covariance_type=gmm.covariance_type)
    judge.weights_, judge.means_, judge.covariances_ = gmm.weights.numpy(), gmm.means.numpy(), gmm.covariances.numpy()
    judge.precisions_cholesky_ = _compute_precision_cholesky(judge.covariances_, gmm.covariance_type)
    return judge


def data_with_far_points(gmm: GMM) -> np.ndarray:
    far = np.random.default_rng(7).normal(size=(20, gmm.means.shape[1])) * 1e4
    return np.concatenate([gmm.sample(200, seed=1).numpy(), far])


def log_weights(model, guide, x: torch.Tensor, num_particles: int) -> torch.Tensor:
    """(K, N) of log p(x, z) - log q(z given x), by Pyro's own handlers and nothing of the library."""

    def particles(program):
        def repeated(x):
            with pyro.plate("particles", num_particles, dim=-2):
                program(x)

        return repeated

    q = poutine.trace(particles(guide)).get_trace(x)
    p = poutine.trace(poutine.replay(particles(model), trace=q)).get_trace(x)
    p.compute_log_prob()
    q.compute_log_prob()
    return p.nodes["x"]["log_prob"] + p.nodes["z"]["log_prob"] - q.nodes["z"]["log_prob"]


def assert_increasing(history: tuple[float, ...]) -> None:
    gains = np.diff(history)
    assert len(gains)
    assert gains.min() >= -1e-12 * max(1.0, np.abs(history).max()), f"log-likelihood fell by {-gains.min():.3g}"


# Density and posterior


@pytest.mark.parametrize("kind", KINDS)
def test_density_and_posterior_equal_scikit_learn(kind):
    gmm = random_gmm(kind)
    x = data_with_far_points(gmm)
    judge = scikit_learn(gmm)
    np.testing.assert_allclose(gmm.log_prob(x).numpy(), judge.score_samples(x), rtol=1e-10)
    np.testing.assert_allclose(gmm.posterior(x).probs.numpy(), judge.predict_proba(x), rtol=1e-10, atol=1e-10)
    assert gmm.num_parameters == judge._n_parameters()


@pytest.mark.parametrize("kind", KINDS)
def test_density_equals_the_sum_over_components(kind):
    gmm = random_gmm(kind, seed=1)
    x = gmm.sample(50).numpy()
    components = zip(gmm.weights.numpy(), gmm.means.numpy(), dense(gmm), strict=True)
    terms = [np.log(w) + multivariate_normal(m, s).logpdf(x) for w, m, s in components]
    np.testing.assert_allclose(gmm.log_prob(x).numpy(), logsumexp(terms, axis=0), rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_one_component_is_a_normal_distribution(kind):
    gmm = random_gmm(kind, num_components=1)
    x = gmm.sample(20).numpy()
    judge = multivariate_normal(gmm.means[0].numpy(), dense(gmm)[0])
    np.testing.assert_allclose(gmm.log_prob(x).numpy(), judge.logpdf(x), rtol=1e-10)
    assert (gmm.posterior(x).probs == 1).all()


def test_components_of_equal_means_and_covariances_share_by_weight():
    gmm = GMM([0.2, 0.8], np.ones((2, D)), np.ones(2))
    x = gmm.sample(10)
    torch.testing.assert_close(gmm.posterior(x).probs, gmm.weights.expand(10, 2), rtol=1e-12, atol=0)


def test_far_points_underflow_nowhere():
    gmm = GMM([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
    x = torch.tensor([[-1e6], [1e6]], dtype=torch.float64)
    nearest = -0.5 * ((1e6 - 1) ** 2 + np.log(2 * np.pi)) + np.log(0.5)
    np.testing.assert_allclose(gmm.log_prob(x).numpy(), [nearest, nearest], rtol=1e-14)
    assert gmm.posterior(x).probs.tolist() == [[1, 0], [0, 1]]


def test_permuting_components_permutes_the_posterior_only():
    gmm, order = random_gmm(), torch.tensor([2, 0, 1])
    permuted = GMM(gmm.weights[order], gmm.means[order], gmm.covariances[order])
    x = gmm.sample(30)
    torch.testing.assert_close(permuted.log_prob(x), gmm.log_prob(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(permuted.posterior(x).probs, gmm.posterior(x).probs[:, order], rtol=1e-10, atol=1e-300)


def test_a_component_of_weight_zero_does_not_exist():
    gmm = random_gmm()
    with_dead = GMM([*gmm.weights.tolist(), 0.0], [*gmm.means.tolist(), [0.0] * D], [*dense(gmm), np.eye(D)])
    x = gmm.sample(30)
    torch.testing.assert_close(with_dead.log_prob(x), gmm.log_prob(x), rtol=1e-12, atol=0)
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
    torch.testing.assert_close(gmm.log_prob(x), whole, rtol=1e-12, atol=0)
    np.testing.assert_allclose(GMM.fit(x, 2, covariance_type=kind, max_iter=5).history, whole_fit.history, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments_of_the_mixture(kind):
    gmm = random_gmm(kind)
    x = gmm.sample(20_000, seed=3).numpy()
    weights, means = gmm.weights.numpy(), gmm.means.numpy()
    mean = weights @ means
    second = np.einsum("c,cij->ij", weights, dense(gmm) + means[:, :, None] * means[:, None, :])
    for i in range(D):
        assert_mean(x[:, i], mean[i], sigma=np.sqrt(second[i, i] - mean[i] ** 2))
        assert_mean(x[:, i] * x[:, 0], second[i, 0])
    assert torch.equal(gmm.sample(5, seed=3), gmm.sample(5, seed=3))
    assert not torch.equal(gmm.sample(5, seed=3), gmm.sample(5, seed=4))


# Construction


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


# Maximum likelihood


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
    assert abs(gmm.log_prob(x).mean().item() - judge.score(x)) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("floor", [1e-6, 0.5])
def test_the_log_likelihood_increases_at_every_iteration(kind, floor):
    x = random_gmm("full", seed=2).sample(300)
    x[:, 0] = 1e3  # a constant column far from the origin: only the floor keeps its variance positive
    gmm = GMM.fit(x, 4, covariance_type=kind, tol=1e-9, covariance_floor=floor)
    assert_increasing(gmm.history)
    assert gmm.history[-1] > gmm.history[0] + 0.01
    np.testing.assert_allclose(gmm.history[-1], gmm.log_prob(x).mean().item(), rtol=1e-12)
    assert np.linalg.eigvalsh(dense(gmm)).min() >= floor * (1 - 1e-6)


@pytest.mark.parametrize("kind", ["full", "diag", "tied"])
def test_the_floor_moves_only_what_lies_below_it(kind):
    x = np.array([[-2.0, 3.0], [2.0, 3.0]])
    gmm = GMM.fit(x, 1, covariance_type=kind, covariance_floor=0.5)
    np.testing.assert_allclose(dense(gmm), [np.diag([4.0, 0.5])], rtol=1e-12, atol=1e-12)


def test_no_component_starts_as_a_spike_on_one_datum():
    x = torch.cat([random_gmm(num_components=1).sample(200), torch.full((1, D), 1e3)])
    parameters = em.start(x, 2, "full", floor=1e-6, seed=0)
    assert parameters.weights.min() < 0.01
    assert torch.linalg.eigvalsh(parameters.covariances).min() > 0.01


def test_one_m_step_is_the_weighted_mean_and_covariance():
    init = random_gmm(seed=3)
    x = random_gmm(seed=4).sample(200)
    gmm = GMM.fit(x, C, init=init, max_iter=1)
    responsibilities, rows = init.posterior(x).probs.numpy(), x.numpy()
    np.testing.assert_allclose(gmm.weights.numpy(), responsibilities.mean(0), rtol=1e-10)
    for c in range(C):
        mean = np.average(rows, axis=0, weights=responsibilities[:, c])
        covariance = np.cov(rows.T, aweights=responsibilities[:, c], bias=True)
        np.testing.assert_allclose(gmm.means[c].numpy(), mean, rtol=1e-10)
        np.testing.assert_allclose(gmm.covariances[c].numpy(), covariance, rtol=1e-10, atol=1e-12)


def test_data_far_from_the_origin_lose_no_digits():
    # Multiples of 2^-20 move by 2^20 without rounding, so that both fits see the same deviations.
    x = torch.round(random_gmm(seed=2).sample(200) * 2**20) / 2**20
    near, far = (GMM.fit(x + offset, 2, max_iter=20) for offset in (0.0, 2.0**20))
    np.testing.assert_allclose(far.history, near.history, rtol=1e-8)


def test_an_empty_component_moves_to_the_data_explained_worst():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(200, 2)), rng.normal(size=(20, 2)) + 30.0])
    init = GMM([0.5, 0.5], [[0.0, 0.0], [-1e3, -1e3]], [1.0, 1.0], "spherical")
    gmm = GMM.fit(x, 2, covariance_type="spherical", init=init)
    assert_increasing(gmm.history)
    np.testing.assert_allclose(gmm.weights.numpy(), [200 / 220, 20 / 220], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_component_stays_where_moving_it_gains_nothing(kind):
    x = np.linspace(-1.0, 1.0, 51)[:, None]
    covariances = np.full({"full": (2, 1, 1), "diag": (2, 1), "tied": (1, 1), "spherical": 2}[kind], x.var())
    init = GMM([0.5, 0.5], [[0.0], [6.0]], covariances, kind)
    gmm = GMM.fit(x, 2, covariance_type=kind, init=init)
    assert_increasing(gmm.history)
    assert gmm.converged
    assert gmm.means[1].item() == 6.0
    np.testing.assert_allclose(gmm.history[-1], multivariate_normal(0.0, x.var()).logpdf(x).mean(), rtol=1e-12)


def test_duplicates_fewer_than_components_are_fitted():
    gmm = GMM.fit(np.ones((10, 2)), 3)
    expected = -np.log(2 * np.pi * 1e-6)
    np.testing.assert_allclose(gmm.history[-1], expected, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_one_datum(kind):
    gmm = GMM.fit([[1.0, 2.0]], 1, covariance_type=kind)
    np.testing.assert_allclose(gmm.means.numpy(), [[1.0, 2.0]])
    np.testing.assert_allclose(dense(gmm), [1e-6 * np.eye(2)], rtol=1e-6)


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
    assert "EM 2/2" in capfd.readouterr().err
    loose = GMM.fit(x, C, tol=10.0)
    assert (len(loose.history), loose.converged) == (2, True)
    assert capfd.readouterr().err == ""


# Bad data (RELIABILITY F7)


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


def test_data_of_another_dimension_are_an_error():
    with pytest.raises(DataError, match=r"expected \(N, 4\)"):
        random_gmm().log_prob(np.zeros((5, 3)))
    with pytest.raises(DataError, match="row 1"):
        random_gmm().posterior(np.array([[0.0] * 4, [np.nan] * 4]))


def test_bad_options_are_errors():
    x = random_gmm().sample(20)
    for options in ({"max_iter": 0}, {"num_restarts": 0}, {"covariance_floor": 0.0}, {"tol": -1.0}, {"tol": np.nan}):
        with pytest.raises(ValueError, match=r"expected|at least"):
            GMM.fit(x, 2, **options)
    with pytest.raises(ValueError, match="one start"):
        GMM.fit(x, C, init=random_gmm(), num_restarts=2)
    for other in (random_gmm("diag"), random_gmm(num_components=2), random_gmm(dim=3)):
        with pytest.raises(DataError, match="init has"):
            GMM.fit(x, C, init=other)


def test_data_that_overflow_are_an_error():
    with pytest.raises(EstimateError, match="rescale"):
        GMM.fit(np.array([[0.0], [1e200], [-1e200]]), 1, init=GMM([1.0], [[0.0]], [1.0]), covariance_type="spherical")


# The programs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_log_weight_of_the_exact_guide_is_log_p(kind, dtype):
    gmm = random_gmm(kind)
    x = gmm.sample(13).to(dtype)
    found = log_weights(gmm.model, gmm.guide, x, num_particles=5)
    torch.testing.assert_close(found, gmm.log_prob(x).expand(5, 13), rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_component_looks_up_what_indexing_would_compute(kind):
    gmm = random_gmm(kind)
    means, covariances = gmm.means, torch.as_tensor(dense(gmm).copy())
    x = gmm.sample(6)
    for z_shape, x_shape in itertools.product([(), (6,), (3, 1), (2, 3, 6)], [(), (6,), (3, 6), (1, 6), (3, 1)]):
        z = torch.randint(C, z_shape)
        value = x[torch.randint(6, x_shape)]
        judge = torch.distributions.MultivariateNormal(means[z], covariances[z])
        found = Component(gmm.mixture(), z).log_prob(value)
        torch.testing.assert_close(found, judge.log_prob(value), rtol=1e-10, atol=0)


def test_the_unobserved_model_draws_from_the_mixture():
    gmm = random_gmm()
    z = torch.tensor([0, 1, 2]).repeat_interleave(3000)
    x = Component(gmm.mixture(), z).sample()
    for c, i in itertools.product(range(C), range(D)):
        assert_mean(x[z == c, i].numpy(), gmm.means[c, i].item(), sigma=np.sqrt(gmm.covariances[c, i, i].item()))
    drawn = poutine.trace(poutine.uncondition(gmm.model)).get_trace(torch.zeros(7, D)).nodes["x"]["value"]
    assert drawn.shape == (7, D)


class LargestTensor(TorchDispatchMode):
    """Records the largest storage that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


def test_a_thousand_particles_cost_no_covariance_each():
    gmm = random_gmm("full", num_components=8, dim=64)
    x = gmm.sample(50)
    with LargestTensor() as memory:
        log_weights(gmm.model, gmm.guide, x, num_particles=1000)
    # The probabilities from which Pyro draws the (K, N) latents are the largest; (K, N, D, D) would be 512 times it.
    assert memory.bytes <= 1000 * 50 * 8 * 8


# Gradients


@pytest.mark.parametrize("kind", KINDS)
def test_the_enumerated_elbo_is_the_log_likelihood(kind):
    start = random_gmm(kind)
    x = start.sample(20)
    trainable = TrainableGMM(start)
    expected = -start.log_prob(x).sum()
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    for guide in (lambda x: None, trainable.guide):
        torch.testing.assert_close(elbo.differentiable_loss(trainable.model, guide, x), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(trainable.to_gmm().log_prob(x), start.log_prob(x), rtol=1e-10, atol=0)


def test_gradients_of_the_log_likelihood_are_those_of_finite_differences():
    start = random_gmm(dim=2)
    x = start.sample(5)
    trainable = TrainableGMM(start)

    def log_likelihood(*parameters: torch.Tensor) -> torch.Tensor:
        names = [name for name, _ in trainable.named_parameters()]
        with torch.nn.utils.stateless._reparametrize_module(trainable, dict(zip(names, parameters, strict=True))):
            elbo = TraceEnum_ELBO(max_plate_nesting=1)
            return elbo.differentiable_loss(trainable.model, lambda x: None, x)

    assert torch.autograd.gradcheck(log_likelihood, tuple(trainable.parameters()), check_undefined_grad=False)


def test_gradients_reach_the_optimum_of_em():
    x = random_gmm(seed=6, num_components=2, dim=2).sample(120)
    start = GMM.fit(x, 2, max_iter=1)
    em = GMM.fit(x, 2, init=start, tol=1e-10, max_iter=1000)
    trainable = TrainableGMM(start)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    optimiser = torch.optim.Adam(trainable.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 400)
    for _ in range(400):
        optimiser.zero_grad()
        (elbo.differentiable_loss(trainable.model, lambda x: None, x) / len(x)).backward()
        optimiser.step()
        schedule.step()
    reached = trainable.to_gmm().log_prob(x).mean().item()
    assert em.history[-1] - start.history[-1] > 0.01
    assert abs(reached - em.history[-1]) < 1e-3


def test_the_exact_guide_of_a_trainable_mixture_has_constant_weights():
    trainable = TrainableGMM(random_gmm())
    x = trainable.to_gmm().sample(9).float()
    found = log_weights(trainable.model, trainable.guide, x, num_particles=4)
    torch.testing.assert_close(found, trainable.to_gmm().log_prob(x).expand(4, 9), rtol=1e-10, atol=0)


def test_a_mixture_in_single_precision_takes_data_in_double():
    start = random_gmm()
    x = start.sample(9)
    single = TrainableGMM(start).float()
    found = log_weights(single.model, single.guide, x, num_particles=2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), start.log_prob(x).expand(2, 9), rtol=1e-5, atol=0)


def test_a_weight_of_zero_cannot_be_trained():
    with pytest.raises(DataError, match="positive"):
        TrainableGMM(GMM([0.0, 1.0], [[0.0], [1.0]], [1.0, 1.0]))


def test_an_amortised_guide_learns_the_posterior():
    gmm = random_gmm(dim=2, spread=1.0)
    x = gmm.sample(200)
    torch.manual_seed(0)
    amortised = AmortisedCategorical(2, C, hidden=[16])
    optimiser = torch.optim.Adam(amortised.parameters(), lr=0.02)

    def gap() -> torch.Tensor:
        """KL(q, posterior) in nats per datum: log p - ELBO, the latent summed exactly."""
        weights = gmm.mixture().log_joint(x) - amortised(x).logits
        return (gmm.log_prob(x) - (amortised(x).probs * weights).sum(-1)).mean()

    untrained = gap().item()
    for _ in range(200):
        optimiser.zero_grad()
        gap().backward()
        optimiser.step()
    assert 0 <= gap().item() < 0.1 * untrained
    assert log_weights(gmm.model, amortised.guide, x.float(), num_particles=3).shape == (3, 200)
