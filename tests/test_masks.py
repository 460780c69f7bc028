"""Masks weigh sites: the same ones in both programs, and never the density that a latent was drawn with."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.rng import seeded


def masked(role, x, kind):
    """A pair whose latent is masked, for some rows, in the model, the guide or both, by a handler or a distribution."""

    def sample(of, fn, mask):
        if role not in (of, "both"):
            return pyro.sample("z", fn)
        if kind == "handler":
            with pyro.poutine.mask(mask=mask):
                return pyro.sample("z", fn)
        return pyro.sample("z", fn.mask(mask))

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = sample("model", dist.Normal(torch.zeros(x.shape[0]), 1.0), x > 0)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("data", x.shape[0]):
            sample("guide", dist.Normal(slope * x, 0.8), x > 0)

    return pv.Pair(model, guide)


@pytest.mark.parametrize("kind", ["handler", "distribution"])
@pytest.mark.parametrize("role", ["model", "guide"])
def test_a_mask_in_one_program_is_refused_everywhere(role, kind):
    """It would put every estimate off, and nothing in the weights shows it."""
    x = torch.linspace(-2, 2, 6)
    pair = masked(role, x, kind)
    for act in (pv.check, lambda *a: pv.fit(*a, progress=False), lambda *a: pv.log_likelihood(*a, 20, progress=False)):
        with pytest.raises(pv.PairError, match="'z': expected the same mask in both programs"):
            act(pair, x)


@pytest.mark.parametrize("kind", ["handler", "distribution"])
def test_the_same_mask_in_both_programs_is_taken(kind):
    x = torch.linspace(-2, 2, 6)
    assert pv.check(masked("both", x, kind), x).layout.local_latents == ("z",)


@pytest.mark.parametrize("kind", ["handler", "distribution"])
def test_a_masked_latent_is_not_moved(kind):
    """Where it is masked it has no density in R^n: chains would wander off, and maps would count it."""
    x = torch.linspace(-2, 2, 6)
    pair, search = masked("both", x, kind), pv.LocalSearch(2, 1, 4)
    with pytest.raises(pv.PairError, match=r"site 'z': expected a latent without a mask, .*use log_likelihood"):
        pv.annealed_importance_sampling(pair, x, progress=False)
    with pytest.raises(pv.PairError, match=r"site 'z': expected a latent without a mask, .*pass richer=False"):
        pv.gap_decomposition(pair, x, 20, search=search, progress=False)
    assert pv.gap_decomposition(pair, x, 20, search=search, richer=False, progress=False).gap.shape == (6,)


@pytest.mark.usefixtures("float64")
def test_no_proposal_is_fitted_to_a_masked_latent():
    """With one the estimates were too high: the fit has a density where the joint has none."""

    def draw_unread(n):
        pyro.sample("unread", dist.Normal(torch.zeros(n), 1.0).mask(torch.zeros(n) > 0))

    def model(x):
        with pyro.plate("data", len(x)):
            draw_unread(len(x))
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            draw_unread(len(x))
            pyro.sample("z", dist.Normal(0.8 * x, 0.3 * 0.2**0.5))

    pair, x = pv.Pair(model, guide), torch.linspace(-2, 2, 20)
    found = pv.escalate(pv.log_likelihood(pair, x, 500, progress=False), pair, x, progress=False)
    assert "'unread': expected a latent without a mask" in str(found)
    assert set(found.method) <= {"guide", "more samples"}
    assert (found.value < dist.Normal(0.0, 1.25**0.5).log_prob(x).numpy() + 5.91 * found.stderr).all()


def masked_mixture(kind, logit):
    """z in {0, 1}, masked for some rows in both programs, x given z from N(-1, 1) or N(1, 1)."""
    means = torch.tensor([-1.0, 1.0])

    def draw(probs, mask):
        if kind == "handler":
            with pyro.poutine.mask(mask=mask):
                return pyro.sample("z", dist.Categorical(probs))
        return pyro.sample("z", dist.Categorical(probs).mask(mask))

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = draw(torch.full((x.shape[0], 2), 0.5), x > 0)
            pyro.sample("x", dist.Normal(means[z], 1.0), obs=x)

    def guide(x):
        p = pyro.param("logit", torch.tensor(logit)).sigmoid()
        with pyro.plate("data", x.shape[0]):
            draw(torch.stack([p, 1 - p]).expand(x.shape[0], 2), x > 0)

    return pv.Pair(model, guide)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["handler", "distribution"])
def test_masked_discrete_latents(kind):
    """sum_z q(z) log p(x given z) - [row counts] KL(q, p), exactly by enumeration, in mean by the score function."""
    x, logit = torch.tensor([-0.5, 0.7, 1.5, -1.0]), torch.tensor(0.8, requires_grad=True)
    q = torch.stack([logit.sigmoid(), 1 - logit.sigmoid()])
    log_lik = dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).log_prob(x.unsqueeze(-1))
    counts = (x > 0).double()
    exact = ((q * log_lik).sum(-1) - counts * (q * (q / 0.5).log()).sum()).mean()
    (slope,) = torch.autograd.grad(exact, logit)

    def values(objective, seed):
        pair = masked_mixture(kind, 0.8)
        layout = pv.check(pair, x).layout
        (parameter,) = pair.parameters()
        with seeded(seed):
            found = objective.evaluate(pair, (x,), layout, 1.0)
        return found.objective, -torch.autograd.grad(found.loss, parameter)[0]

    objective, gradient = values(pv.ELBO(discrete="enumerate"), 0)
    torch.testing.assert_close(objective, exact.detach())
    torch.testing.assert_close(gradient, slope)
    drawn = torch.stack([values(pv.ELBO(num_particles=2000, baseline="leave_one_out"), seed)[1] for seed in range(20)])
    assert abs(drawn.mean() - slope) < 5.91 * drawn.std() / 20**0.5
    assert drawn.std() / 20**0.5 < 0.2 * abs(slope)


@pytest.mark.usefixtures("float64")
def test_the_score_of_a_scaled_global_latent():
    """A scale weighs the cost of a draw outside the data plate, not the density that it was drawn with."""
    x, scale, logit = torch.tensor([0.5, 1.5, -0.3]), 0.25, torch.tensor(0.4, requires_grad=True)
    p = logit.sigmoid()
    q = torch.stack([1 - p, p])
    log_lik = torch.stack([dist.Normal(m, 1.0).log_prob(x).sum() for m in (-1.0, 1.0)])
    (slope,) = torch.autograd.grad((q * (scale * log_lik - scale * (q / 0.5).log())).sum() / len(x), logit)

    def model(x):
        with pyro.poutine.scale(scale=scale):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.5)))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(2 * c - 1, 1.0), obs=x)

    def guide(x):
        with pyro.poutine.scale(scale=scale):
            pyro.sample("c", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4))))

    pair = pv.Pair(model, guide)
    layout = pv.check(pair, x).layout
    (parameter,) = pair.parameters()
    drawn = []
    for seed in range(200):
        with seeded(seed):
            found = pv.ELBO(num_particles=100).evaluate(pair, (x,), layout, 1.0)
        drawn.append(-torch.autograd.grad(found.loss, parameter)[0])
    drawn = torch.stack(drawn)
    assert abs(drawn.mean() - slope) < 5.91 * drawn.std() / 200**0.5
    assert drawn.std() / 200**0.5 < 0.1 * abs(slope)
