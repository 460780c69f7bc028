"""Objectives against closed forms, finite differences and each other: values, gradients, variances."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DiscreteVAE, HierarchicalVAE, ModuleVAE, binary_rows, chi_square, scaled_guide, small_ppca
from pyro.poutine.messenger import Messenger
from statistical import Z_MAX, assert_mean

import ppl_vae as pv
from ppl_vae import schedules
from ppl_vae.pair import as_pair
from ppl_vae.rng import seeded

GRADIENTS = [
    pv.ELBO(),
    pv.ELBO(kl="sampled"),
    pv.ELBO(num_particles=3),
    pv.ELBO(beta=0.3),
    pv.ELBO(free_bits=2.0),
    pv.IWAE(num_particles=4),
    pv.Renyi(0.5, num_particles=4),
]


def evaluate(pair, x, objective, seed=0):
    pair = as_pair(pair)
    layout = pv.check(pair, x).layout
    with seeded(seed):
        return objective.evaluate(pair, (x,), layout, objective.beta)


def gradient(pair, x, objective, layout, seed):
    with seeded(seed):
        loss = objective.evaluate(as_pair(pair), (x,), layout, objective.beta).loss
    grads = torch.autograd.grad(loss, list(pair.parameters()), allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(pair.parameters(), grads, strict=True)
        ]
    )


def many_gradients(pair, x, objective, n):
    layout = pv.check(pair, x).layout
    return torch.stack([gradient(pair, x, objective, layout, seed) for seed in range(n)])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("objective", GRADIENTS, ids=repr)
@pytest.mark.parametrize("make", [ModuleVAE, HierarchicalVAE])
def test_pathwise_gradients_are_finite_differences_of_the_value(objective, make):
    """S8a: the same noise on both sides, central differences, 1e-6."""
    x, pair = binary_rows(), make()
    layout = pv.check(pair, x).layout
    parameters = list(pair.parameters())
    direction = [torch.randn_like(p) for p in parameters]
    slope = -float(gradient(pair, x, objective, layout, 3) @ torch.cat([d.flatten() for d in direction]))
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=sign * 1e-5)
            values.append(float(evaluate(pair, x, objective, 3).objective))
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=sign * 1e-5)
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("objective", "reference", "make"),
    [
        (pv.ELBO(gradient="stl"), pv.ELBO(), ModuleVAE),
        (pv.ELBO(gradient="stl", num_particles=2), pv.ELBO(), HierarchicalVAE),
        (pv.ELBO(gradient="score", num_particles=8), pv.ELBO(), ModuleVAE),
        (pv.ELBO(gradient="score", baseline="none", num_particles=8), pv.ELBO(), ModuleVAE),
        (pv.ELBO(gradient="score", baseline="batch", kl="sampled"), pv.ELBO(), ModuleVAE),
        (pv.ELBO(), pv.ELBO(discrete="enumerate"), DiscreteVAE),
        (pv.ELBO(num_particles=4), pv.ELBO(discrete="enumerate"), DiscreteVAE),
        (pv.ELBO(kl="sampled", baseline="none"), pv.ELBO(discrete="enumerate"), DiscreteVAE),
        (pv.IWAE(num_particles=3, gradient="dreg"), pv.IWAE(num_particles=3), ModuleVAE),
        (pv.IWAE(num_particles=3, gradient="dreg"), pv.IWAE(num_particles=3), HierarchicalVAE),
        (pv.IWAE(num_particles=3, gradient="score"), pv.IWAE(num_particles=3), ModuleVAE),
    ],
    ids=lambda value: repr(value),
)
def test_gradient_estimators_agree_in_mean(objective, reference, make):
    """S8b: difference of independent means, per coordinate, at 5.91 standard errors."""
    torch.manual_seed(1)
    x, pair = binary_rows(4).repeat(30, 1), make()
    n = 100
    left, right = many_gradients(pair, x, objective, n), many_gradients(pair, x, reference, n)
    error = (left.var(0) / n + right.var(0) / n).sqrt()
    z = (left.mean(0) - right.mean(0)) / error.clamp_min(1e-12)
    assert float(z.abs().max()) <= Z_MAX
    signal = right.mean(0).norm()
    assert float(error.norm()) < 0.35 * float(signal), "too noisy to see a wrong factor"


@pytest.mark.usefixtures("float64")
def test_enumeration_has_no_variance():
    x, pair = binary_rows(), DiscreteVAE()
    assert float(many_gradients(pair, x, pv.ELBO(discrete="enumerate"), 3).var(0).max()) < 1e-28


def linear_pair(guide_scale=None):
    """PPCA as a trainable pair whose guide can be its exact posterior."""
    ppca = small_ppca()
    posterior = ppca.posterior(torch.zeros(1, 4))
    weight = torch.nn.Parameter(_regression(ppca))
    root = torch.nn.Parameter(posterior.scale_tril[0].clone() * (guide_scale or 1.0))
    loading = torch.nn.Parameter(ppca.loading.clone())

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.root, self.loading = weight, root, loading

        def model(self, x):
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ self.loading.T, ppca.scale).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", x.shape[0]):
                pyro.sample("z", dist.MultivariateNormal(x @ self.weight.T, scale_tril=self.root.tril()))

    return Linear(), ppca


def _regression(ppca):
    """The matrix that maps x to the posterior mean."""
    return ppca.posterior(torch.eye(4)).loc.T.contiguous()


@pytest.mark.usefixtures("float64")
def test_stl_has_no_variance_at_the_posterior():
    """S8c: with the exact posterior the path derivative of every single draw is zero; the plain one is not."""
    pair, ppca = linear_pair()
    x = ppca.sample(5, seed=2)
    guides = slice(0, 8)  # weight and root
    stl = many_gradients(pair, x, pv.ELBO(gradient="stl"), 20)[:, guides]
    plain = many_gradients(pair, x, pv.ELBO(kl="sampled"), 20)[:, guides]
    assert float(stl.abs().max()) < 1e-10
    assert float(plain.var(0).max()) > 1e-4


@pytest.mark.parametrize("objective", [pv.ELBO(gradient="stl"), pv.IWAE(3, gradient="dreg")], ids=repr)
def test_path_gradients_see_the_noise_of_the_draws(objective):
    """Dropout in the guide: log q is that of the distribution drawn from; BatchNorm's buffers move once a step."""
    pair = ModuleVAE()
    norm = torch.nn.BatchNorm1d(8)
    pair.encoder = torch.nn.Sequential(pair.encoder[0], norm, torch.nn.Dropout(0.5), pair.encoder[2])
    x = binary_rows(50)
    layout = pv.check(pair, x).layout
    reference = pv.ELBO(kl="sampled") if isinstance(objective, pv.ELBO) else pv.IWAE(3)
    values = []
    for chosen in (objective, reference):
        before = int(norm.num_batches_tracked)
        with seeded(5):
            values.append(chosen.evaluate(as_pair(pair), (x,), layout, 1.0))
        assert int(norm.num_batches_tracked) == before + 1
    assert float(values[0].objective) == pytest.approx(float(values[1].objective), rel=1e-5)
    assert float(values[0].elbo) == pytest.approx(float(values[1].elbo), rel=1e-5)


