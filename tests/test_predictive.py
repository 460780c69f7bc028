"""Posterior predictive draws against their exact distribution, and as ArviZ takes them."""

from __future__ import annotations

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot
from torch import Tensor

import ppl_vae as pv
from tests.mixtures import random_gmm
from tests.pairs import HierarchicalVAE, binary_rows, scaled_guide, small_ppca
from tests.statistical import assert_close, assert_mean

pytestmark = pytest.mark.usefixtures("float64")


def normal_pair() -> pv.Pair:
    """z ~ N(0, 1), x given z ~ N(z, 1), one number each; q is the posterior N(x / 2, 1 / 2)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    return pv.Pair(model, guide)


@pytest.mark.parametrize("corrected", [False, True])
def test_draws_have_the_moments_of_the_predictive(corrected: bool, seed):
    """x new given x of PPCA: mean W m + b, covariance W V W^T + s^2 I; of a guide too wide once it is corrected."""
    ppca = small_ppca()
    x = ppca.sample(2000, seed=1)
    pair = scaled_guide(ppca, 1.3) if corrected else ppca
    found = pv.posterior_predictive(pair, x, 1, seed, corrected=corrected, num_samples=200, progress=False)
    assert found.num_samples == (200 if corrected else 1)
    assert found.seconds > 0
    assert_close(found.observed["x"], x)
    q = ppca.posterior(x)
    covariance = ppca.loading @ q.covariance_matrix[0] @ ppca.loading.T + ppca.scale**2 * torch.eye(4)
    white = np.linalg.solve(
        np.linalg.cholesky(covariance.numpy()), (found.predictive["x"][0] - (q.loc @ ppca.loading.T).numpy()).T
    )
    assert_mean(white.ravel(), 0.0, 1.0, effect=0.13)
    assert_mean(white.ravel() ** 2, 1.0, np.sqrt(2), effect=0.2)
    assert_mean((white[0] * white[1]), 0.0, 1.0, effect=0.25)
    noise = dist.Normal(torch.as_tensor(found.posterior["z"]) @ ppca.loading.T, ppca.scale)
    assert_close(found.log_lik, noise.log_prob(x).sum(-1))


@pytest.mark.filterwarnings("ignore:draws of .* unreliable")
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("vectorised", [True, False])
def test_every_draw_of_data_comes_of_its_own_latents(draws: int, vectorised: bool, seed):
    """Almost no noise in x: it tells the z that it was made of."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.plate("part", 2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if not vectorised:
                z.reshape(2, len(x))
            pyro.sample("x", dist.Normal(z, 1e-9), obs=x.T)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.plate("part", 2):
            pyro.sample("z", dist.Normal(0.3 * x.T, 1.0))

    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(seed))
    found = pv.posterior_predictive(pv.Pair(model, guide), x, draws, seed, num_samples=7, progress=False)
    assert found.predictive["x"].shape == (draws, 5, 2)
    assert np.abs(found.predictive["x"] - found.posterior["z"]).max() < 1e-7
    assert_close(found.observed["x"], x)


@pytest.mark.filterwarnings("ignore:draws of .* unreliable")
def test_layers_and_discrete_latents_go_along(seed):
    found = pv.posterior_predictive(HierarchicalVAE().double(), binary_rows(70).double(), 2, seed, progress=False)
    assert {n: z.shape for n, z in found.posterior.items()} == {"z1": (2, 70, 2), "z2": (2, 70, 2)}
    assert set(np.unique(found.predictive["x"])) == {0.0, 1.0}
    gmm = random_gmm()
    again = [pv.posterior_predictive(gmm, gmm.sample(9), 4, seed, progress=False) for _ in range(2)]
    assert (again[0].predictive["x"] == again[1].predictive["x"]).all()
    assert again[0].posterior["z"].shape == (4, 9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # arviz 0.23 under matplotlib 3.11
def test_arviz_plots_the_check(seed):
    x = torch.as_tensor(np.random.default_rng(seed).normal(size=200) * 2**0.5)
    found = pv.posterior_predictive(normal_pair(), x, 50, seed, num_samples=100, progress=False).to_arviz()
    assert set(found.groups()) == {"posterior", "posterior_predictive", "log_likelihood", "observed_data"}
    assert found.posterior_predictive["x"].dims == ("chain", "draw", "datum")
    assert_close(found.observed_data["x"].values, x)
    assert arviz.plot_ppc(found, num_pp_samples=5, show=False) is not None
    assert arviz.plot_bpv(found, kind="p_value", show=False) is not None
    assert len(arviz.loo_pit(found, y="x")) == 200
    pyplot.close("all")


@pytest.mark.filterwarnings("ignore:draws of .* unreliable")
def test_arviz_takes_images_and_names_of_its_own(seed):
    found = pv.posterior_predictive(HierarchicalVAE().double(), binary_rows(7).double(), 3, seed, progress=False)
    tree = found.to_arviz()
    assert tree.posterior_predictive["x"].dims == ("chain", "draw", "datum", "x_dim_0")
    assert tree.log_likelihood["log_lik"].dims == ("chain", "draw", "datum")
    assert_close(tree.log_likelihood["log_lik"].values[0], found.log_lik)


def test_what_the_guide_does_not_reach_is_said(seed):
    """Of 200 draws 60 were distinct, and their mean 1.8 off that of the posterior."""
    pair, x = normal_pair(), torch.linspace(-3.0, 3.0, 20)

    def far(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 2.0, 0.1))

    with pytest.warns(UserWarning, match="draws of 20 of 20 data are unreliable: .*num_samples"):
        found = pv.posterior_predictive(pv.Pair(pair.model, far), x, 50, seed, progress=False)
    assert np.abs(found.posterior["z"].mean(0) - x.numpy() / 2).min() > 1.0
    assert (found.verdict == "unreliable").all()
    assert "0 reliable, 0 noisy, 20 unreliable" in str(found)
    exact = pv.posterior_predictive(pair, x, 50, seed, progress=False)
    assert (exact.verdict == "reliable").all()
    assert_close(exact.ess, np.full(20, 500.0))
    assert np.isneginf(exact.khat).all()
    assert str(exact).endswith("(median ESS 500): 20 reliable, 0 noisy, 0 unreliable")


