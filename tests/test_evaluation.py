"""How an evaluation goes: what it leaves alone, what it refuses, what it says."""

from __future__ import annotations

import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from tests.pairs import DiscreteVAE, ModuleVAE, binary_rows, scaled_guide, small_ppca
from tests.running import estimate
from tests.statistical import assert_close
from tests.training import fresh


def test_evaluation_changes_nothing():
    """R6: no parameter, buffer, mode or random state."""
    module = nn.Module()
    module.encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
    module.decoder = nn.Linear(2, 5)
    module.encoder[2].eval()

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=module.decoder(z)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            loc, raw = module.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    pair = pv.Pair(model, guide)
    before = {k: v.clone() for k, v in pair.state_dict().items()}
    modes = [m.training for m in pair.modules()]
    noise = torch.random.get_rng_state()
    first = estimate(pair, binary_rows(9), 50)
    assert all(torch.equal(before[k], v) for k, v in pair.state_dict().items())
    assert modes == [m.training for m in pair.modules()]
    assert torch.equal(noise, torch.random.get_rng_state())
    assert (first.value == estimate(pair, binary_rows(9), 50).value).all()
    assert (first.value != estimate(pair, binary_rows(9), 50, seed=1).value).any()


def test_beta_never_touches_an_evaluation():
    """R3: programs scaled for training are evaluated unscaled."""
    pair = ModuleVAE()
    scaled = pv.Pair(pv.scale_latents(pair.model, 4.0), pv.scale_latents(pair.guide, 4.0))
    x = binary_rows()
    np.testing.assert_array_equal(estimate(pair, x, 100).value, estimate(scaled, x, 100).value)


def test_global_latents_are_refused_with_the_reason():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.1)), 0.5))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    pair = pv.Pair(model, guide)
    with pytest.raises(pv.PairError, match=r"'loc'.*outside"):
        estimate(pair, torch.randn(5), 10)
    assert pv.fit(pair, torch.randn(50) + 1, epochs=2, progress=False).steps == 2


def test_subsampled_nested_plates_are_refused():
    def programs(plate):
        def model(x):
            with pyro.plate("data", x.shape[0], dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0], 1), 1.0))
                with plate() as index:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, index])

        def guide(x):
            with pyro.plate("data", x.shape[0], dim=-2):
                pyro.sample("z", dist.Normal(x.mean(1, keepdim=True), 0.5))

        return pv.Pair(model, guide)

    x = torch.randn(6, 4)
    whole = programs(lambda: pyro.plate("pixels", 4, dim=-1))
    assert estimate(whole, x, 20).value.shape == (6,)
    with pytest.raises(pv.PairError, match="subsampled"):
        estimate(programs(lambda: pyro.plate("pixels", 4, subsample_size=2, dim=-1)), x, 20)


