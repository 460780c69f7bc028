"""S12: latents on the simplex against one-dimensional quadrature."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import transforms

import ppl_vae as pv
from tests.statistical import assert_estimates

pytestmark = pytest.mark.usefixtures("float64")

X = torch.tensor([-0.5, 0.2, 0.7, 1.6])
WIDTH = 0.4


def evidence(concentration):
    """log p(x) by quadrature: the first coordinate of a Dirichlet has a Beta distribution."""
    first, others = concentration[0], sum(concentration[1:])

    def density(z, x):
        return stats.beta.pdf(z, first, others) * stats.norm.pdf(x, z, WIDTH)

    return np.log([integrate.quad(density, 0, 1, args=(float(x),), epsabs=1e-12)[0] for x in X])


def model(concentration):
    def program(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Dirichlet(torch.tensor(concentration)))
            pyro.sample("x", dist.Normal(z[..., 0], WIDTH), obs=x)

    return program


def dirichlet(dim):
    def guide(x):
        share = x.clamp(0.2, 0.8).unsqueeze(-1)
        with pyro.plate("data", x.shape[0]):
            others = (1 - share).expand(-1, dim - 1) / (dim - 1)
            pyro.sample("z", dist.Dirichlet(3 * torch.cat([share, others], -1)))

    return guide


def stick_breaking(dim, transform=transforms.StickBreakingTransform):
    """A Laplace distribution sent to the simplex: its density has a Jacobian, its tails bound the weights."""

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            centre = torch.cat([x.unsqueeze(-1), x.new_zeros(len(x), dim - 2)], -1)
            base = dist.Laplace(centre, 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [transform()]))

    return guide


@pytest.mark.parametrize("concentration", [(2.0, 3.0), (2.0, 1.5, 2.5)], ids=["segment", "triangle"])
@pytest.mark.parametrize("guide", [dirichlet, stick_breaking])
def test_latents_on_the_simplex(guide, concentration, seed):
    pair = pv.Pair(model(concentration), guide(len(concentration)))
    ll = pv.log_likelihood(pair, X, 50_000, seed, num_draws=0, progress=False)
    assert_estimates(ll.value, ll.stderr, evidence(concentration), effect=0.1)


class Unscaled(transforms.StickBreakingTransform):
    def log_abs_det_jacobian(self, x, y):
        return torch.zeros(x.shape[:-1])


def test_a_dropped_jacobian_is_seen(seed):
    pair = pv.Pair(model((2.0, 3.0)), stick_breaking(2, Unscaled))
    ll = pv.log_likelihood(pair, X, 50_000, seed, num_draws=0, progress=False)
    with pytest.raises(AssertionError, match="z ="):
        assert_estimates(ll.value, ll.stderr, evidence((2.0, 3.0)), effect=0.1)
