"""F10: a guide that does not cover the model's support is an error everywhere; one that covers it is none."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as t

import ppl_vae as pv

PI = 3.141592653589793
X = torch.linspace(-1.0, 1.0, 40)


def made(prior, guide_of, likelihood=None):
    """The pair z ~ prior, x ~ N(z, 1) with a guide that is a function of (x, w), w trained."""
    weight = torch.nn.Parameter(torch.tensor(0.1))

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", prior.expand([x.shape[0]]))
            pyro.sample("x", (likelihood or (lambda z: dist.Normal(z.to(x.dtype), 1.0)))(z), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", guide_of(x, weight))

    return pv.Pair(model, guide)


def three_values(zero, spread=0.0):
    probs = torch.tensor([0.5, 0.5, 0.0] if zero else [0.5, 0.25, 0.25])
    return lambda x, w: dist.Categorical((probs + 0 * w).expand(len(x), 3))


def affine_beta(x, w):
    return dist.TransformedDistribution(dist.Beta(2 + 0 * x + w, 2.0), t.AffineTransform(-1.0, 2.0))


COVERED = {
    "three values": (dist.Categorical(torch.ones(3)), three_values(zero=False)),
    "excluded by the model too": (dist.Categorical(torch.tensor([1.0, 1.0, 0.0])), three_values(zero=True)),
    "uniform on a circle": (dist.VonMises(0.0, 1.0), lambda x, w: dist.Uniform(-PI + 0 * (x + w), PI)),
    "stretched beta": (dist.Uniform(-1.0, 1.0), affine_beta),
}
UNCOVERED = {
    "a value of probability 0": (dist.Categorical(torch.ones(3)), three_values(zero=True)),
    "a coin that always falls alike": (
        dist.Bernoulli(0.5),
        lambda x, w: dist.Bernoulli(torch.where(x > 0, 1.0, 0.5) + 0 * w),
    ),
    "a circle on a line": (dist.Normal(0.0, 1.0), lambda x, w: dist.VonMises(0 * x + w, 1.0)),
    "a narrow stretched beta": (dist.Uniform(-2.0, 1.0), affine_beta),
}


@pytest.mark.parametrize("name", COVERED)
def test_a_guide_that_covers_is_taken(name):
    pair = made(*COVERED[name])
    pv.check(pair, X)
    pv.fit(pair, X, epochs=1, progress=False)
    pv.log_likelihood(pair, X, 20, progress=False)


@pytest.mark.parametrize("name", UNCOVERED)
def test_a_guide_that_does_not_cover_is_an_error_everywhere(name):
    pair = made(*UNCOVERED[name])
    for use in (
        lambda: pv.check(pair, X),
        lambda: pv.fit(pair, X, epochs=1, progress=False),
        lambda: pv.log_likelihood(pair, X, 20, progress=False),
    ):
        with pytest.raises(pv.PairError, match="site 'z': expected a guide that covers the model's support"):
            use()


def test_an_evaluation_looks_at_every_row():
    """The guide's bounds depend on the datum, and fail at the last one only."""
    x = torch.cat([X, torch.tensor([5.0])])
    narrow = lambda x, w: dist.Uniform(torch.where(x > 4.0, -0.5, -1.0) + 0 * w, 1.0)  # noqa: E731
    pair = made(dist.Uniform(-1.0, 1.0), narrow)
    pv.log_likelihood(pair, X, 20, progress=False)
    with pytest.raises(pv.PairError, match="covers the model's support"):
        pv.log_likelihood(pair, x, 20, progress=False)


def test_an_evaluation_probes_every_row():
    """The same where no bound tells: a mixture with a component of no mass on one side."""

    def one_sided(x, w):
        sides = dist.Uniform(torch.tensor([-3.0, 0.0]) + 0 * w, torch.tensor([0.0, 3.0])).expand([len(x), 2])
        weights = torch.stack([torch.where(x > 4.0, 0.0, 0.5), torch.full_like(x, 0.5)], dim=-1)
        return dist.MixtureSameFamily(dist.Categorical(logits=weights.log()), sides)

    pair = made(dist.Uniform(-3.0, 3.0), one_sided)
    pv.log_likelihood(pair, X, 20, progress=False)
    with pytest.raises(pv.PairError, match="density 0 at draws of the prior"):
        pv.log_likelihood(pair, torch.cat([X, torch.tensor([5.0])]), 20, progress=False)


def test_proposals_off_the_circle_count_as_zero():
    """VonMises against a normal guide: the density of a circle must not be counted once for every turn."""
    pair = made(dist.VonMises(0.0, 0.0001), lambda x, w: dist.Normal(0 * (x + w), 3.0))
    grid = torch.linspace(-PI, PI, 20_001, dtype=torch.float64)
    x = X[::8]
    density = torch.exp(-0.5 * (x[:, None].double() - grid) ** 2) / (2 * PI) ** 0.5 / (2 * PI)
    exact = torch.trapezoid(density, grid).log()
    ll = pv.log_likelihood(pair, x, 20_000, progress=False)
    assert ll.zero_weights.min() > 0
    assert (abs(ll.value - exact.numpy()) <= 5.91 * ll.stderr + 1e-4).all()


def test_masked_values_have_finite_gradients():
    """Logits of minus infinity in guide and model: no 0 x infinity in the gradient."""
    logits = torch.nn.Parameter(torch.zeros(3))
    mask = torch.tensor([False, False, True])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=torch.zeros(len(x), 3).masked_fill(mask, -torch.inf)))
            pyro.sample("x", dist.Normal(z.float(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=(logits + x[:, None]).masked_fill(mask, -torch.inf)))

    pair = pv.Pair(model, guide)
    for objective in (
        pv.ELBO(),
        pv.ELBO(discrete="enumerate"),
        pv.ELBO(kl="sampled", discrete="enumerate"),
        pv.IWAE(3),
    ):
        before = logits.detach().clone()
        pv.fit(pair, X, objective=objective, epochs=1, progress=False)
        assert bool(torch.isfinite(logits).all())
        assert bool((logits[:2] != before[:2]).any())
        assert float(logits.detach()[2]) == float(before[2])


@pytest.mark.parametrize("stated", ["subsample", "subsample_size"])
def test_a_stated_data_set_smaller_than_the_evaluation(stated):
    """plate("data", 60): held-out data of any size are evaluated in blocks that fit it."""
    slope = torch.nn.Parameter(torch.tensor(0.5))

    def plate(x):
        part = {"subsample": torch.arange(len(x))} if stated == "subsample" else {"subsample_size": len(x)}
        return pyro.plate("data", 60, **part)

    def model(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with plate(x):
            pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))

    pair, x = pv.Pair(model, guide), torch.linspace(-2.0, 2.0, 500)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    ll = pv.log_likelihood(pair, x, 30, progress=False)
    assert abs(ll.value - exact.numpy()).max() < 1e-4
    pv.fit(pair, x[:60], epochs=1, batch_size=20, validation=x, progress=False)