@pytest.mark.usefixtures("float64")
def test_dreg_has_less_variance_than_iwae():
    pair, ppca = linear_pair(guide_scale=1.3)
    x = ppca.sample(5, seed=2)
    dreg = many_gradients(pair, x, pv.IWAE(16, gradient="dreg"), 200)[:, :8].var(0).sum()
    plain = many_gradients(pair, x, pv.IWAE(16), 200)[:, :8].var(0).sum()
    assert float(dreg) < 0.5 * float(plain)


@pytest.mark.usefixtures("float64")
def test_a_baseline_lowers_the_variance_of_the_score_function():
    x, pair = binary_rows(), DiscreteVAE()
    with_baseline = many_gradients(pair, x, pv.ELBO(num_particles=8, kl="sampled"), 200).var(0).sum()
    without = many_gradients(pair, x, pv.ELBO(num_particles=8, kl="sampled", baseline="none"), 200).var(0).sum()
    assert float(with_baseline) < 0.5 * float(without)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("s", [0.8, 1.0, 1.3])
def test_elbo_is_log_p_minus_the_divergence(s):
    """S7: ELBO + KL(q, posterior) = log p, with KL = d [log 1/s + (s^2 - 1) / 2]; 0 for the exact guide."""
    ppca = small_ppca()
    x = ppca.sample(50, seed=4)
    divergence = 2 * (math.log(1 / s) + (s**2 - 1) / 2)
    pair = scaled_guide(ppca, s)
    truth = float(ppca.log_prob(x).mean()) - divergence
    if s == 1.0:
        sampled = evaluate(pair, x, pv.ELBO(kl="sampled"))
        assert float(sampled.elbo) == pytest.approx(truth, rel=1e-10)
    values = [float(evaluate(pair, x, pv.ELBO(num_particles=20), seed).elbo) for seed in range(200)]
    assert_mean(values, truth) if s != 1.0 else None
    analytic = [float(evaluate(pair, x, pv.ELBO(num_particles=20, kl="analytic"), seed).elbo) for seed in range(200)]
    assert_mean(analytic, truth, effect=0.05)


