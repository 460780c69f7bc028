"""Discrete latents: enumeration and the score function, against sums over every value."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DiscreteVAE, binary_rows
from pyro.poutine.messenger import Messenger
from running import evaluate, flat, gradient, many_gradients
from statistical import assert_close

import ppl_vae as pv


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
    parameters = list(vae.parameters())
    assert_close(total, flat(torch.autograd.grad(-expected(vae, x), parameters), parameters), scale=1.0)


@pytest.mark.usefixtures("float64")
def test_a_baseline_lowers_the_variance_of_the_score_function():
    x, pair = binary_rows(), DiscreteVAE()
    with_baseline = many_gradients(pair, x, pv.ELBO(num_particles=8, kl="sampled"), 200).var(0).sum()
    without = many_gradients(pair, x, pv.ELBO(num_particles=8, kl="sampled", baseline="none"), 200).var(0).sum()
    assert float(with_baseline) < 0.5 * float(without)
