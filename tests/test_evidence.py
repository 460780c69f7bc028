"""The exact evidence: against closed forms, scipy's quadrature and sums by hand."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats

import ppl_vae as pv
from tests.pairs import (
    DiscreteVAE,
    ModuleVAE,
    binary_rows,
    count_and_normal,
    evidence_of_a_product,
    mixture_and_normal,
    scaled_guide,
    small_ppca,
)
from tests.statistical import assert_close, assert_estimates, assert_mean, assert_within
from tests.training import fresh


def evidence(pair, x):
    return pv.log_evidence(pair, x, progress=False)


@pytest.mark.parametrize("latent", [1, 2])
def test_quadrature_of_ppca(latent: int):
    ppca = small_ppca(5, latent)
    x = torch.cat([ppca.sample(20), 6 * torch.ones(1, 5, dtype=torch.float64)])  # the last datum is far out
    assert_within(
        evidence(scaled_guide(ppca, 1.3), x), ppca.log_prob(x), absolute=1e-6, reason="two grids agree to 1e-4 at least"
    )


def test_quadrature_of_a_narrow_posterior():
    loading = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    ppca = pv.PPCA(loading, torch.zeros(2), 1e-3)
    x = ppca.sample(5)
    assert_within(evidence(ppca, x), ppca.log_prob(x), absolute=1e-4, reason="the tolerance of quadrature")


def test_constrained_latents_of_two_sites():
    x = torch.tensor([0.2, 0.9], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(torch.full((len(x),), 2.0, dtype=torch.float64), 1.5))
            share = pyro.sample("share", dist.Beta(torch.full((len(x),), 2.0, dtype=torch.float64), 3.0))
            pyro.sample("x", dist.Normal(rate * share, 0.3), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("share", dist.Beta(torch.full((len(x),), 1.5, dtype=torch.float64), 1.5))
            pyro.sample("rate", dist.Gamma(torch.full((len(x),), 2.5, dtype=torch.float64), 1.0))

    exact = np.log([evidence_of_a_product(float(v)) for v in x])
    assert_within(evidence(pv.Pair(model, guide), x), exact, absolute=1e-5, reason="scipy's own tolerance")


def test_a_neural_vae_agrees_with_importance_sampling():
    """Two latents, a network as decoder."""
    pair, x = fresh(3), binary_rows(8)
    ll = pv.log_likelihood(pair, x, 20_000, progress=False)
    assert ll.trusted.all()
    assert_estimates(ll.value, ll.stderr, evidence(pair, x), effect=0.2)


def test_discrete_latents_are_summed():
    pair, x = fresh(make=DiscreteVAE), binary_rows(6)
    with torch.no_grad():
        logits = pair.decoder(torch.eye(3))
        log_joint = torch.tensor([0.0, 0.3, -0.2]).log_softmax(0) + dist.Bernoulli(logits=logits).to_event(1).log_prob(
            x[:, None]
        )
    assert_close(evidence(pair, x), log_joint.logsumexp(1), torch.float32)


def test_a_masked_latent_counts_once():
    """Rows that are masked do not depend on z: each of its three values says the same."""
    pair = fresh(make=DiscreteVAE)

    def model(x):
        keep = x[:, 0] > 0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=torch.tensor([0.0, 0.3, -0.2])).mask(keep))
            seen = torch.where(keep[:, None], torch.nn.functional.one_hot(z, 3).float(), 0.0)
            pyro.sample("x", dist.Bernoulli(logits=pair.decoder(seen)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=pair.encoder(x)).mask(x[:, 0] > 0))

    x = binary_rows(8)
    # Two samples, fewer than there are values, are no sum but weights.
    ll = pv.log_likelihood(pv.Pair(model, guide), x.repeat(500, 1), 2, progress=False)
    found = evidence(pv.Pair(model, guide), x)
    with torch.no_grad():
        alone = dist.Bernoulli(logits=pair.decoder.bias).to_event(1).log_prob(x)
    off = (x[:, 0] == 0).numpy()
    assert off.any()
    assert not off.all()
    assert_close(found[off], alone.numpy()[off], torch.float32)
    assert_mean(np.exp(ll.value.reshape(500, 8) - found)[:, ~off], 1.0, effect=0.3)


def test_too_many_latents_are_refused():
    ppca = small_ppca(5, 3)
    with pytest.raises(pv.PairError, match=r"site 'z': .*at most 2 .*found 3: use annealed_importance_sampling"):
        evidence(ppca, ppca.sample(2))


def of_normals(make, x_scale=1.0, prior=None):
    """z from a prior, N(0, 1) unless given, x ~ N(make(z), x_scale); the guide is asked for nothing but its site."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0) if prior is None else prior)
            pyro.sample("x", dist.Normal(make(z), x_scale), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))

    return pv.Pair(model, guide)