@pytest.mark.usefixtures("float64")
def test_the_bound_is_a_bound_and_approaches_log_p():
    """S5: E L_K = log p - chi2 / (2 K) + o(1/K), from below."""
    ppca, s = small_ppca(), 1.25
    x = ppca.sample(1, seed=6).expand(4000, -1).contiguous()
    pair = scaled_guide(ppca, s)
    exact = float(ppca.log_prob(x[:1]))
    values = [float(evaluate(pair, x, pv.IWAE(20), seed).objective) for seed in range(40)]
    assert_mean(values, exact - chi_square(s, 2) / 40, effect=0.003)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("objective", [pv.ELBO(kl="sampled"), pv.ELBO(), pv.IWAE(num_particles=3)], ids=repr)
def test_minibatches_average_to_the_whole(objective):
    """S6: mean over all mini-batches of two, with the noise of each datum held, equals the value of the whole."""
    pair = ModuleVAE()
    x = binary_rows(5)
    noise = torch.randn(3, 5, 2)

    def held(rows):
        class Held(ModuleVAE):
            def guide(self, x):
                with (
                    pyro.plate("data", 5, subsample=rows)
                    if len(rows) < 5
                    else pyro.plate("data", 5, subsample=torch.arange(5))
                ):
                    loc, raw = pair.encoder(x).chunk(2, -1)
                    draw = noise[: objective.num_particles][:, rows] if objective.num_particles > 1 else noise[0, rows]
                    pyro.sample("z", Fixed(loc, raw.exp(), draw))

            def model(self, x):
                with pyro.plate("data", 5, subsample=rows):
                    z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                    pyro.sample("x", dist.Bernoulli(logits=pair.decoder(z)).to_event(1), obs=x)

        return Held()

    def value(rows):
        rows = torch.tensor(rows)
        program = held(rows)
        layout = pv.check(ModuleVAE(), x).layout._replace(full_size=5, analytic=frozenset())
        return float(objective.evaluate(as_pair(program), (x[rows],), layout, 1.0).objective)

    batches = [value(list(rows)) for rows in itertools.combinations(range(5), 2)]
    assert sum(batches) / len(batches) == pytest.approx(value([0, 1, 2, 3, 4]), rel=1e-10)


