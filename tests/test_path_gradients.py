"""Path gradients (STL and DReG) of guides whose distributions hold parameters themselves, in every form they may."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae.selftesting.programs import bound
from tests.pairs import small_ppca
from tests.running import gradient, many_gradients
from tests.statistical import assert_close, assert_same_means

pytestmark = pytest.mark.usefixtures("float64")

AFFINE = dist.transforms.AffineTransform
OBJECTIVES = [pv.ELBO(gradient="stl"), pv.IWAE(3, gradient="dreg")]
FORMS = {
    "covariance": lambda a, b: dist.MultivariateNormal(a, scale_tril=b),
    "low rank": lambda a, b: dist.LowRankMultivariateNormal(a, b, b.diagonal().square()),
    "shift": lambda a, b: dist.TransformedDistribution(
        dist.MultivariateNormal(torch.zeros(2), scale_tril=b), [AFFINE(a, b.diagonal(), event_dim=1)]
    ),
    "transforms within": lambda a, b: dist.TransformedDistribution(
        dist.TransformedDistribution(dist.Normal(a, 1.0).to_event(1), [AFFINE(0.1, a.exp(), event_dim=1)]),
        [dist.transforms.LowerCholeskyAffine(a, b), AFFINE(a, 3.0, event_dim=1)],
    ),
    "masked": lambda a, b: dist.MultivariateNormal(a, scale_tril=b).mask(torch.tensor(True)),
}


class Guided(nn.Module):
    """Two layers of two numbers each, whose guide has parameters `loc` and `root` in one of the forms.

    `hold` says what a distribution is given: the parameter itself, or what is computed of it, or whether the
    distributions were made once, when the module was.
    """

    def __init__(self, form: str, hold: str) -> None:
        super().__init__()
        self.form, self.hold = form, hold
        self.loc, self.root = (
            nn.Parameter(torch.tensor([0.3, -0.2])),
            nn.Parameter(torch.tensor([[0.8, 0], [0.3, 0.6]])),
        )
        self.made = FORMS[form](self.loc, self.root)

    def fn(self) -> dist.Distribution:
        if self.hold == "made once":
            return self.made
        given = {"itself": (self.loc, self.root), "computed": (1.0 * self.loc, 1.0 * self.root)}[self.hold]
        return FORMS[self.form](*given)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(2), 2.0).to_event(1))
            z = pyro.sample("z", dist.Normal(u, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.7).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", self.fn())
            pyro.sample("z", dist.MultivariateNormal(u.sin() + self.loc, scale_tril=self.root))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("form", FORMS)
def test_where_a_distribution_keeps_its_parameters_changes_nothing(form, objective):
    """The same noise gives the gradient of distributions that hold nothing but what was computed of parameters."""
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    found = {}
    for hold in ("itself", "computed", "made once"):
        pair = Guided(form, hold)
        found[hold] = gradient(pair, x, objective, pv.check(pair, x).layout, 3)
    assert_close(found["itself"], found["computed"], scale=1.0)
    assert_close(found["made once"], found["computed"], scale=1.0)


def test_dreg_is_iwae_in_mean(seed):
    """Against the pathwise gradient, which keeps the score of q."""
    x = torch.tensor([[0.5, -1.0]]).repeat(300, 1)
    lower = [0, 1, 2, 4, 5]  # the number above the diagonal moves draws, and not the density: it is no parameter of q
    left = many_gradients(Guided("covariance", "itself"), x, pv.IWAE(2, gradient="dreg"), 40, 2 * seed)[:, lower]
    right = many_gradients(Guided("covariance", "itself"), x, pv.IWAE(2), 40, 2 * seed + 1)[:, lower]
    assert_same_means(left, right, factor=1.0)


class Replicated(nn.Module):
    """One datum x = 1 under z ~ N(0, 1), x ~ N(z, 1), with the guide N(m, s^2) whose transform holds m."""

    def __init__(self, hold: str) -> None:
        super().__init__()
        self.loc, self.log_scale, self.hold = nn.Parameter(torch.tensor(-0.5)), nn.Parameter(torch.tensor(0.3)), hold

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(len(x)), self.log_scale.exp())
            pyro.sample("z", dist.TransformedDistribution(base, [AFFINE(self.loc, 1.0)]))


@pytest.mark.parametrize(("objective", "k"), [(OBJECTIVES[0], 1), (pv.IWAE(2, gradient="dreg"), 2)], ids=repr)
def test_path_gradients_are_those_of_the_integral(objective, k, seed):
    """Closed form: the derivative of E log 1/K sum w by quadrature."""
    pair = Replicated("transform")
    exact = torch.stack(torch.autograd.grad(bound(pair.loc, pair.log_scale, k), (pair.loc, pair.log_scale)))
    found = -many_gradients(pair, torch.ones(1000), objective, 40, seed)
    assert_same_means(found, exact.double(), factor=0.1)


class Posterior(nn.Module):
    """PPCA with its posterior as guide, whose root of the covariance is a parameter that the distribution is given."""

    def __init__(self) -> None:
        super().__init__()
        self.ppca = small_ppca()
        self.model = self.ppca.model
        self.gain = nn.Parameter(self.ppca.posterior(torch.eye(4)).loc.mT.contiguous())
        self.root = nn.Parameter(self.ppca.posterior(torch.zeros(1, 4)).scale_tril[0].clone())

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x @ self.gain.mT, scale_tril=self.root))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_draws_of_the_posterior_have_no_path_gradient(objective):
    """S8c: log w is the same for every z, so that no draw of STL or DReG moves the guide; the plain gradient does."""
    pair = Posterior()
    x = pair.ppca.sample(5, seed=2)
    found = many_gradients(pair, x, objective, 5)
    assert_close(found, torch.zeros_like(found), scale=1.0)
    assert float(many_gradients(pair, x, pv.ELBO(kl="sampled"), 20).std(0).max()) > 0.01
