"""The importance-sampled log-likelihood against exact answers, and its invariances."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import HierarchicalVAE, ModuleVAE, binary_rows, chi_square, scaled_guide, small_ppca
from statistical import assert_mean
from torch import nn

import ppl_vae as pv
from ppl_vae.evaluation import likelihood, scoring
from ppl_vae.evaluation.proposal import evaluate_model


def estimate(pair, x, k, seed=0, **options):
    return pv.log_likelihood(pair, x, k, seed, progress=False, **options)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("k", [1, 3, 200])
def test_exact_guides_give_log_p_itself(k):
    """S1: every weight equals log p(x), so any K gives the exact answer with error zero and ESS = K."""
    ppca = small_ppca()
    gmm = pv.GMM(torch.tensor([0.3, 0.7]), torch.randn(2, 4), torch.eye(4).repeat(2, 1, 1))
    for exact in (ppca, gmm):
        x = exact.sample(300, seed=1)
        ll = estimate(exact, x, k)
        np.testing.assert_allclose(ll.value, exact.log_prob(x).numpy(), rtol=1e-10)
        if k > 1:
            assert (ll.stderr == 0).all()
            assert (ll.ess == k).all()
            assert (ll.khat == -np.inf).all()
            assert ll.trusted.all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("dim", "s"), [(1, 0.9), (1, 2.0), (3, 1.2), (3, 1.5), (8, 1.2), (16, 1.1)])
def test_estimates_are_unbiased_in_p_space(dim, s):
    """S4: E[p-hat] = p with the known variance chi2 / K, for proposals narrower and wider than the posterior.

    Not much narrower: the tail index of the weights is 1 / (1 - s^2), and the limit theorem wants three moments.
    """
    ppca = small_ppca(dim + 1, dim, seed=dim)
    x = ppca.sample(1, seed=5).expand(20_000, -1).contiguous()
    ll = estimate(scaled_guide(ppca, s), x, 8, num_draws=0)
    ratio = np.exp(ll.value - float(ppca.log_prob(x[:1])))
    assert_mean(ratio, 1.0, sigma=math.sqrt(chi_square(s, dim) / 8))
    if s >= 1:
        assert ratio.var() == pytest.approx(chi_square(s, dim) / 8, rel=0.15)


@pytest.mark.usefixtures("float64")
def test_a_million_weights_meet_bernsteins_bound():
    """A proposal wider than the posterior has weights in [0, s^d]: the bound holds without a limit theorem."""
    s, dim, n = 1.2, 3, 1_000_000
    ppca = small_ppca(4, dim)
    x = ppca.sample(1, seed=9)
    ll = estimate(scaled_guide(ppca, s), x, n, num_draws=0)
    variance, largest, log_delta = chi_square(s, dim), s**dim, math.log(2 / 3.3e-9)
    width = math.sqrt(2 * variance * log_delta / n) + 2 * largest * log_delta / (3 * n)
    assert width < 0.005
    assert abs(math.exp(ll.value[0] - float(ppca.log_prob(x))) - 1) <= width


@pytest.mark.usefixtures("float64")
def test_bias_follows_half_chi_square_over_k():
    """S5: K (log p - E log p-hat) tends to chi2 / 2."""
    s, dim, k = 1.3, 2, 40
    ppca = small_ppca(3, dim)
    x = ppca.sample(1, seed=5).expand(40_000, -1).contiguous()
    gap = float(ppca.log_prob(x[:1])) - estimate(scaled_guide(ppca, s), x, k, num_draws=0).value
    assert_mean(gap, chi_square(s, dim) / 2 / k, effect=0.006)


@pytest.mark.usefixtures("float64")
def test_intervals_cover():
    """S15: 1,000 repetitions of the 95 % interval; at least 920 hold it (fewer by chance: 2e-5)."""
    ppca = small_ppca(4, 2)
    x = ppca.sample(1000, seed=8)
    ll = estimate(scaled_guide(ppca, 1.3), x, 400, num_draws=0)
    covered = np.abs(ll.value - ppca.log_prob(x).numpy()) <= 1.96 * ll.stderr
    assert 0.92 <= covered.mean() <= 0.985


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("prior", "guide"),
    [
        (dist.LogNormal(0.2, 0.5), lambda x: dist.LogNormal(0.1 * x, 0.7)),
        (dist.Beta(2.0, 3.0), lambda x: dist.Beta(1.5 + 0 * x, 2.0)),
        (dist.Gamma(2.0, 1.5), lambda x: dist.Gamma(1.8 + 0 * x, 1.3)),
        (dist.Uniform(-1.0, 2.0), lambda x: dist.Uniform(-1.0 - 0 * x, 2.0)),
    ],
    ids=["LogNormal", "Beta", "Gamma", "Uniform"],
)
def test_constrained_latents(prior, guide):
    """S12: log p(x) = log int p(x given z) p(z) dz by one-dimensional quadrature over the quantiles of the prior."""
    from scipy import integrate, stats

    pair = pv.Pair(*_programs(prior, guide))
    x = torch.tensor([-0.5, 0.4, 1.7])
    ll = estimate(pair, x, 40_000, num_draws=0)
    lower, upper = {dist.Beta: (0.0, 1.0), dist.Uniform: (-1.0, 2.0)}.get(type(prior), (0.0, 60.0))

    def density(z, value):
        return math.exp(float(prior.log_prob(torch.tensor(z)))) * stats.norm.pdf(value, z, 0.5)

    exact = [math.log(integrate.quad(density, lower, upper, args=(float(v),), limit=200, points=[1.0])[0]) for v in x]
    assert np.all(np.abs(ll.value - exact) <= 5.91 * ll.stderr + 1e-8)
    assert ll.stderr.max() < 0.02


def _programs(prior, guide):
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def recognise(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", guide(x))

    return model, recognise


@pytest.mark.usefixtures("float64")
def test_discrete_observations_and_a_continuous_latent_of_beta_bernoulli():
    """S4: the evidence of a Beta-Bernoulli datum of 6 tosses is a ratio of Beta functions."""
    tosses = torch.bernoulli(torch.full((5, 6), 0.6))

    def model(x):
        with pyro.plate("data", x.shape[0]):
            p = pyro.sample("p", dist.Beta(2.0, 1.0))
            pyro.sample("x", dist.Bernoulli(p.unsqueeze(-1).expand(*p.shape, 6)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("p", dist.Beta(2.0 + 0.9 * x.sum(-1), 1.0 + 0.9 * (6 - x.sum(-1))))

    heads = tosses.sum(-1)
    exact = torch.lgamma(2 + heads) + torch.lgamma(7 - heads) - math.lgamma(9) + math.lgamma(3)
    ll = estimate(pv.Pair(model, guide), tosses, 20_000)
    assert np.all(np.abs(ll.value - exact.numpy()) <= 5.91 * ll.stderr)


def grid_evidence(model, x, size=400, reach=7.0):
    """log p(x) of a pair with a two-dimensional standard normal latent, by quadrature on a grid."""
    line = torch.linspace(-reach, reach, size)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        log_prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
        log_lik = dist.Bernoulli(logits=model.decoder(z)).to_event(1).log_prob(x.unsqueeze(1))
    return torch.logsumexp(log_lik + log_prior, 1) + 2 * math.log(float(line[1] - line[0]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("full_covariance", [False, True])
def test_a_real_neural_vae_against_quadrature(full_covariance):
    """S16: a trained MLP VAE with two latents; exact log p on a 400 x 400 grid."""
    x = binary_rows(200, seed=4)
    vae = ModuleVAE(full_covariance)
    pv.fit(vae, x, epochs=60, learning_rate=1e-2, progress=False)
    exact = grid_evidence(vae, x[:50]).numpy()
    ll = estimate(vae, x[:50], 20_000, num_draws=0)
    assert np.all(np.abs(ll.value - exact) <= 5.91 * ll.stderr + 1e-6)
    assert ll.stderr.max() < 0.02
    assert np.all(ll.elbo <= exact + 5.91 * 0.02)


def test_memory_and_chunks_change_no_number(monkeypatch):
    """S14: noise belongs to fixed blocks; the decoder may be cut anywhere."""
    x, pair = binary_rows(20), HierarchicalVAE()
    whole = estimate(pair, x, 60)
    for chunk, memory in ((7, 1 << 28), (100_000, 1 << 28), (2048, 1), (2048, 20_000)):
        monkeypatch.setattr(scoring, "_CHUNK_ROWS", chunk)
        cut = estimate(pair, x, 60, memory=memory)
        np.testing.assert_allclose(whole.value, cut.value, rtol=1e-5)
        np.testing.assert_allclose(whole.stderr, cut.stderr, rtol=1e-3)
        assert whole.posterior.keys() == cut.posterior.keys()


@pytest.mark.parametrize("looped", [False, True])
def test_memory_bounds_what_a_run_of_the_model_makes(monkeypatch, looped):
    """No run of the model makes tensors of more bytes than it was given, but for a single row and particle."""
    x, pair, made = binary_rows(64), ModuleVAE(), []

    def counting(*args):
        with scoring._Allocations() as allocations:
            result = evaluate_model(*args)
        made.append(allocations.bytes)
        return result

    if looped:
        monkeypatch.setattr(likelihood, "check", lambda *args, **_: _looped(pair, x))
    monkeypatch.setattr(scoring, "evaluate_model", counting)
    estimate(pair, x, 50)
    free, one = max(made), made[0]
    made.clear()
    estimate(pair, x, 50, memory=10 * one)
    assert max(made) <= 10 * one < free


def _looped(pair, x):
    report = pv.check(pair, x)
    return dataclasses.replace(report, layout=report.layout._replace(vectorized=False))


def test_exactly_k_draws_and_one_encoding():
    """Whatever K and the blocks: K decodes for each datum, and the encoder sees each datum once."""
    seen = {"encoder": 0, "decoder": 0}
    pair = ModuleVAE()

    def count(name):
        return lambda module, inputs, output: seen.__setitem__(name, seen[name] + inputs[0].shape[:-1].numel())

    pair.encoder.register_forward_hook(count("encoder"))
    pair.decoder.register_forward_hook(count("decoder"))
    x = binary_rows(37)
    counts = []
    for k in (1, 300, 1300):
        seen.update(encoder=0, decoder=0)
        estimate(pair, x, k)
        counts.append(dict(seen))
    # What the checks and the memory probe cost does not depend on K.
    decoded = [c["decoder"] for c in counts]
    assert decoded[2] - decoded[1] == 37 * 1000
    assert counts[0]["encoder"] == counts[1]["encoder"] == counts[2]["encoder"]


def test_k_is_divided_over_blocks(monkeypatch):
    """Blocks of particles of every size add up to K: the stream refuses any other number."""
    monkeypatch.setattr(likelihood, "_BLOCK_SCALARS", 100)
    x = binary_rows(20)
    for k in (1, 2, 3, 50):
        assert estimate(ModuleVAE(), x, k).num_samples == k


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
    good = estimate(small_ppca(), x, 500)
    assert "do not trust" not in str(good)
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


@pytest.mark.usefixtures("float64")
def test_every_block_has_noise_of_its_own(monkeypatch):
    """Blocks of one draw for 256 equal rows: no draw is used twice, neither for another draw nor for other rows."""
    monkeypatch.setattr(likelihood, "_block_shape", lambda *_: (256, 1))
    ll = estimate(ModuleVAE(), binary_rows(1).repeat(512, 1), 2)
    assert (ll.ess < 2).all()
    assert (ll.value[:256] != ll.value[256:]).all()


@pytest.mark.usefixtures("float64")
def test_posterior_draws_do_not_depend_on_the_blocks(monkeypatch):
    """Draws kept from blocks of one sample are resampled over all of them: unit variance, not that of the guide."""
    monkeypatch.setattr(likelihood, "_block_shape", lambda *_: (200, 1))
    ppca = small_ppca()
    x = ppca.sample(200, seed=3)
    ll = estimate(scaled_guide(ppca, 1.4), x, 200, num_draws=50)
    posterior = ppca.posterior(x)
    centred = (torch.as_tensor(ll.posterior["z"]) - posterior.loc).unsqueeze(-1)
    z = torch.linalg.solve_triangular(posterior.scale_tril, centred, upper=False)
    assert float(z.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(z.std()) == pytest.approx(1.0, abs=0.05)


def test_errors_of_the_mean_add_in_squares():
    ll = estimate(ModuleVAE(), binary_rows(7), 30)
    assert ll.mean == pytest.approx(ll.value.sum() / 7)
    assert ll.mean_stderr == pytest.approx(math.sqrt(sum(error**2 for error in ll.stderr)) / 7)
    assert ll.population_stderr == pytest.approx(math.sqrt(sum((v - ll.mean) ** 2 for v in ll.value) / 6 / 7))


@pytest.mark.usefixtures("float64")
def test_a_stated_size_of_the_data_set_moves_no_evaluation():
    """R7: plate("data", 400) around the rows of a batch scales a training, never a weight."""
    ppca = small_ppca()

    def of_four_hundred(program):
        def scaled(x):
            with pyro.plate("data", 400, subsample=torch.arange(x.shape[0])):
                program(x)

        return scaled

    def model(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ ppca.loading.T + ppca.bias, ppca.scale).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", ppca.posterior(x))

    x = ppca.sample(9, seed=2)
    ll = estimate(pv.Pair(of_four_hundred(model), of_four_hundred(guide)), x, 20)
    np.testing.assert_allclose(ll.value, ppca.log_prob(x).numpy(), rtol=1e-10)