class Fixed(dist.TorchDistribution):
    """A diagonal normal whose draw is given."""

    arg_constraints: ClassVar[dict] = {}
    has_rsample = True

    def __init__(self, loc, scale, noise, batch_shape=None):
        self.normal = dist.Normal(loc, scale).to_event(1)
        self.noise = noise
        super().__init__(batch_shape or self.normal.batch_shape, torch.Size((2,)), validate_args=False)

    @property
    def support(self):
        return self.normal.support

    def expand(self, batch_shape, _instance=None):
        return Fixed(self.normal.base_dist.loc, self.normal.base_dist.scale, self.noise, torch.Size(batch_shape))

    def rsample(self, sample_shape=()):
        return self.normal.base_dist.loc + self.normal.base_dist.scale * self.noise

    def log_prob(self, value):
        return self.normal.log_prob(value)


def test_beta_multiplies_the_rate_of_the_objective_and_nothing_else():
    x, pair = binary_rows(), ModuleVAE()
    plain, tempered = evaluate(pair, x, pv.ELBO()), evaluate(pair, x, pv.ELBO(beta=4.0))
    assert float(tempered.elbo) == float(plain.elbo)
    assert float(tempered.objective) == pytest.approx(-float(plain.distortion) - 4 * float(plain.rate), rel=1e-5)
    assert float(plain.elbo) == pytest.approx(-float(plain.distortion) - float(plain.rate), rel=1e-6)


def test_free_bits_hold_the_rate_up():
    x = binary_rows(64)
    rates = []
    for bits in (0.0, 1.0):
        torch.manual_seed(0)
        pair = ModuleVAE()
        pv.fit(pair, x, objective=pv.ELBO(free_bits=bits), epochs=60, learning_rate=1e-2, progress=False)
        rates.append(float(evaluate(pair, x, pv.ELBO()).rate))
    assert rates[1] > rates[0] + 0.2


@pytest.mark.parametrize(
    "make",
    [
        lambda: pv.ELBO(num_particles=0),
        lambda: pv.ELBO(kl="exact"),
        lambda: pv.ELBO(gradient="stl", kl="analytic"),
        lambda: pv.ELBO(gradient="score", discrete="enumerate"),
        lambda: pv.ELBO(baseline="leave_one_out"),
        lambda: pv.ELBO(free_bits=-1),
        lambda: pv.ELBO(free_bits=1, gradient="score"),
        lambda: pv.IWAE(gradient="stl"),
        lambda: pv.Renyi(1.0),
        lambda: schedules.Linear(0, 1, steps=0),
        lambda: schedules.Cyclical(0, 1, period=10, ramp=0.0),
    ],
)
def test_illegal_combinations_raise(make):
    with pytest.raises(ValueError, match=r"\w"):
        make()


@pytest.mark.parametrize(
    ("objective", "make", "message"),
    [
        (pv.ELBO(kl="analytic"), HierarchicalVAE, "closed-form KL"),
        (pv.IWAE(gradient="dreg"), DiscreteVAE, "reparametrised"),
        (pv.ELBO(free_bits=1.0), DiscreteVAE, "reparametrised"),
        (pv.ELBO(discrete="enumerate"), ModuleVAE, "finitely many"),
        (pv.ELBO(discrete="enumerate"), lambda: _counting_pair(), "'z'.*finitely many"),
        (pv.ELBO(gradient="stl"), DiscreteVAE, "'z'.*reparametrised"),
        (pv.ELBO(2, baseline="leave_one_out"), ModuleVAE, "score-function latent"),
    ],
)
def test_combinations_that_only_the_pair_rules_out(objective, make, message):
    with pytest.raises(pv.PairError, match=message):
        pv.fit(make(), binary_rows(), objective=objective, epochs=1, progress=False)