@pytest.mark.usefixtures("float64")
def test_masked_observations_are_marginalised():
    """A mask as a second array: the evidence of the coordinates that are there, exact under their own posterior."""
    ppca = small_ppca(dim=4, latent=2)
    x, there = ppca.sample(6, seed=1), torch.rand(6, 4) < 0.6

    def model(x, there):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = z @ ppca.loading.T + ppca.bias
            pyro.sample("x", dist.Normal(mean, ppca.scale).mask(there).to_event(1), obs=x)

    def guide(x, there):
        loading = ppca.loading * there.unsqueeze(-1)
        precision = torch.eye(2) + loading.mT @ loading / ppca.scale**2
        loc = torch.linalg.solve(precision, (loading.mT @ (x - ppca.bias).unsqueeze(-1)) / ppca.scale**2).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.MultivariateNormal(loc, precision_matrix=precision))

    covariance = ppca.loading @ ppca.loading.T + ppca.scale**2 * torch.eye(4)
    exact = []
    for row, mask in zip(x, there, strict=True):
        marginal = dist.MultivariateNormal(ppca.bias[mask], covariance[mask][:, mask]) if mask.any() else None
        exact.append(float(marginal.log_prob(row[mask])) if marginal else 0.0)
    np.testing.assert_allclose(estimate(pv.Pair(model, guide), (x, there), 9).value, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_nested_plates_are_summed_within_a_datum():
    """A normal mean with four observations a datum: the evidence is a multivariate normal."""
    x = torch.randn(6, 4)

    def model(x):
        with pyro.plate("data", x.shape[0], dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0], 1), 1.0))
            with pyro.plate("pixels", 4, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-2):
            pyro.sample("z", dist.Normal(x.sum(1, keepdim=True) / 5, 5**-0.5))

    exact = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 1).log_prob(x)
    np.testing.assert_allclose(estimate(pv.Pair(model, guide), x, 11).value, exact.numpy(), rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_draws_outside_the_support_count_as_zero():
    """A normal guide on a positive latent: the estimate is right, the zeros are counted and reported."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Exponential(torch.ones(x.shape[0])))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(torch.full_like(x, 0.8), 1.5))

    from scipy.stats import norm

    x = torch.tensor([0.0, 1.0, 2.0])
    ll = estimate(pv.Pair(model, guide), x, 20_000)
    exact = 0.5 - x.numpy() + norm.logcdf(x.numpy() - 1)
    assert np.all(np.abs(ll.value - exact) <= 5.91 * ll.stderr)
    assert (ll.zero_weights > 4000).all()
    assert "outside the model's support" in str(ll)


def test_posterior_draws_and_arviz():
    arviz = pytest.importorskip("arviz")
    ppca = small_ppca()
    x = ppca.sample(400, seed=3)
    ll = estimate(scaled_guide(ppca, 1.4), x, 500, num_draws=50)
    posterior = ppca.posterior(x)
    centred = (torch.as_tensor(ll.posterior["z"]) - posterior.loc).unsqueeze(-1)
    z = torch.linalg.solve_triangular(posterior.scale_tril, centred, upper=False)
    assert float(z.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(z.std()) == pytest.approx(1.0, abs=0.05)
    data = ll.to_arviz()
    assert type(data).__name__ == ("InferenceData" if arviz.__version__.startswith("0.") else "DataTree")
    assert data["posterior"]["z"].dims == ("chain", "draw", "datum", "z_dim_0")
    assert data["log_likelihood"]["x"].shape == (1, 50, 400)
    np.testing.assert_array_equal(data["constant_data"]["khat"].values, ll.khat)


def test_the_verdict_is_said():
    x = small_ppca().sample(20, seed=1)
    bad = estimate(scaled_guide(small_ppca(), 0.4), x, 500)
    assert not bad.trusted.all()
    assert "do not trust" in str(bad)
    assert bad.is_lower_bound == ("log p(x) ≥ " in str(bad)) == ("±" not in str(bad))
    good = estimate(small_ppca(), x, 500)
    assert "do not trust" not in str(good)
    assert f"log p(x) = {good.mean:.2f} ± 0.00" in str(good)
    assert good.bits_per_dimension(4) == pytest.approx(-good.mean / 4 / math.log(2))
    assert good.population_stderr > good.mean_stderr


def test_validation_of_torch_is_left_as_it_was():
    """R6: the import of zuko turns it off for everybody, which Pyro does not know."""
    torch.distributions.Distribution.set_default_validate_args(False)
    pair = ModuleVAE()
    pv.check(pair, binary_rows())
    estimate(pair, binary_rows(), 5)
    pv.fit(pair, binary_rows(), epochs=1, progress=False)
    assert torch.distributions.Distribution._validate_args is False
    with pytest.raises(pv.DataError, match="support"):
        estimate(pair, binary_rows() * 0.5, 5)


def test_few_samples_say_so_and_no_draws_no_export():
    ll = estimate(ModuleVAE(), binary_rows(), 5, num_draws=0)
    assert "too few samples" in str(ll)
    with pytest.raises(pv.EstimateError, match="num_draws"):
        ll.to_arviz()


def test_errors_of_the_mean_add_in_squares():
    ll = estimate(ModuleVAE(), binary_rows(7), 30)
    assert ll.mean == pytest.approx(ll.value.sum() / 7)
    assert ll.mean_stderr == pytest.approx(math.sqrt(sum(error**2 for error in ll.stderr)) / 7)
    assert ll.population_stderr == pytest.approx(math.sqrt(sum((v - ll.mean) ** 2 for v in ll.value) / 6 / 7))


def test_buffers_that_programs_move_are_put_back():
    """R6, of programs that move a buffer in every mode: in place, or by a new tensor in its place."""

    class Averaging(ModuleVAE):
        def __init__(self):
            super().__init__()
            self.register_buffer("moved", torch.zeros(5))
            self.register_buffer("replaced", torch.zeros(5))

        def guide(self, x):
            self.moved.mul_(0.9).add_(0.1 * x.mean(0))
            self.replaced = 0.9 * self.replaced + 0.1 * x.mean(0)
            super().guide(x)

    pair, x = Averaging(), binary_rows(9)
    moved, replaced = pair.moved, pair.replaced
    pv.check(pair, x)
    estimate(pair, x, 50)
    assert pair.moved is moved
    assert pair.replaced is replaced
    assert not moved.any()
    assert not replaced.any()
    pv.fit(pair, x, epochs=1, validation=x, progress=False)
    assert moved.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 10.5}, "num_samples: expected a whole number, found 10.5"),
        ({"k": 0}, "num_samples: expected at least 1, found 0"),
        ({"k": 5, "num_draws": -1}, "num_draws: expected at least 0, found -1"),
        ({"k": 5, "seed": "a"}, "seed: expected a whole number, found 'a'"),
        ({"k": 5, "compile": "yes"}, "compile: expected 'auto', True or False, found 'yes'"),
    ],
)
def test_wrong_options_of_an_evaluation(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        estimate(ModuleVAE(), binary_rows(), **options)


@pytest.mark.parametrize("wrong", ["yes", None, 1])
@pytest.mark.parametrize("name", ["log_likelihood", "k_curve", "gap_decomposition", "compare", "escalate"])
def test_whether_to_compile_is_asked_under_its_own_name(name, wrong):
    pair, x = ModuleVAE(), binary_rows()
    first = {"compare": ({"a": pair}, x), "escalate": (estimate(pair, x, 4), pair, x)}.get(name, (pair, x))
    with pytest.raises(ValueError, match=r"^compile: expected 'auto', True or False, found "):
        getattr(pv, name)(*first, compile=wrong, progress=False)


def test_numpy_integers_are_whole_numbers():
    pair, x = ModuleVAE(), binary_rows()
    found = estimate(pair, x, np.int64(20), seed=np.int64(3))
    assert (found.value == estimate(pair, x, 20, seed=3).value).all()


def test_dimensions_are_those_that_the_model_observes():
    """Bits per dimension of a pair with a condition: y, of one number, not x, of two; and of nested plates."""
    weight = torch.nn.Parameter(torch.tensor([0.5, -0.5]))

    def model(x, y):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x @ weight, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(x, y):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal((x @ weight + y) / 2, 0.5**0.5))

    x, y = torch.randn(6, 2), torch.randn(6)
    ll = estimate(pv.Pair(model, guide), (x, y), 5)
    assert ll.num_dimensions == 1
    assert ll.bits_per_dimension() == pytest.approx(-ll.mean / math.log(2))
    assert ll.bits_per_dimension(2) == pytest.approx(-ll.mean / (2 * math.log(2)))

    def nested(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            with pyro.plate("parts", 3, dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0).expand([3, len(x)]), obs=x.T)

    def of_nested(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(weight.sum() * x.sum(-1), 0.5))

    assert estimate(pv.Pair(nested, of_nested), torch.randn(4, 3), 5).num_dimensions == 3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("share", [0.5, 0.01, 1e-6])
def test_finitely_many_values_are_summed_over(share):
    """A value that is never drawn leaves no trace in the weights: they agree with the sum by chance at best."""
    x, means = torch.linspace(-3, 3, 60), torch.tensor([-1.0, 1.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(means[z], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.tensor([share, 1 - share]).expand(len(x), 2)))

    exact = dist.Normal(means, 1.0).log_prob(x.unsqueeze(-1)).logsumexp(-1) - np.log(2)
    for k in (2, 1000):
        ll = estimate(pv.Pair(model, guide), x, k)
        assert_close(ll.value, exact)
        assert (ll.stderr == 0).all()
        assert (ll.verdict == "reliable").all()
        assert ll.interval() == (ll.mean, ll.mean)
    one = estimate(pv.Pair(model, guide), x, 1)  # not summed: two values
    assert not one.trusted.any()


def test_a_sum_that_is_not_finite_is_no_answer():
    """The model has no density at a value that the guide does not draw: the estimate stays, untrusted."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([1 - 1e-9, 1e-9])))
            pyro.sample("x", dist.Normal(torch.tensor([0.0, torch.nan])[z], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.tensor([1 - 1e-9, 1e-9]).expand(len(x), 2)))

    ll = estimate(pv.Pair(model, guide), torch.zeros(3), 100)
    assert_close(ll.value, dist.Normal(0.0, 1.0).log_prob(torch.zeros(3)))
    assert (ll.verdict == "unreliable").all()
    assert not ll.exact.any()
    assert np.isnan(ll.unseen).all()
    assert "exact" not in str(ll)
    compared = pv.compare({"a": pv.Pair(model, guide)}, torch.zeros(3), 100, progress=False)
    assert not compared.exact
    assert " exact " not in str(compared)


def test_a_sum_says_that_it_is_exact():
    pair, x = fresh(make=DiscreteVAE), binary_rows(20)
    ll = estimate(pair, x, 64)
    assert re.match(r"log p\(x\) = -\d\.\d{4} nats per datum, exact \(20 data", str(ll))
    assert ll.exact.all()
    again = pv.escalate(ll, pair, x, until="reliable", progress=False)
    assert again.exact.all()
    assert not estimate(pair, x, 1).exact.any()
