"""Discrete latents: enumeration and the score function, against sums over every value."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.messenger import Messenger

import ppl_vae as pv
from ppl_vae.pair import as_pair
from ppl_vae.rng import seeded
from tests.pairs import DiscreteVAE, ModuleVAE, binary_rows
from tests.running import evaluate, flat, gradient, many_gradients
from tests.statistical import assert_close


@pytest.mark.usefixtures("float64")
def test_enumeration_has_no_variance():
    x, pair = binary_rows(), DiscreteVAE()
    first, *others = many_gradients(pair, x, pv.ELBO(discrete="enumerate"), 3)
    for other in others:
        assert_close(other, first, scale=1.0)


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
    assert_close(values.elbo, log_joint(x).flatten(1).logsumexp(1).mean())


@pytest.mark.usefixtures("float64")
def test_repeats_of_an_enumeration_share_its_weight():
    x, pair = binary_rows(), DiscreteVAE()
    once, thrice = (evaluate(pair, x, pv.ELBO(num_particles=k, discrete="enumerate")) for k in (1, 3))
    for a, b in zip(once, thrice, strict=True):
        assert_close(a, b)
    assert_close(once.elbo, expected_elbo(pair, x, 1.0))


class Given(Messenger):
    """Puts a given value in the place of the draw of "z"."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def _pyro_sample(self, msg):
        if msg["name"] == "z":
            msg["value"], msg["done"] = self.value, True


def seen_before(pair, objective, state):
    """Puts the state of a running baseline: what earlier steps have left, the same for every draw."""
    if getattr(objective, "baseline", "") == "running":
        objective.begin(pair)
        pair.store.running_reward.copy_(torch.tensor(state))


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
        (pv.ELBO(baseline="running"), lambda vae, x: expected_elbo(vae, x, 1.0)),
        (pv.ELBO(2, baseline="running", kl="sampled", beta=0.6), lambda vae, x: expected_elbo(vae, x, 0.6)),
        (pv.IWAE(num_particles=2), expected_bound_of_two),
        (pv.IWAE(num_particles=2, gradient="score"), expected_bound_of_two),
        (pv.IWAE(num_particles=2, gradient="vimco"), expected_bound_of_two),
    ],
    ids=lambda value: repr(value) if isinstance(value, pv.ELBO | pv.IWAE) else value.__name__,
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
        seen_before(pair, objective, [-1.3, 0.4])
        total = total + q.expand(k, 2, 3).gather(-1, z.unsqueeze(-1)).prod() * gradient(pair, x, objective, layout, 0)
    parameters = list(vae.parameters())
    assert_close(total, flat(torch.autograd.grad(-expected(vae, x), parameters), parameters), scale=1.0)


class Excluding(DiscreteVAE):
    """The model gives the third value no probability."""

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Categorical(logits=x.new_tensor([0.0, 0.3, -math.inf])))
            logits = self.decoder(torch.nn.functional.one_hot(z, 3).to(x))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


@pytest.mark.usefixtures("float64")
def test_vimco_is_finite_where_draws_lie_outside_the_support():
    """One of two draws outside: the bound is log w_2 / 2, the baselines log w_2 of the first and 0 of the second."""
    vae, x = Excluding(), binary_rows(1)
    objective, layout = pv.IWAE(2, gradient="vimco"), pv.check(DiscreteVAE(), x).layout
    pair = pv.Pair(vae.model, Given(torch.tensor([[2], [0]]))(vae.guide))
    log_q = vae.encoder(x).log_softmax(-1)[0]
    log_lik = log_joint_of_discrete(vae, x)[0][0, 0]
    log_weight = log_lik + torch.tensor([0.0, 0.3]).log_softmax(0)[0] - log_q[0]
    bound, parameters = log_weight - math.log(2), list(vae.parameters())
    expected = -(bound + log_q[2] * (bound - log_weight).detach() + log_q[0] * bound.detach())
    assert_close(
        gradient(pair, x, objective, layout, 0),
        flat(torch.autograd.grad(expected, parameters), parameters),
        scale=1.0,
    )