def _counting_pair():
    """A categorical latent beside one that has infinitely many values."""

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("a", dist.Categorical(torch.ones(2) / 2))
            return pyro.sample("z", dist.Poisson(torch.full((x.shape[0],), 2.0)))

    def model(x):
        z, rate = guide(x), pyro.param("rate", torch.tensor(0.1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Bernoulli(logits=(rate * z).unsqueeze(-1).expand(*z.shape, 5)).to_event(1), obs=x)

    return pv.Pair(model, guide)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 3)])
def test_enumerated_particles_go_through_every_joint_value(rows, columns):
    """Two discrete latents: the enumerated ELBO of the exact posterior is log p."""
    joint = torch.distributions.Dirichlet(torch.ones(rows * columns)).sample().reshape(rows, columns)
    x = torch.tensor([0.3, -0.4, 1.0])
    means = torch.randn(rows, columns)

    def log_joint(x):
        return joint.log() + dist.Normal(means, 1.0).log_prob(x.reshape(-1, 1, 1))

    def model(x):
        with pyro.plate("data", x.shape[0]):
            a = pyro.sample("a", dist.Categorical(joint.sum(1)))
            b = pyro.sample("b", dist.Categorical(joint[a] / joint[a].sum(-1, keepdim=True)))
            pyro.sample("x", dist.Normal(means[a, b], 1.0), obs=x)

    def guide(x):
        posterior = log_joint(x).flatten(1).softmax(1).reshape(-1, rows, columns)
        with pyro.plate("data", x.shape[0]):
            a = pyro.sample("a", dist.Categorical(posterior.sum(2)))
            given = posterior[torch.arange(len(x)), a]
            pyro.sample("b", dist.Categorical(given / given.sum(-1, keepdim=True)))

    values = evaluate(pv.Pair(model, guide), x, pv.ELBO(discrete="enumerate"))
    assert float(values.elbo) == pytest.approx(float(log_joint(x).flatten(1).logsumexp(1).mean()), rel=1e-10)


