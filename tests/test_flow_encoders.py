"""Flow encoders: densities by autograd's Jacobian, draws that know theirs, what they are conditioned on, training."""

from __future__ import annotations

import builtins
import sys

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.autograd.functional import jacobian

import ppl_vae as pv
from ppl_vae.encoders import InverseAutoregressive, MaskedAutoregressive, NeuralSpline
from ppl_vae.errors import PairError
from ppl_vae.rng import seeded
from tests.statistical import assert_close, assert_estimates, assert_mean

FLOWS = [InverseAutoregressive, MaskedAutoregressive, NeuralSpline]
OBJECTIVES = [
    *(pv.ELBO(), pv.ELBO(gradient="stl"), pv.IWAE(3), pv.IWAE(3, gradient="dreg")),
    pv.ELBO(4, gradient="score"),
    pv.from_pyro(Trace_ELBO()),
]
pytestmark = pytest.mark.parametrize("encoder", FLOWS)


def make(encoder, dim=3, shake=0.3):
    made = encoder.mlp(6, [5], dim, context_dim=4, flow_hidden=(12,))
    with torch.no_grad():  # away from the start, where flows do nothing
        for parameter in made.flow.parameters():
            parameter += shake * torch.randn_like(parameter)
    return made


def draw(q, seed=1):
    with seeded(seed):
        return q.rsample()


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_density_is_that_of_the_noise_over_the_jacobian(encoder, dim, float64, generator):
    """log q(z) = log N(e; 0, I) - log |det dz/de|, with dz/de by automatic differentiation of a draw."""
    made = make(encoder, dim)
    x = torch.randn(1, 6, generator=generator)
    for seed in range(5):
        q = made(x)
        z = draw(q, seed)
        noise = {}

        def of_noise(e, noise=noise):
            """z as a function of the noise that it is drawn from."""
            flow = made.flow(made.network(x)[:, 2 * dim :])
            loc, raw = made.network(x)[:, : 2 * dim].chunk(2, -1)
            return loc + nn.functional.softplus(raw) * flow.transform.inv(e)

        with seeded(seed):
            e = made.flow.base().expand((1,)).sample()
        assert_close(of_noise(e), z, scale=1.0)
        slope = jacobian(of_noise, e)[0, :, 0, :]
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(e).sum(-1) - slope.det().abs().log()
        assert_close(q.log_prob(z), expected, scale=1.0)


def test_it_starts_as_the_diagonal_encoder(encoder, float64, generator):
    made, x, z = encoder.mlp(6, [5], 3), *(torch.randn(5, n, generator=generator) for n in (6, 3))
    loc, raw = made.network(x)[:, :6].chunk(2, -1)
    expected = torch.distributions.Normal(loc, nn.functional.softplus(raw)).log_prob(z).sum(-1)
    assert_close(made(x).log_prob(z), expected)


@pytest.mark.parametrize("dim", [1, 2])
def test_without_a_context_it_depends_on_x_by_location_and_scale(encoder, dim, float64, generator):
    made = encoder.mlp(6, [5], dim, context_dim=0, flow_hidden=(12,))
    with torch.no_grad():
        for parameter in made.flow.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    x = torch.randn(4, 6, generator=generator)
    loc, raw = made.network(x).chunk(2, -1)
    scale, e = nn.functional.softplus(raw), torch.randn(7, 4, dim, generator=generator)
    expected = made.flow().log_prob(e) - scale.log().sum(-1)
    assert_close(made(x).log_prob(loc + scale * e), expected, scale=1.0)
    assert made(x).batch_shape == (4,)
    assert made(x).rsample((7,)).shape == (7, 4, dim)


def test_a_draw_and_its_copy_have_one_density_and_gradient(encoder, float64, generator):
    made, x = make(encoder), torch.randn(5, 6, generator=generator)
    q = made(x)
    z = draw(q)
    copy = z.clone()  # goes through the inverse
    assert_close(q.log_prob(z + 1), made(x).log_prob(z + 1), scale=1.0)  # another value after a draw
    values = [q.log_prob(z), q.log_prob(copy)]
    assert_close(*values, scale=1.0)
    slopes = [torch.autograd.grad(v.sum(), list(made.parameters()), retain_graph=True) for v in values]
    for one, other in zip(*slopes, strict=True):
        assert_close(one, other, scale=max(1.0, float(one.abs().max())))