QUADRATURE = "1e-4 is promised, a smooth density gives far more"


def test_discrete_latents_beside_a_continuous_one_are_summed():
    x = torch.tensor([-1.0, 0.3, 4.0], dtype=torch.float64)
    pair, exact = mixture_and_normal(x)
    assert_within(evidence(pair, x), exact, absolute=1e-8, reason=QUADRATURE)


@pytest.mark.parametrize(("rare", "far", "width"), [(1e-3, 30.0, 30.0), (1e-6, -1000.0, 1000.0), (1e-6, 2e4, 1.0)])
def test_a_rare_value_of_a_discrete_latent_is_not_lost(rare: float, far: float, width: float):
    """No draw of the prior has it, nor of the guide in the last case, and data near it have nothing else: they were 6
    to 37 nats too low."""
    x = torch.tensor([0.0, far - 1.0, far, far + 0.7], dtype=torch.float64)
    share = torch.tensor(rare, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            fault = pyro.sample("fault", dist.Bernoulli(share))
            z = pyro.sample("z", dist.Normal(far * fault, 1.0))
            pyro.sample("x", dist.StudentT(3.0, z, 0.1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("fault", dist.Bernoulli(x.new_full((len(x),), 0.5)))
            pyro.sample("z", dist.Normal(x.new_zeros(len(x)), width))

    def by_scipy(value: float, at: float) -> float:
        joint = lambda z: stats.norm.pdf(z, at) * stats.t.pdf(value, 3, z, 0.1)  # noqa: E731
        points = [at, value] if abs(value - at) < 8 else None
        return integrate.quad(joint, at - 8, at + 8, epsabs=0, epsrel=1e-10, points=points, limit=200)[0]

    exact = [np.log((1 - rare) * by_scipy(float(v), 0.0) + rare * by_scipy(float(v), far)) for v in x]
    assert_within(evidence(pv.Pair(model, guide), x), np.array(exact), absolute=1e-7, reason=QUADRATURE)


@pytest.mark.parametrize("scale", [0.1, 0.001])
def test_no_mode_is_lost(scale: float):
    """x ~ N(z^2, s) has two modes, each s / (2 sqrt(x)) wide; log p(x) by scipy around one of them."""
    x = torch.tensor([0.5, 1.7, 2.3, 4.0], dtype=torch.float64)

    def by_scipy(value):
        root = np.sqrt(value)
        width = 12 * scale / (2 * root)
        joint = lambda z: stats.norm.pdf(z) * stats.norm.pdf(value, z * z, scale)  # noqa: E731
        return np.log(2 * integrate.quad(joint, max(root - width, 0), root + width, epsabs=0, epsrel=1e-10)[0])

    exact = np.array([by_scipy(float(v)) for v in x])
    assert_within(evidence(of_normals(torch.square, scale), x), exact, absolute=1e-8, reason=QUADRATURE)


def test_no_mode_of_two_numbers_is_lost():
    """Four modes: the square of what one number gives."""
    x = torch.tensor([0.7, 2.0], dtype=torch.float64)
    alone = evidence(of_normals(torch.square, 0.05), x)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), 0.05).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))

    found = evidence(pv.Pair(model, guide), x[None])
    assert_within(found, alone.sum(keepdims=True), absolute=1e-8, reason=QUADRATURE)