def test_what_is_resampled_from_few_is_said():
    pair = scaled_guide(small_ppca(), 1.3)
    with pytest.warns(UserWarning, match="8 samples are too few to tell"):
        pv.posterior_predictive(pair, small_ppca().sample(3), 2, num_samples=8, progress=False)


def two_values(logit: float) -> pv.Pair:
    """c is 0 or 1 alike, x ~ N(c, 1); the guide leans to 1 by so much more than the posterior."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(torch.full((len(x),), 0.5)))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=x - 0.5 + logit))

    return pv.Pair(model, guide)


@pytest.mark.parametrize("logit", [0.0, 0.3, -1.0])
def test_draws_of_few_values_are_judged_by_all_of_them(logit: float):
    """The weights of two values have no tail; the draws are those of the posterior where the guide draws both."""
    x = torch.linspace(-1.0, 2.0, 40)
    drawn = pv.posterior_predictive(two_values(logit), x, 200, num_samples=4000, progress=False)
    assert drawn.verdict is not None
    assert (drawn.verdict == "reliable").all()
    assert_mean(drawn.posterior["c"] - torch.sigmoid(x - 0.5).numpy(), 0.0, effect=0.06)


def test_a_value_that_is_never_drawn_is_missed():
    with pytest.warns(UserWarning, match="40 of 40 data are unreliable"):
        drawn = pv.posterior_predictive(two_values(-14.0), torch.linspace(0.0, 1.0, 40), progress=False)
    assert drawn.verdict is not None
    assert (drawn.verdict == "unreliable").all()


def test_a_guide_taken_as_it_is_gets_no_verdict():
    pair = scaled_guide(small_ppca(), 0.3)
    found = pv.posterior_predictive(pair, small_ppca().sample(3), 20, corrected=False, progress=False)
    assert (found.ess, found.khat, found.verdict) == (None, None, None)
    assert str(found) == "20 draws for each of 3 data, of the guide as it is"


def test_bad_input_is_named():
    with pytest.raises(pv.PairError, match="without"):
        pv.posterior_predictive(pv.autoregressive.MADE(5, [8]), binary_rows(3), progress=False)
    with pytest.raises(ValueError, match="num_draws"):
        pv.posterior_predictive(small_ppca(), small_ppca().sample(2), 0)


def with_likelihood(log_lik) -> pv.Pair:
    """z ~ N(0, 1), and any log p(x given z); the guide is the prior."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(log_lik(z), 1.0, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * x, 1.0))

    return pv.Pair(model, guide)


@pytest.mark.parametrize("corrected", [False, True])
def test_weights_that_are_none_are_refused(corrected: bool):
    """A density that is NaN beyond z = 2: no draw of such a datum is one of its posterior, in any estimate."""
    pair = with_likelihood(lambda z: torch.where(z > 2, torch.nan, z))
    x = torch.zeros(300)
    with pytest.raises(
        pv.EstimateError,
        match=r"row \d+: expected finite log-weights, found nan at draw \d+: the density of site 'x' of the model",
    ):
        pv.posterior_predictive(pair, x, corrected=corrected, progress=False)
    with pytest.raises(
        pv.EstimateError,
        match=r"row \d+: expected finite log-weights, found nan at draw \d+: the density of site 'x' of the model",
    ):
        pv.k_curve(pair, x, 256, progress=False)


def test_draws_of_no_weight_are_refused():
    """Every draw makes the datum impossible: there is nothing to resample."""
    pair = with_likelihood(lambda z: torch.full_like(z, 1e200))
    for estimate in (pv.posterior_predictive, lambda *a, **k: pv.k_curve(*a, 64, **k)):
        with pytest.raises(pv.EstimateError, match=r"row 0: all \d+ weights are zero"):
            estimate(pair, torch.zeros(3), progress=False)