@pytest.mark.usefixtures("float64")
def test_a_baseline_lowers_the_variance_of_the_score_function():
    x, pair = binary_rows(), DiscreteVAE()
    with_baseline = many_gradients(pair, x, pv.ELBO(num_particles=8, kl="sampled"), 200).var(0).sum()
    without = many_gradients(pair, x, pv.ELBO(num_particles=8, kl="sampled", baseline="none"), 200).var(0).sum()
    assert float(with_baseline) < 0.5 * float(without)


RUNNING = pv.ELBO(gradient="score", kl="sampled", baseline="running")


@pytest.mark.usefixtures("float64")
def test_a_running_baseline_is_the_average_of_the_steps_before():
    """b_t = sum_s 0.9^(t-s) r_s / sum_s 0.9^(t-s) over s < t, and nothing before the first step."""
    x, vae = binary_rows(), DiscreteVAE()
    pair, layout = as_pair(vae), pv.check(vae, x).layout
    RUNNING.begin(pair)
    rewards = []
    for t in range(4):
        with seeded(t):
            values = RUNNING.evaluate(pair, (x,), layout, 1.0)
        weights = torch.tensor([0.9 ** (t - s - 1) for s in range(t)])
        expected = sum(w * r for w, r in zip(weights, rewards, strict=True)) / weights.sum() if t else 0.0
        with seeded(t):
            plain = pv.ELBO(gradient="score", kl="sampled", baseline="none").evaluate(pair, (x,), layout, 1.0)
        with seeded(t):
            z = torch.distributions.Categorical(logits=vae.encoder(x)).sample()
        log_q = vae.encoder(x).log_softmax(-1).gather(1, z[:, None]).mean()
        assert_close(values.loss, plain.loss + expected * log_q)  # loss = -(reward + log q (reward - b))
        rewards.append(values.objective)


@pytest.mark.usefixtures("float64")
def test_a_running_baseline_lowers_the_variance():
    x, pair = binary_rows(), as_pair(DiscreteVAE())
    RUNNING.begin(pair)
    running = many_gradients(pair, x, RUNNING, 300)[50:].var(0).sum()
    without = many_gradients(pair, x, pv.ELBO(kl="sampled", baseline="none"), 250).var(0).sum()
    assert float(running) < 0.5 * float(without)


def test_fits_with_a_running_baseline_repeat_and_leave_evaluations_alone():
    """Its state starts anew in every fit, lies among the buffers, and moves in no evaluation."""
    x, found = binary_rows(20), []
    vae = DiscreteVAE()
    start = {name: value.clone() for name, value in vae.state_dict().items()}
    for _ in range(2):
        vae.load_state_dict(start)
        fit = pv.fit(vae, x, objective=RUNNING, epochs=3, batch_size=8, validation=x, progress=False)
        found.append(fit.history["elbo"])
    assert found[0].tolist() == found[1].tolist()
    pair = as_pair(vae)
    state = pair.store.running_reward
    assert any(state is b for b in pair.buffers())
    assert "running" not in "".join(pair.state_dict())
    before = state.clone()
    pv.log_likelihood(vae, x, 10, progress=False)
    pv.check(vae, x)
    with torch.no_grad():
        RUNNING.evaluate(pair, (x,), fit.report.layout, 1.0)
    assert torch.equal(pair.store.running_reward, before)
    assert float(before[1]) > 0
    assert RUNNING.judge() == pv.ELBO()


def test_objectives_without_meaning_are_refused():
    with pytest.raises(ValueError, match="gradient='vimco' needs num_particles of at least 2"):
        pv.IWAE(1, gradient="vimco")
    with pytest.raises(ValueError, match="baseline"):
        pv.ELBO(baseline="moving")
    with pytest.raises(pv.PairError, match="baseline='running' needs a score-function latent"):
        pv.fit(ModuleVAE(), binary_rows(), objective=pv.ELBO(baseline="running"), epochs=1, progress=False)
    with pytest.raises(pv.PairError, match="begin"):
        evaluate(DiscreteVAE(), binary_rows(), RUNNING)
