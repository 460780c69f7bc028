"""Gradients of objectives against finite differences, closed forms and each other: means and variances."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.pair import as_pair
from ppl_vae.rng import key, seeded
from tests.pairs import DiscreteVAE, HierarchicalVAE, ModuleVAE, binary_rows, small_ppca
from tests.running import evaluate, flat, gradient, many_gradients
from tests.statistical import assert_close, assert_same_means, assert_within

PATHWISE = [
    pv.ELBO(),
    pv.ELBO(kl="sampled"),
    pv.ELBO(num_particles=3),
    pv.ELBO(beta=0.3),
    pv.ELBO(free_bits=2.0),
    pv.IWAE(num_particles=4),
    pv.Renyi(0.5, num_particles=4),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("objective", PATHWISE, ids=repr)
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
    difference = (values[0] - values[1]) / 2e-5
    assert_within(slope, difference, relative=1e-6, absolute=1e-8, reason="the step of a central difference")


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
        (pv.IWAE(num_particles=3, gradient="vimco"), pv.IWAE(num_particles=3), ModuleVAE),
        (pv.IWAE(num_particles=3, gradient="vimco"), pv.IWAE(num_particles=3), HierarchicalVAE),
    ],
    ids=lambda value: repr(value),
)
def test_gradient_estimators_agree_in_mean(objective, reference, make, seed):
    """S8b: the means of independent draws, coordinate by coordinate; a factor of two would be seen."""
    with seeded(key(seed, 1)):
        pair = make()
    x = binary_rows(4).repeat(30, 1)
    left, right = (
        many_gradients(pair, x, objective, 100, key(seed, 2)),
        many_gradients(pair, x, reference, 100, key(seed, 3)),
    )
    assert_same_means(left, right, factor=1.0)


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
    assert_close(stl, torch.zeros_like(stl), scale=1.0)
    assert float(plain.std(0).max()) > 0.01


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
    assert_close(values[0].objective, values[1].objective)
    assert_close(values[0].elbo, values[1].elbo)


@pytest.mark.usefixtures("float64")
def test_dreg_has_less_variance_than_iwae():
    pair, ppca = linear_pair(guide_scale=1.3)
    x = ppca.sample(5, seed=2)
    dreg = many_gradients(pair, x, pv.IWAE(16, gradient="dreg"), 200)[:, :8].var(0).sum()
    plain = many_gradients(pair, x, pv.IWAE(16), 200)[:, :8].var(0).sum()
    assert float(dreg) < 0.5 * float(plain)


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
    assert_close(found, torch.cat([g.flatten() for g in expected]), scale=1.0)


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
        gradients.append(flat(torch.autograd.grad(loss, [weight, bias]), [weight, bias]))
        assert all(isinstance(p, torch.nn.Parameter) and p.requires_grad for p in (layer.weight, layer.bias))
    assert_close(gradients[1], gradients[0])
    assert_close(gradients[2], gradients[0])


@pytest.mark.parametrize(
    "objective",
    [
        pv.ELBO(gradient="stl"),
        pv.ELBO(gradient="score"),
        pv.IWAE(gradient="dreg"),
        pv.IWAE(gradient="score"),
        pv.IWAE(gradient="vimco"),
    ],
    ids=repr,
)
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
