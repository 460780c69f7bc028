"""The judges of the other tests: what they let through and what they do not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import base_seed, pytest_collection_modifyitems, pytest_configure_node
from scipy import stats

from tests.statistical import (
    POWER,
    Z_MAX,
    assert_close,
    assert_estimates,
    assert_mean,
    assert_same_means,
    assert_within,
    z_limit,
)


def test_processes_that_share_the_tests_have_one_seed():
    first = SimpleNamespace(getoption=lambda name: name == "--vary-seed")
    first.base_seed = base_seed(first)
    node = SimpleNamespace(config=first, workerinput={})
    pytest_configure_node(node)
    assert base_seed(SimpleNamespace(getoption=first.getoption, workerinput=node.workerinput)) == first.base_seed


def test_a_name_of_a_test_that_only_one_process_knows_is_refused():
    with pytest.raises(pytest.UsageError, match="found an address"):
        pytest_collection_modifyitems([SimpleNamespace(nodeid=f"test_x.py::test_y[{object()!r}]")])


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_rounding_is_that_of_the_dtype(dtype, rounding):
    truth = torch.tensor([3.0, -200.0], dtype=dtype)
    assert_close(truth * (1 + 0.9 * rounding), truth)
    with pytest.raises(AssertionError, match="2 of 2 entries differ by more than rounding"):
        assert_close(truth * (1 + 2 * rounding), truth)


def test_rounding_is_relative_unless_terms_cancel():
    with pytest.raises(AssertionError, match="rounding"):
        assert_close(1e-12, 0.0)
    assert_close(1e-12, 0.0, scale=1.0)
    assert_close(np.float64(1 + 1e-6), np.float32(1))
    assert_close(1 + 1e-6, 1.0, dtype=torch.float32)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (np.nan, np.nan),
        (np.inf, -np.inf),
        (1.0, np.inf),
        (np.inf, 1.0),
        (np.ones(2), 1.0),
        (np.ones((2, 1)), np.ones(2)),
    ],
)
def test_what_is_no_number_or_of_another_shape_is_not_close(actual, expected):
    with pytest.raises(AssertionError):
        assert_close(actual, expected, scale=1e20)


def test_infinite_values_may_agree():
    assert_close([-np.inf, 1.0], [-np.inf, 1.0])


@pytest.mark.parametrize("arguments", [{"reason": "", "relative": 1.0}, {"reason": "none"}])
def test_other_tolerances_need_a_reason_and_a_size(arguments):
    with pytest.raises(TypeError, match="size and a reason"):
        assert_within(1.0, 1.0, **arguments)


def test_limits_share_the_chance_of_one_false_failure():
    assert z_limit() == pytest.approx(Z_MAX)
    assert 100 * stats.norm.sf(z_limit(100)) == pytest.approx(stats.norm.sf(Z_MAX))
    assert stats.t.sf(z_limit(degrees=20), 20) == pytest.approx(stats.norm.sf(Z_MAX))


def test_a_shift_by_the_stated_effect_is_seen(seed):
    samples = np.random.default_rng(seed).normal(size=10_000)
    effect = POWER / 100
    assert_mean(samples, 0.0, sigma=1.0, effect=effect)
    with pytest.raises(AssertionError, match="z ="):
        assert_mean(samples + effect, 0.0, sigma=1.0)
    with pytest.raises(AssertionError, match="at best"):
        assert_mean(samples, 0.0, effect=effect / 2)


def test_one_coordinate_of_many_is_seen(seed):
    samples = np.random.default_rng(seed).normal(size=(400, 50)) + np.linspace(-5, 5, 50)
    assert_same_means(samples, np.linspace(-5, 5, 50), factor=0.2)
    with pytest.raises(AssertionError, match="at best"):
        assert_same_means(samples, np.linspace(-5, 5, 50), factor=0.1)
    samples[:, 7] += 1.0
    with pytest.raises(AssertionError, match="coordinate 7"):
        assert_same_means(samples, np.linspace(-5, 5, 50), factor=0.2)


def test_constant_coordinates_are_compared_to_rounding(seed):
    samples = np.random.default_rng(seed).normal(size=(100, 2)) + 9.0
    samples[:, 1] = 2.0
    assert_same_means(samples, np.array([9.0, 2.0]), factor=0.2)
    with pytest.raises(AssertionError, match="coordinate 1"):
        assert_same_means(samples, np.array([9.0, 2.1]), factor=0.2)


def test_estimates_need_an_error_and_its_power():
    assert_estimates([1.1, 0.9], [0.1, 0.1], 1.0, effect=1.2)
    with pytest.raises(AssertionError, match="estimate 1"):
        assert_estimates([1.1, 0.3], [0.1, 0.1], 1.0, effect=1.2)
    with pytest.raises(AssertionError, match="at best"):
        assert_estimates([1.1, 0.9], [0.1, 0.1], 1.0, effect=0.5)
    with pytest.raises(AssertionError, match="assert_close"):
        assert_estimates([1.0], [0.0], 1.0, effect=1.0)
