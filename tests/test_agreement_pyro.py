"""Our objectives against Pyro's own on the same noise: values and gradients."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from scipy import integrate
from torch import nn

import ppl_vae as pv
from ppl_vae.checking import check
from ppl_vae.pair import as_pair
from ppl_vae.rng import key
from ppl_vae.terms import run
from tests.pairs import DiscreteVAE, HierarchicalVAE, ModuleVAE, binary_rows, small_ppca
from tests.statistical import assert_close, assert_mean


@contextmanager
def same_noise(seed=11):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def ours(pair, x, objective, seed=11):
    pair = as_pair(pair)
    layout = check(pair, x).layout
    with same_noise(seed):
        values = objective.evaluate(pair, (x,), layout, objective.beta)
    parameters = [p for p in pair.parameters() if p.requires_grad]
    return float(values.objective), torch.autograd.grad(
        values.loss, parameters, allow_unused=True
    ) if parameters else ()


def of_pyro(pair, x, elbo):
    pair = as_pair(pair)
    with same_noise(), pair.scope():
        loss = elbo.differentiable_loss(pair.model, pair.guide, x) / len(x)
    parameters = [p for p in pair.parameters() if p.requires_grad]
    return -float(loss.detach()), torch.autograd.grad(loss, parameters, allow_unused=True)


def assert_same(left, right):
    """Values and the gradient of every parameter; one that only one side knows of must be zero."""
    assert_close(left[0], right[0])
    for a, b in zip(left[1], right[1], strict=True):
        known = b if a is None else a
        if known is not None:
            zero = torch.zeros_like(known)
            assert_close(zero if a is None else a, zero if b is None else b, scale=1.0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("make", [ModuleVAE, HierarchicalVAE, lambda: ModuleVAE(full_covariance=True)])
def test_elbo_is_trace_elbo(make):
    x = binary_rows()
    pair = make()
    assert_same(ours(pair, x, pv.ELBO(kl="sampled")), of_pyro(pair, x, Trace_ELBO()))


@pytest.mark.usefixtures("float64")
def test_elbo_with_particles_is_vectorised_trace_elbo():
    x, pair = binary_rows(), ModuleVAE()
    pyros = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    assert_same(ours(pair, x, pv.ELBO(num_particles=4, kl="sampled")), of_pyro(pair, x, pyros))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("full_covariance", [False, True])
def test_analytic_kl_is_trace_mean_field_elbo(full_covariance):
    """Pyro knows the full-covariance divergence only since `ppl_vae.kl` registered it."""
    x, pair = binary_rows(), ModuleVAE(full_covariance)
    assert_same(ours(pair, x, pv.ELBO(kl="analytic")), of_pyro(pair, x, TraceMeanField_ELBO()))


@pytest.mark.usefixtures("float64")
def test_score_function_without_baseline_is_trace_elbo():
    x, pair = binary_rows(), DiscreteVAE()
    assert_same(ours(pair, x, pv.ELBO(kl="sampled", baseline="none")), of_pyro(pair, x, Trace_ELBO()))


@pytest.mark.usefixtures("float64")
def test_enumerated_elbo_is_trace_enum_elbo():
    x, pair = binary_rows(), DiscreteVAE()
    enumerated = pyro.infer.config_enumerate(pair.guide, "parallel")
    by_name = []
    for side, program, objective in (
        (ours, pair, pv.ELBO(discrete="enumerate")),
        (of_pyro, pv.Pair(pair.model, enumerated), TraceEnum_ELBO(max_plate_nesting=1)),
    ):
        value, gradients = side(program, x, objective)
        owners = {id(p): name for name, p in pair.named_parameters()}
        names = [owners[id(p)] for p in as_pair(program).parameters()]
        by_name.append((value, dict(zip(names, gradients, strict=True))))
    (left, left_gradients), (right, right_gradients) = by_name
    assert left_gradients.keys() == right_gradients.keys() == dict(pair.named_parameters()).keys()
    names = sorted(left_gradients)
    assert_same((left, [left_gradients[n] for n in names]), (right, [right_gradients[n] for n in names]))


@pytest.mark.usefixtures("float64")
def test_iwae_is_renyi_elbo_where_pyro_is_right():
    x, pair = binary_rows(), ModuleVAE()
    pyros = RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    value, gradient = ours(pair, x, pv.IWAE(num_particles=5))
    with same_noise(), pyro.get_param_store().scope():
        for p in pair.parameters():
            p.grad = None
        loss = pyros.loss_and_grads(pair.model, pair.guide, x) / len(x)
    assert_same((value, gradient), (-loss, [p.grad / len(x) for p in as_pair(pair).parameters()]))


def mean_bound_of_two(s):
    """E L_2 - log p under the posterior widened by s in two dimensions.

    A log-weight is log p + log s^2 - c u, with c = s^2 - 1 and u exponential; of two such u the smaller has mean 1/2,
    and their distance is exponential again.
    """
    c = s**2 - 1
    apart, _ = integrate.quad(lambda t: math.exp(-t) * math.log((1 + math.exp(-c * t)) / 2), 0, math.inf)
    return 2 * math.log(s) - c / 2 + apart


@pytest.mark.usefixtures("float64")
def test_iwae_is_right_where_renyi_elbo_is_wrong(seed):
    """R7: under plate("data", N, subsample=...) the bound is the exact E L_2; Pyro's exceeds log p itself."""
    ppca, s, total = small_ppca(), 1.5, 20_000
    x = ppca.sample(2000, seed=seed)

    def programs(plate):
        def model(x):
            with plate(x):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                mean = z @ ppca.loading.T + ppca.bias
                pyro.sample("x", dist.Normal(mean, ppca.scale).to_event(1), obs=x)

        def guide(x):
            q = ppca.posterior(x)
            with plate(x):
                pyro.sample("z", dist.MultivariateNormal(q.loc, scale_tril=s * q.scale_tril))

        return pv.Pair(model, guide)

    whole = programs(lambda x: pyro.plate("data", x.shape[0]))
    subsampled = programs(lambda x: pyro.plate("data", total, subsample=torch.arange(x.shape[0])))
    log_p = float(ppca.log_prob(x).mean())
    bounds = [ours(subsampled, x, pv.IWAE(2), key(seed, i))[0] for i in range(20)]
    assert_mean(bounds, log_p + mean_bound_of_two(s), effect=0.05)
    assert_close(ours(whole, x, pv.IWAE(2), key(seed, 0))[0], bounds[0])
    pyros = RenyiELBO(alpha=0, num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    with same_noise(key(seed, 0)):
        of_renyi = -pyros.loss(subsampled.model, subsampled.guide, x) / total
    assert of_renyi > log_p + 0.05


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_scale_latents_gives_plain_svi_the_gradients_of_beta(beta):
    x, pair = binary_rows(), ModuleVAE()
    _, gradient = ours(pair, x, pv.ELBO(beta=beta, kl="sampled"))
    scaled = pv.Pair(pv.scale_latents(pair.model, beta), pv.scale_latents(pair.guide, beta))
    _, plain = of_pyro(scaled, x, Trace_ELBO())
    for a, b in zip(gradient, plain, strict=True):
        assert_close(a, b, scale=1.0)


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        TraceEnum_ELBO(max_plate_nesting=1),
        RenyiELBO(alpha=0, num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        pyro.infer.TraceGraph_ELBO(),
    ],
    ids=lambda elbo: type(elbo).__name__,
)
def test_from_pyro_trains_any_pair_with_any_elbo(elbo):
    x = binary_rows(64)
    pair = ModuleVAE()
    before = [p.detach().clone() for p in pair.parameters()]
    result = pv.fit(pair, x, objective=pv.from_pyro(elbo), epochs=30, batch_size=32, learning_rate=1e-2, progress=False)
    assert result.history[-1].objective > result.history[0].objective + 0.05
    assert all(not torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))