class Given(Messenger):
    """Puts a given value in the place of the draw of "z"."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def _pyro_sample(self, msg):
        if msg["name"] == "z":
            msg["value"], msg["done"] = self.value, True


def log_joint_of_discrete(vae, x):
    """log p(x given z) (N, 3) and log p(z) (3,) of a `DiscreteVAE`, by torch alone."""
    logits = vae.decoder(torch.eye(3))
    log_lik = torch.distributions.Bernoulli(logits=logits).log_prob(x.unsqueeze(1)).sum(-1)
    return log_lik, torch.tensor([0.0, 0.3, -0.2]).log_softmax(0)


def expected_elbo(vae, x, beta):
    log_q = vae.encoder(x).log_softmax(-1)
    log_lik, log_prior = log_joint_of_discrete(vae, x)
    return (log_q.exp() * (log_lik - beta * (log_q - log_prior))).sum(-1).mean()


def expected_bound_of_two(vae, x):
    log_q = vae.encoder(x).log_softmax(-1)
    log_lik, log_prior = log_joint_of_discrete(vae, x)
    log_weight = log_lik + log_prior - log_q
    pairs = torch.stack(torch.broadcast_tensors(log_weight.unsqueeze(1), log_weight.unsqueeze(2)))
    probabilities = log_q.exp().unsqueeze(1) * log_q.exp().unsqueeze(2)
    return (probabilities * (pairs.logsumexp(0) - math.log(2))).sum((1, 2)).mean()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (pv.ELBO(num_particles=2), lambda vae, x: expected_elbo(vae, x, 1.0)),
        (pv.ELBO(num_particles=2, kl="sampled", beta=0.6), lambda vae, x: expected_elbo(vae, x, 0.6)),
        (pv.ELBO(kl="sampled", beta=0.6), lambda vae, x: expected_elbo(vae, x, 0.6)),
        (pv.ELBO(beta=2.0, baseline="none"), lambda vae, x: expected_elbo(vae, x, 2.0)),
        (pv.ELBO(num_particles=2, baseline="batch", gradient="score"), lambda vae, x: expected_elbo(vae, x, 1.0)),
        (pv.IWAE(num_particles=2), expected_bound_of_two),
    ],
    ids=["leave-one-out", "sampled rate", "other data", "no baseline", "all by score", "bound"],
)
def test_the_score_function_is_unbiased_to_rounding(objective, expected):
    """S8: estimates at every joint draw, weighted by its probability, sum to the gradient of the exact expectation."""
    vae, x = DiscreteVAE(), binary_rows(2)
    layout, k = pv.check(vae, x).layout, objective.num_particles
    q = vae.encoder(x).softmax(-1).detach()
    total = 0.0
    for values in itertools.product(range(3), repeat=2 * k):
        z = torch.tensor(values).reshape(k, 2)
        pair = pv.Pair(vae.model, Given(z if k > 1 else z[0])(vae.guide))
        total = total + q.expand(k, 2, 3).gather(-1, z.unsqueeze(-1)).prod() * gradient(pair, x, objective, layout, 0)
    exact = torch.autograd.grad(-expected(vae, x), list(vae.parameters()))
    torch.testing.assert_close(total, torch.cat([g.flatten() for g in exact]), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_repeats_of_an_enumeration_share_its_weight():
    x, pair = binary_rows(), DiscreteVAE()
    once, thrice = (evaluate(pair, x, pv.ELBO(num_particles=k, discrete="enumerate")) for k in (1, 3))
    for a, b in zip(once, thrice, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    torch.testing.assert_close(once.elbo, expected_elbo(pair, x, 1.0).detach(), rtol=1e-12, atol=0)


@pytest.mark.usefixtures("float64")
def test_free_bits_are_a_floor_under_the_mean_rate():
    """The rate counts as the larger of itself and the floor; the true ELBO is not touched."""
    x, pair = binary_rows(), ModuleVAE()
    plain = evaluate(pair, x, pv.ELBO())
    for bits in (0.5 * float(plain.rate), float(plain.rate), 2 * float(plain.rate)):
        held = evaluate(pair, x, pv.ELBO(free_bits=bits))
        assert float(held.objective) == pytest.approx(
            -float(plain.distortion) - max(float(plain.rate), bits), rel=1e-12
        )
        assert float(held.elbo) == float(plain.elbo)


def test_held_out_data_are_judged_by_the_plain_bound():
    tempered = pv.ELBO(num_particles=3, beta=4.0, free_bits=1.0, kl="sampled", baseline="none")
    assert tempered.judge() == pv.ELBO(num_particles=3)
    assert pv.ELBO(discrete="enumerate").judge() == pv.ELBO(discrete="enumerate")
    assert pv.IWAE(num_particles=7, gradient="dreg").judge() == pv.IWAE(num_particles=7)


@pytest.mark.usefixtures("float64")
def test_subsamples_of_a_nested_plate_average_to_the_whole():
    """R7: every two of four pixels, with the same noise: objective and true ELBO are unbiased."""
    x = torch.randn(5, 4)

    def programs(index):
        def model(x):
            with pyro.plate("data", x.shape[0], dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0], 1), 1.0))
                with pyro.plate("pixels", 4, subsample=index, dim=-1):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, index])

        def guide(x):
            with pyro.plate("data", x.shape[0], dim=-2):
                pyro.sample("z", dist.Normal(x.mean(1, keepdim=True), 0.5))

        return pv.Pair(model, guide)

    whole = evaluate(programs(torch.arange(4)), x, pv.ELBO())
    parts = [evaluate(programs(torch.tensor(i)), x, pv.ELBO()) for i in itertools.combinations(range(4), 2)]
    for name in ("objective", "elbo", "distortion", "rate"):
        mean = sum(float(getattr(part, name)) for part in parts) / len(parts)
        assert mean == pytest.approx(float(getattr(whole, name)), rel=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_the_true_elbo_knows_no_scale_of_the_programs(kl):
    """Programs scaled by the user train as written; what is reported beside it is the ELBO."""
    x, pair = binary_rows(), ModuleVAE()
    scaled = pv.Pair(*(pv.scale_latents(program, 3.0) for program in (pair.model, pair.guide)))
    plain, tempered = (evaluate(p, x, pv.ELBO(kl=kl)) for p in (pair, scaled))
    assert float(tempered.objective) == pytest.approx(-float(plain.distortion) - 3 * float(plain.rate), rel=1e-12)
    assert float(tempered.elbo) == pytest.approx(float(plain.elbo), rel=1e-12)


@pytest.mark.usefixtures("float64")
def test_dreg_is_the_formula_of_its_paper():
    """S8: weights v_k^2 along the path for the guide, v_k for the model (Tucker et al. 2019, equation 8)."""
    x, vae, k = binary_rows(), ModuleVAE(), 3
    found = gradient(vae, x, pv.IWAE(k, gradient="dreg"), pv.check(vae, x).layout, 5)
    loc, raw = vae.encoder(x).chunk(2, -1)
    with seeded(5):
        z = dist.Normal(loc, raw.exp()).expand((k, *loc.shape)).rsample()
    log_q = dist.Normal(loc.detach(), raw.detach().exp()).log_prob(z).sum(-1)
    log_prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_weight = dist.Bernoulli(logits=vae.decoder(z)).log_prob(x).sum(-1) + log_prior - log_q
    share = log_weight.detach().softmax(0)
    expected = []
    for network, weight in ((vae.decoder, share), (vae.encoder, share.square())):
        loss = -(weight * log_weight).sum(0).mean()
        expected += torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in expected]), rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("objective", [pv.ELBO(gradient="stl"), pv.IWAE(3, gradient="dreg")], ids=repr)
def test_path_gradients_hold_parameters_wherever_they_are(objective):
    """Bare parameters in a closure, and a module under two names, count as those of a module under one."""
    x = torch.randn(6)
    layer = torch.nn.Linear(1, 2)

    def programs(network):
        def model(x):
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            loc, raw = network(x.unsqueeze(-1)).unbind(-1)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("z", dist.Normal(loc, raw.exp()))

        return pv.Pair(model, guide)

    twice = torch.nn.ModuleDict({"a": layer, "b": torch.nn.Sequential(layer)})
    weight, bias = layer.weight, layer.bias
    gradients = []
    for network in (layer, lambda v: twice["b"](v), lambda v: v @ weight.T + bias):
        pair = programs(network)
        layout = pv.check(pair, x).layout
        with seeded(2):
            loss = objective.evaluate(pair, (x,), layout, 1.0).loss
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [weight, bias])]))
        assert all(isinstance(p, torch.nn.Parameter) and p.requires_grad for p in (layer.weight, layer.bias))
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2])


@pytest.mark.parametrize("objective", [pv.ELBO(gradient="stl"), pv.ELBO(gradient="score"), pv.IWAE(gradient="dreg")])
def test_gradients_that_need_a_density_refuse_points_and_globals(objective):
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0]), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.5))
        with pyro.plate("data", x.shape[0]):
            u = pyro.sample("u", dist.Normal(torch.zeros(x.shape[0]), 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(scale * u + x / 2, log_density=-scale.log().expand(u.shape)))

    with pytest.raises(pv.PairError, match=r"'z'.*pathwise"):
        pv.fit(pv.Pair(model, guide), torch.randn(5), objective=objective, epochs=1, progress=False)


@pytest.mark.usefixtures("float64")
def test_a_mask_in_the_model_alone_rules_out_the_closed_form():
    x = torch.randn(6)

    def model(x):
        with pyro.plate("data", x.shape[0]):
            with pyro.poutine.mask(mask=x > 0):
                z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(0.3 * x, 0.8))

    pair = pv.Pair(model, guide)
    assert pv.check(pair, x).layout.analytic == frozenset()
