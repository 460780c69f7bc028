"""Supports: what a distribution really covers, whatever it claims."""

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.distributions import transforms as t

from ppl_vae.supports import (
    bounds,
    covers,
    excluded_values,
    first_outside,
    is_fixed,
    support_name,
    support_of,
    support_of_data,
)

PI = 3.141592653589793
NORMAL = dist.Normal(0.0, 1.0)
SHIFTED = t.ComposeTransform([t.ExpTransform(), t.AffineTransform(2.0, 1.0)])


@pytest.mark.parametrize(
    ("distribution", "lower", "upper"),
    [
        (NORMAL, -torch.inf, torch.inf),
        (dist.VonMises(0.0, 1.0), -PI, PI),
        (dist.VonMises(torch.zeros(3), 1.0).to_event(1), -PI, PI),
        (dist.TransformedDistribution(dist.Beta(2.0, 2.0), t.AffineTransform(-1.0, 2.0)), -1.0, 1.0),
        (dist.TransformedDistribution(dist.Beta(2.0, 2.0), t.AffineTransform(1.0, -3.0)), -2.0, 1.0),
        (dist.TransformedDistribution(dist.Gamma(2.0, 2.0), t.AffineTransform(1.0, -3.0)), -torch.inf, 1.0),
        (dist.TransformedDistribution(NORMAL, t.AffineTransform(1.0, 3.0)), -torch.inf, torch.inf),
        (dist.TransformedDistribution(NORMAL, [t.SigmoidTransform(), t.AffineTransform(-1.0, 2.0)]), -1.0, 1.0),
        (dist.TransformedDistribution(NORMAL, SHIFTED), 2.0, torch.inf),
        (dist.LogNormal(0.0, 1.0), 0.0, torch.inf),
        (dist.Gumbel(0.0, 1.0), -torch.inf, torch.inf),
        (dist.Kumaraswamy(torch.ones(2), 2.0), 0.0, 1.0),
        (dist.HalfNormal(1.0), 0.0, torch.inf),
        (dist.Categorical(torch.ones(3)), 0.0, 2.0),
        (dist.Bernoulli(0.5), 0.0, 1.0),
        (dist.Uniform(0.0, 1.0).expand([3]).mask(torch.tensor([True, False, True])), 0.0, 1.0),
    ],
)  # fmt: skip
def test_bounds_of_what_a_distribution_covers(distribution, lower, upper):
    found = bounds(support_of(distribution))
    assert [float(end) for end in found] == pytest.approx([lower, upper])
    draws = distribution.sample((1000,))
    assert bool(support_of(distribution).check(draws).all())


def test_bounds_by_coordinate():
    base = dist.Beta(2.0, 2.0).expand([3]).to_event(1)
    stretched = dist.TransformedDistribution(base, t.AffineTransform(torch.zeros(3), torch.tensor([1.0, 2.0, -3.0])))
    lower, upper = bounds(support_of(stretched))
    assert lower.tolist() == [0, 0, -3]
    assert upper.tolist() == [1, 2, 0]
    assert support_of(stretched).event_dim == 1
    assert not is_fixed(support_of(stretched))


def test_what_acts_on_whole_vectors_states_its_own():
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [t.affine_autoregressive(2)])
    assert covers(support_of(flow), constraints.real) is True
    assert bounds(support_of(dist.LogisticNormal(torch.zeros(2), 1.0))) is None
    assert support_of(dist.RelaxedOneHotCategorical(torch.tensor(1.0), torch.ones(3))) is constraints.simplex


def test_a_distribution_that_states_no_support_excludes_nothing():
    class Silent(dist.TorchDistribution):
        arg_constraints = {}  # noqa: RUF012

    support = support_of(Silent(torch.Size([4]), torch.Size([2])))
    assert bool(support.check(torch.full((4, 2), torch.inf)).all())
    assert support.check(torch.zeros(4, 2)).shape == (4,)
    assert bounds(support) is None
    assert covers(support, constraints.positive) is None


def test_covering_is_judged_up_to_rounding():
    single, double = dist.Uniform(-PI, PI), dist.Uniform(*torch.tensor([-PI, PI], dtype=torch.float64))
    for one in (single, double, dist.VonMises(0.0, 1.0)):
        for other in (single, double, dist.VonMises(0.0, 1.0)):
            assert covers(support_of(one), support_of(other)) is True
    assert covers(support_of(dist.Uniform(-3.1, PI)), support_of(single)) is False
    assert covers(support_of(NORMAL), support_of(single)) is True
    assert covers(support_of(single), support_of(NORMAL)) is False


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (dist.Categorical(torch.tensor([0.5, 0.0, 0.5])), [False, True, False]),
        (dist.Categorical(logits=torch.tensor([0.5, -torch.inf, 0.5])), [False, True, False]),
        (dist.Categorical(logits=torch.tensor([0.0, -300.0, 0.0])), [False, False, False]),
        (dist.OneHotCategorical(torch.tensor([1.0, 0.0])), [False, True]),
        (dist.Bernoulli(torch.tensor(0.0)), [False, True]),
        (dist.Bernoulli(torch.tensor(1.0)), [True, False]),
        (dist.Bernoulli(torch.tensor([0.3, 1.0])).to_event(1), [[False, True], [False, False]]),
        (dist.Bernoulli(logits=torch.tensor(-300.0)), [False, False]),
        (dist.Bernoulli(logits=torch.tensor(40.0)), [False, False]),
        (dist.OneHotCategorical(torch.tensor([0.5, 0.5, 0.0])).expand([]), [False, False, True]),
    ],
)
def test_values_of_probability_zero(distribution, expected):
    assert excluded_values(distribution).tolist() == expected


def test_no_list_of_values():
    assert excluded_values(dist.Poisson(1.0)) is None


def test_the_row_is_found_wherever_the_rows_are():
    value = torch.full((3, 5, 2), 0.5)
    value[1, 4, 0] = 7.0
    support = constraints.independent(constraints.unit_interval, 1)
    assert first_outside(support, value) == (1, 7.0)
    assert first_outside(support, value, -1) == (4, 7.0)
    assert first_outside(support, value, -2) == (1, 7.0)
    assert first_outside(support, value[:, :4]) is None


def test_angles_are_observed_with_any_number_of_turns():
    assert support_of_data(dist.VonMises(torch.zeros(3), 1.0).to_event(1)).check(torch.tensor([4.0, -9.0, 0.0]))
    assert not support_of_data(dist.Beta(2.0, 2.0)).check(torch.tensor(4.0))


def test_names_are_one_line():
    assert support_name(constraints.real) == "real"
    assert support_name(constraints.interval(torch.zeros(50), torch.arange(50.0))) == (
        "interval(lower_bound=0, upper_bound=0 to 49)"
    )