def test_from_pyro_sums_latents_out_of_the_model():
    """The guide is empty: only TraceEnum can train this pair, and our ELBO says so."""
    x = binary_rows(64)
    network = nn.Linear(3, 5)

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Categorical(logits=torch.zeros(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Bernoulli(logits=network.weight.T[z] + network.bias).to_event(1), obs=x)

    pair = pv.Pair(model, lambda x: None)
    objective = pv.from_pyro(TraceEnum_ELBO(max_plate_nesting=1))
    result = pv.fit(pair, x, objective=objective, epochs=20, learning_rate=1e-2, progress=False)
    assert result.history[-1].elbo > result.history[0].elbo
    with pytest.raises(pv.PairError, match="'z'"):
        pv.fit(pair, x, epochs=1, progress=False)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("alpha", [-1.0, 0.3, 2.0])
def test_renyi_is_renyi_elbo_of_the_same_order(alpha):
    x, pair = binary_rows(), ModuleVAE()
    pyros = RenyiELBO(alpha=alpha, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    value, _ = ours(pair, x, pv.Renyi(alpha, num_particles=5))
    with same_noise(), pyro.get_param_store().scope():
        assert_close(value, -pyros.loss(pair.model, pair.guide, x) / len(x))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("kl", "elbo"), [("sampled", Trace_ELBO()), ("analytic", TraceMeanField_ELBO())])
def test_masked_sites_count_for_nothing(kl, elbo):
    class Masked(ModuleVAE):
        def model(self, x):
            with pyro.poutine.mask(mask=x[:, 0] > 0):
                super().model(x)

        def guide(self, x):
            with pyro.poutine.mask(mask=x[:, 0] > 0):
                super().guide(x)

    x, pair = binary_rows(), as_pair(Masked())
    assert_same(ours(pair, x, pv.ELBO(kl=kl)), of_pyro(pair, x, elbo))
    terms = run(pair, (x,), 1, check(pair, x).layout)
    assert 0 < x[:, 0].sum() < len(x)
    assert torch.equal(terms.log_weight[0] == 0.0, x[:, 0] == 0)


@pytest.mark.usefixtures("float64")
def test_latents_outside_the_data_plate_are_those_of_trace_elbo():
    """Six of 24 rows: the divergence of the global latent is shared by all 24."""
    x, total = torch.randn(6), 24

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.3, 2.0))
        with pyro.plate("data", total, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        loc, width = pyro.param("m", torch.tensor(0.4)), pyro.param("s", torch.tensor(-0.2))
        pyro.sample("loc", dist.Normal(loc, width.exp()))

    pair = pv.Pair(model, guide)
    pair.prepare(x)
    value, gradient = ours(pair, x, pv.ELBO(kl="sampled"))
    of_sum, of_sum_gradient = of_pyro(pair, x, Trace_ELBO())
    share = len(x) / total
    assert_same((value, gradient), (share * of_sum, tuple(share * g for g in of_sum_gradient)))


@pytest.mark.usefixtures("float64")
def test_from_pyro_is_pyros_objective_per_datum():
    x, pair = binary_rows(), ModuleVAE()
    assert_same(ours(pair, x, pv.from_pyro(Trace_ELBO())), of_pyro(pair, x, Trace_ELBO()))
    assert_same(ours(pair, x, pv.from_pyro(Trace_ELBO())), ours(pair, x, pv.ELBO(kl="sampled")))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Trace_ELBO, r"found the class Trace_ELBO: call it"),
        (pyro.infer.ReweightedWakeSleep, "ReweightedWakeSleep cannot train in fit"),
        (pyro.infer.ReweightedWakeSleep(), "ReweightedWakeSleep cannot train in fit"),
        (3, r"such as Trace_ELBO\(\), found 3"),
    ],
    ids=["a class", "a refused class", "a refused ELBO", "no ELBO"],
)
def test_what_from_pyro_cannot_take(given, said):
    with pytest.raises(ValueError, match=said):
        pv.from_pyro(given)