def test_a_datum_far_out_keeps_all_of_its_posterior():
    x = torch.tensor([6.0, 12.0, 40.0], dtype=torch.float64)
    exact = stats.norm.logpdf(x, scale=np.sqrt(2))
    assert_within(evidence(of_normals(lambda z: z), x), exact, absolute=1e-8, reason=QUADRATURE)


@pytest.mark.parametrize("df", [1.0, 1.5, 3.0])
def test_heavy_tails_are_not_cut(df: float):
    """A prior symmetric around 0 and a logistic likelihood: p(1) = 1/2, half of it far out."""
    prior = dist.StudentT(torch.tensor(df, dtype=torch.float64), 0.0, 1.0)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior.expand([len(x)]))
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior.expand([len(x)]))

    found = evidence(pv.Pair(model, guide), torch.ones(1, dtype=torch.float64))
    assert_within(found, np.log([0.5]), absolute=1e-8, reason=QUADRATURE)


def test_jumps_of_a_density_are_found():
    """x ~ N(floor(5 z), 1/20): only 1/5 <= z < 2/5 gives 1."""
    x = torch.tensor([1.0], dtype=torch.float64)
    exact = np.log(stats.norm.cdf(0.4) - stats.norm.cdf(0.2)) + stats.norm.logpdf(1, 1, 0.05)
    found = evidence(of_normals(lambda z: torch.floor(5 * z), 0.05), x)
    assert_within(found, [exact], absolute=1e-4, reason="the tolerance of quadrature")


def test_a_density_too_rough_for_any_grid_is_an_error_with_its_row():
    with pytest.raises(pv.EstimateError, match=r"row 0: expected two rules that agree to 0.0001 nats"):
        evidence(of_normals(lambda z: 1e6 * torch.sin(1e6 * z)), torch.tensor([1.0, 2.0]).double())


def test_a_density_that_does_not_end_is_an_error_with_its_row():
    prior = dist.StudentT(torch.tensor(0.1), 0.0, 1.0)
    with pytest.raises(pv.EstimateError, match=r"row 0: expected p.x, z. to fall off on all sides"):
        evidence(of_normals(lambda z: z * 0, prior=prior), torch.tensor([1.0, 2.0]))


def test_a_density_that_is_no_number_is_an_error_with_its_row():
    with pytest.raises(
        pv.EstimateError,
        match=r"row 0: expected a log-density.*found nan at -[78].*site 'x' of the model is none",
    ):
        evidence(of_normals(lambda z: torch.log(z + 7)), torch.tensor([1.0, 2.0]))


def of_bits(num_bits: int, log_density: float = 0.0) -> pv.Pair:
    """So many fair coins, and x ~ N(sum of them, 1); another density where all are heads."""

    def model(x):
        with pyro.plate("data", len(x)):
            total = sum(pyro.sample(f"z{i}", dist.Bernoulli(x.new_tensor(0.5))) for i in range(num_bits))
            pyro.sample("x", dist.Normal(total, 1.0), obs=x)
            rule = dist.Unit(torch.where(total == num_bits, log_density, 0.0), validate_args=False)
            pyro.sample("rule", rule, obs=rule.sample())

    def guide(x):
        with pyro.plate("data", len(x)):
            for i in range(num_bits):
                pyro.sample(f"z{i}", dist.Bernoulli(x.new_full((len(x),), 0.5)))

    return pv.Pair(model, guide)


def test_many_values_are_summed_over_few_data_at_a_time():
    x = torch.tensor([1.0, 5.0, 9.0], dtype=torch.float64)
    count = np.arange(17)
    exact = [np.log((stats.binom.pmf(count, 16, 0.5) * stats.norm.pdf(v, count, 1)).sum()) for v in x.numpy()]
    assert_close(evidence(of_bits(16), x), np.array(exact))


