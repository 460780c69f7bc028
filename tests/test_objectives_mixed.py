"""Discrete latents beside reparametrised ones: path gradients of the ones, sums or scores of the others."""

from __future__ import annotations

from math import log

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_vae as pv
from tests.running import evaluate, many_gradients
from tests.statistical import assert_close, assert_mean, assert_same_means

pytestmark = pytest.mark.usefixtures("float64")

SHIFT, PRIOR = torch.tensor([-1.0, 1.5], dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64)
ENUMERATED_STL = pv.ELBO(gradient="stl", discrete="enumerate")


class Mixed(nn.Module):
    """y of two values, z ~ N(0, 1), x ~ N(z + c_y, 1); the guide starts as the exact posterior, class first."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(SHIFT / 2), nn.Parameter(PRIOR.log() - SHIFT.square() / 4)
        self.gain, self.shift = nn.Parameter(torch.tensor(0.5)), nn.Parameter(SHIFT / 2)
        self.log_scale, self.noise = nn.Parameter(torch.tensor(0.5).sqrt().log()), nn.Identity()

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(PRIOR))
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z + SHIFT[y], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=x[:, None] * self.slope + self.offset))
            loc = self.gain * self.noise(x) - self.shift[y]
            pyro.sample("z", dist.Normal(loc, self.log_scale.exp()))


class ClassLast(Mixed):
    """The guide draws z first, and the class given z."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.gain * x - self.shift[0], self.log_scale.exp()))
            pyro.sample("y", dist.Categorical(logits=(x - z).unsqueeze(-1) * self.slope + self.offset))


def drifted(pair: Mixed) -> Mixed:
    """The same with a guide that is not exact."""
    with torch.no_grad():
        for parameter, by in zip(pair.parameters(), (0.3, torch.tensor([0.4, -0.2]), 0.2, -0.3, 0.2), strict=True):
            parameter += by
    return pair


@pytest.mark.parametrize(
    ("objective", "reference"),
    [
        (ENUMERATED_STL, pv.ELBO(kl="sampled", discrete="enumerate")),
        (pv.ELBO(2, gradient="stl", beta=0.6), pv.ELBO(beta=0.6, kl="sampled", discrete="enumerate")),
        (pv.ELBO(gradient="stl", baseline="none"), pv.ELBO(kl="sampled", discrete="enumerate")),
        (pv.IWAE(3, gradient="dreg"), pv.IWAE(3)),
        (pv.IWAE(1, gradient="dreg"), pv.ELBO(kl="sampled", discrete="enumerate")),
    ],
    ids=repr,
)
@pytest.mark.parametrize("make", [Mixed, ClassLast])
def test_path_gradients_beside_a_class_have_the_mean_of_others(make, objective, reference, seed):
    """Coordinate by coordinate; a factor of one and a half would be seen."""
    x = torch.tensor([0.5, -1.0, 2.0]).repeat(400)
    left = many_gradients(drifted(make()), x, objective, 40, 2 * seed)
    right = many_gradients(drifted(make()), x, reference, 40, 2 * seed + 1)
    assert_same_means(left, right, factor=0.5)


class ClassAlone(Mixed):
    """Only the class tells of x; its guide takes the classes for equal, which they are not, and z is as drawn."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(PRIOR))
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(SHIFT[y], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=x[:, None] * self.slope + self.offset))
            pyro.sample("z", dist.Normal(torch.zeros_like(x), self.log_scale.exp()))


def test_the_classes_of_a_doubly_reparametrised_bound_have_the_exact_gradient(seed):
    """The bound of two draws is a sum over two classes each: a tenth of its gradient would be seen."""
    pair, x = ClassAlone(), torch.tensor([0.5, -1.0, 2.0])
    with torch.no_grad():
        pair.slope.zero_(), pair.offset.zero_(), pair.log_scale.zero_()
    log_q = (x[:, None] * pair.slope + pair.offset).log_softmax(-1)
    log_w = PRIOR.log() + dist.Normal(SHIFT, 1.0).log_prob(x[:, None]) - log_q
    both = (log_q[:, :, None] + log_q[:, None]).exp() * (torch.logaddexp(log_w[:, :, None], log_w[:, None]) - log(2))
    exact = -torch.autograd.grad(both.sum((1, 2)).mean(), [pair.slope, pair.offset])[1][0]
    found = many_gradients(pair, x.repeat(500), pv.IWAE(2, gradient="dreg"), 60, seed)
    place = [name for name, p in pair.named_parameters() for _ in range(p.numel())].index("offset")
    assert_mean(found[:, place].numpy(), float(exact), effect=0.1 * abs(float(exact)))


@pytest.mark.parametrize(
    "objective", [ENUMERATED_STL, pv.ELBO(2, gradient="stl"), pv.IWAE(3, gradient="dreg")], ids=repr
)
def test_draws_of_the_posterior_move_no_guide_beside_a_class(objective):
    """log w is the same for every y and z, so that no draw moves the guide; the plain gradient does."""
    x = torch.tensor([0.5, -1.0, 2.0])
    found = many_gradients(Mixed(), x, objective, 5)
    assert_close(found, torch.zeros_like(found), scale=1.0)
    assert float(many_gradients(Mixed(), x, pv.ELBO(kl="sampled"), 20).std(0).max()) > 0.01


def test_enumerated_classes_take_no_noise_from_what_the_guide_draws_after_them():
    """Dropout behind the class: log q is that of the distribution that z was drawn from."""
    x = torch.tensor([0.5, -1.0, 2.0]).repeat(5)
    pair = Mixed()
    pair.noise = nn.Dropout(0.5)
    by_path, plain = (evaluate(pair, x, o, 3) for o in (ENUMERATED_STL, pv.ELBO(kl="sampled", discrete="enumerate")))
    assert_close(by_path.objective, plain.objective)