def test_a_draw_without_gradient_does_not_hide_that_of_the_density(encoder, float64, generator):
    made, x = make(encoder), torch.randn(5, 6, generator=generator)
    q = made(x)
    with torch.no_grad():
        z = q.rsample()
        known = q.log_prob(z)
    q.log_prob(z).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in made.network.parameters())
    assert_close(known, q.log_prob(z.clone()), scale=1.0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_draw_that_was_written_to_is_another_value(encoder, mode, float64, generator):
    """As in a traversal of the latents."""
    made, x = make(encoder), torch.randn(5, 6, generator=generator)
    with mode():
        q = made(x)
        z = q.sample()
        z[:, 0] = torch.linspace(-3, 3, 5)
        assert_close(q.log_prob(z), q.log_prob(z.clone()), scale=1.0)


def test_every_coordinate_depends_on_x_through_the_context(encoder, float64, generator):
    made = make(encoder)
    features = torch.randn(1, 10, generator=generator)
    made.network = nn.Identity()
    other = features.clone()
    other[:, 6:] += 1.0
    z, shifted = draw(made(features)), draw(made(other))
    assert (z != shifted).all()


def test_draws_have_the_moments_of_the_density(encoder, float64, generator):
    """By quadrature on a grid: E z and E z^2 of 20,000 draws."""
    made, x = make(encoder, 2, 0.1), torch.randn(1, 6, generator=generator)
    side = torch.linspace(-8, 8, 301)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        q = made(x)
        mass = q.expand((len(grid),)).log_prob(grid).exp() * float(side[1] - side[0]) ** 2
        z = q.sample((20_000,))[:, 0]
    total = float(mass.sum())
    assert abs(total - 1) < 2e-3, f"the density sums to {total} over a square"
    for values, at in ((z, grid), (z**2, grid**2)):
        for i in range(2):
            assert_mean(values[:, i].numpy(), float((mass * at[:, i]).sum() / total), effect=0.3)


def test_particles_share_one_run_of_the_network(encoder):
    made, x = make(encoder), torch.zeros(5, 6)
    rows = []
    made.network.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[0]))
    vae = pv.VAE(pv.priors.StandardNormal(3), pv.decoders.Gaussian.mlp(3, [4], 6), made)
    pv.log_likelihood(vae, x, 50, progress=False, compile=False)
    assert max(rows) == 5
    q = made(x).expand((7, 5))
    assert q.rsample().shape == (7, 5, 3)
    assert q.log_prob(torch.zeros(7, 5, 3)).shape == (7, 5)


def linear_pair(encoder):
    """x = W z + b + e, whose evidence is known, and a guide near the prior and wider: weights have a small variance."""
    decoder = pv.decoders.Gaussian.mlp(2, [], 6)
    with torch.no_grad():
        encoder.network.layers[-1].weight.mul_(0.1)
        encoder.network.layers[-1].bias[2:4] = 1.0
    return pv.VAE(pv.priors.StandardNormal(2), decoder, encoder)


def evidence(vae, x):
    weight, bias = (p.detach() for p in vae.decoder.parameters())
    return torch.distributions.MultivariateNormal(bias, weight @ weight.T + torch.eye(6)).log_prob(x)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["ELBO", "STL", "IWAE", "DReG", "score", "Pyro"])
def test_every_gradient_trains_and_the_evidence_is_found(encoder, objective):
    vae = linear_pair(make(encoder, 2, 0.1))
    x = vae.sample(12)
    before = {n: p.detach().clone() for n, p in vae.named_parameters()}
    pv.fit(vae, x, objective=objective, epochs=2, compile=False, progress=False)
    assert all(bool((p != before[n]).any()) for n, p in vae.named_parameters())
    ll = pv.log_likelihood(vae, x, 4000, progress=False, compile=False)
    assert_estimates(ll.value, ll.stderr, evidence(vae, x), effect=0.3)


def test_draws_of_an_inverse_flow_cost_one_pass(encoder):
    """Runs of the masked network for draws with their density, then for the density of other values; latent_dim = 5."""
    made = make(encoder, dim=5)
    runs = []
    made.flow.register_module("hyper", next(m for n, m in made.flow.named_modules() if n.endswith("hyper")))
    made.flow.hyper.register_forward_hook(lambda *_: runs.append(1))
    q = made(torch.zeros(2, 6))
    q.log_prob(z := q.rsample())
    drawn = len(runs)
    q.log_prob(z.clone())
    expected = {InverseAutoregressive: (1, 6), MaskedAutoregressive: (6, 1), NeuralSpline: (3, 1)}
    assert (drawn, len(runs) - drawn) == expected[encoder]


def test_zuko_is_named_where_it_is_missing(encoder, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "zuko":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "zuko", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "ppl_vae\[flows\]"'):
        encoder.mlp(6, [], 2)


def test_the_validation_of_torch_is_as_it_was(encoder):
    assert torch.distributions.Distribution._validate_args
    encoder.mlp(6, [], 2)
    assert torch.distributions.Distribution._validate_args


def test_other_numbers_are_refused(encoder):
    with pytest.raises(PairError, match=r"expected 10 features .*found 7"):
        encoder(nn.Identity(), 3, 4)(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="num_flows: expected at least 1"):
        encoder(nn.Identity(), 3, 4, num_flows=0)
    with pytest.raises(ValueError, match="context_dim: expected at least 0"):
        encoder(nn.Identity(), 3, -1)