def test_values_beyond_any_sum_are_refused_by_name_before_they_fill_the_memory():
    with pytest.raises(pv.PairError, match=r"site 'z0': expected at most 1,048,576 joint.*67,108,864: use log_lik"):
        evidence(of_bits(26), torch.zeros(2))


def test_a_density_that_is_no_number_at_some_value_is_an_error_with_its_site():
    with pytest.raises(pv.EstimateError, match=r"row 0: .*found nan: the density of site 'rule' of the model is none"):
        evidence(of_bits(6, float("nan")), torch.zeros(2))


def test_latents_of_infinitely_many_values_are_refused_by_name():
    with pytest.raises(pv.PairError, match=r"site 'z': expected a continuous latent, or one of.*use log_likelihood"):
        evidence(count_and_normal(), torch.randn(3))


def test_every_parameter_stays():
    pair = fresh(make=ModuleVAE)
    before = [p.detach().clone() for p in pair.parameters()]
    state = torch.get_rng_state()
    evidence(pair, binary_rows(3))
    assert all(torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())


# Estimates against it


def test_an_estimate_is_set_against_the_exact_answer():
    ppca = small_ppca()
    x = ppca.sample(400)
    ll = pv.log_likelihood(scaled_guide(ppca, 1.4), x, 500, progress=False)
    exact = ppca.log_prob(x).numpy()
    found = pv.agreement(ll, exact)
    assert_close(found.error, ll.value - exact)
    assert abs(found.mean_error) < 5.91 * found.mean_stderr + 1e-3  # the bias is chi^2 / 2K
    assert 0.9 < found.coverage < 1.0
    assert "95 % intervals hold it for 9" in str(found)
    low = pv.agreement(ll, exact + 1.0)
    assert low.coverage == 0.0
    assert "off by -1.0" in str(low)


def test_coverage_is_that_of_the_intervals_which_an_estimate_has():
    """Student's t where chains were annealed; leaning where weights do."""
    zero, error, many = np.zeros(4), np.full(4, 0.1), np.full(4, 16.0)
    ais = pv.AnnealedLogLikelihood(zero, error, many, zero, many, zero, error, many, pv.Annealing(), 1, 0)
    exact = np.array([0.0, 0.19, 0.2, -0.23])  # t of 15 degrees is 2.13: log(1 - 0.213) to log(1 + 0.213)
    assert pv.agreement(ais, exact).held.tolist() == [True, True, False, True]
    words = np.full(4, "reliable")
    guide = np.full(4, "guide")
    leaning = pv.EscalatedLogLikelihood(
        zero, error, zero + 0.3, zero, zero, zero > 0, zero > 0, words, guide, (), 16, 1, 0
    )
    assert pv.agreement(leaning, exact).held.tolist() == [True, True, True, False]


def test_an_estimate_of_other_data_is_refused():
    ppca = small_ppca()
    ll = pv.log_likelihood(ppca, ppca.sample(3), 10, progress=False)
    with pytest.raises(pv.DataError, match=r"exact: expected log p\(x\) of each datum, \(3,\), found shape \(4,\)"):
        pv.agreement(ll, np.zeros(4))


def test_an_estimate_is_not_the_exact_answer_and_one_that_a_model_tells_is():
    ppca = small_ppca()
    x = ppca.sample(3)
    ll = pv.log_likelihood(ppca, x, 10, progress=False)
    with pytest.raises(pv.DataError, match=r"log_evidence, or an ExactLogLikelihood, found LogLikelihood, an estimate"):
        pv.agreement(ll, ll)
    told = pv.ExactLogLikelihood.of(ppca.log_prob(x), num_dimensions=x.shape[1])
    assert pv.agreement(ll, told).error.tolist() == pv.agreement(ll, ppca.log_prob(x).numpy()).error.tolist()
