"""The E-step of mixtures on features against its Cholesky form, and when which of the two is used."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.exact import GMM, em, sample, shares
from ppl_vae.exact import statistics as form
from ppl_vae.exact.mixture import Mixture
from tests.mixtures import KINDS, C, D, random_gmm
from tests.statistical import assert_close, assert_within

REASON = "the bound on rounding admits features up to 1e-10 nat, and neglects a factor of a few"


class Case(NamedTuple):
    """Data and a mixture for them."""

    x: Tensor
    mixture: Mixture


def sample_of(case: Case) -> sample.Sample:
    return em.sample_of(Rows([case.x]), "full" if case.mixture.root.ndim == 3 else "diag", len(case.mixture.means))


def both(case: Case) -> tuple[form.Statistics, form.Statistics]:
    data = sample_of(case)
    return form.statistics(data, case.mixture), form.cholesky_statistics(data, case.mixture)


def assert_same_statistics(case: Case) -> None:
    """Shift and scatter are judged in the units of each component: what a step changes is whitened by its root."""
    (fast, exact), (_, _, root) = both(case), case.mixture
    size = len(case.x)
    assert_within(fast.log_evidence / size, exact.log_evidence / size, absolute=1e-9, reason=REASON)
    assert_within(fast.counts / size, exact.counts / size, absolute=1e-9, reason=REASON)
    shift, scatter = fast.shift - exact.shift, fast.scatter - exact.scatter
    if root.ndim == 3:
        shift = torch.linalg.solve_triangular(root, shift.unsqueeze(-1), upper=False)
        scatter = torch.linalg.solve_triangular(root, scatter, upper=False)
        scatter = torch.linalg.solve_triangular(root, scatter.mT, upper=False)
    else:
        shift, scatter = shift / root, scatter / root.square()
    assert_within(shift / size, torch.zeros_like(shift), absolute=1e-9, reason=REASON)
    assert_within(scatter / size, torch.zeros_like(scatter), absolute=1e-9, reason=REASON)


def hard_case(condition: float, far: float, scale: float, dim: int = 4, seed: int = 0) -> Case:
    """Components of condition number 10^condition, means 10^far from each other, columns of units 1 to 10^scale."""
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(C, dim, dim)))
    units = 10.0 ** np.linspace(0.0, scale, dim)
    values = 10.0 ** -np.linspace(0.0, condition, dim)
    covariances = (axes * values) @ axes.swapaxes(1, 2) * np.outer(units, units)
    gmm = GMM(np.full(C, 1 / C), rng.normal(size=(C, dim)) * 10.0**far * units, covariances, "full")
    return Case(gmm.sample(300, seed=seed), gmm.mixture())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 5, 16])
def test_both_forms_find_the_same(kind, dim):
    gmm = random_gmm(kind, dim=dim)
    case = Case(gmm.sample(500), gmm.mixture())
    assert form.rounding(sample_of(case), case.mixture).max() < form.TOLERANCE
    for fast, exact in zip(*both(case), strict=True):
        assert_close(fast, exact, scale=float(exact.abs().max()))


@pytest.mark.parametrize("far", [0, 3, 6])
@pytest.mark.parametrize("condition", [0, 4, 8, 11])
@pytest.mark.parametrize("scale", [-6, 0, 6])
def test_nearly_singular_and_far_components_keep_their_digits(condition, far, scale):
    assert_same_statistics(hard_case(condition, far, scale))


@pytest.mark.parametrize("dim", [2, 16])
def test_the_bound_holds_where_features_are_used(dim):
    """And it is not so large that features are never used: of 28 cases they serve some, and not all."""
    used = 0
    for condition in range(7):
        for far in range(4):
            case = hard_case(condition, far, 0, dim, seed=condition)
            data = sample_of(case)
            bound = form.rounding(data, case.mixture)[0]
            phi = form._Features(data, True)(case.x)
            found, expected = (form._coefficients(data, case.mixture) @ phi).T, case.mixture.log_joint(case.x)
            # A sum is rounded to a relative eps too, however exact its terms.
            error = ((found - expected).abs() - 4e-16 * expected.abs()).amax(0)
            assert (error <= 4 * bound).all()
            used += int((bound <= form.TOLERANCE).all())
    assert 5 <= used <= 21


def test_units_of_the_columns_do_not_matter():
    """Powers of two round nothing: the features, and the choice of form, are the same."""
    gmm, units = random_gmm(), torch.tensor([2.0**-20, 1.0, 2.0**10, 2.0**20], dtype=torch.float64)
    scaled = GMM(gmm.weights, gmm.means * units, gmm.covariances * units * units.unsqueeze(-1))
    plain, other = Case(gmm.sample(300), gmm.mixture()), Case(gmm.sample(300) * units, scaled.mixture())
    assert_close(
        form.rounding(sample_of(other), other.mixture), form.rounding(sample_of(plain), plain.mixture), torch.float64
    )
    assert_same_statistics(other)


def test_a_constant_column_is_no_trouble():
    gmm = random_gmm()
    x = gmm.sample(300)
    x[:, 0] = 1e3
    assert_same_statistics(Case(x, gmm.mixture()))


def test_the_form_is_chosen_block_by_block(monkeypatch):
    """A datum far away costs its own block the features, and one small component costs the others nothing."""
    monkeypatch.setattr(sample, "BLOCK_ELEMENTS", 1)
    gmm = random_gmm()
    spike = GMM([0.9, 0.1], [[0.0] * D, [1.0] * D], np.stack([np.eye(D), 1e-9 * np.eye(D)]))
    x = gmm.sample(3 * sample.FEWEST_ROWS)
    x[-1] = 2e3
    far = form.rounding(sample_of(Case(x, gmm.mixture())), gmm.mixture()) <= form.TOLERANCE
    assert far.all(1).tolist() == [True, True, False]
    near = x[:-1]
    small = form.rounding(sample_of(Case(near, spike.mixture())), spike.mixture()) <= form.TOLERANCE
    assert small.tolist() == [[True, False]] * 3
    assert_same_statistics(Case(x, gmm.mixture()))
    assert_same_statistics(Case(near, spike.mixture()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_a_block_of_features_changes_no_number(kind, monkeypatch):
    x = random_gmm(kind).sample(301)
    whole = GMM.fit(x, 2, covariance_type=kind, max_iter=5)
    monkeypatch.setattr(sample, "FEWEST_ROWS", 7)
    monkeypatch.setattr(sample, "BLOCK_ELEMENTS", 1)
    assert_close(GMM.fit(x, 2, covariance_type=kind, max_iter=5).history, whole.history)


@pytest.mark.parametrize("outlier", [None, 1e9])
@pytest.mark.parametrize("dim", [2, 8])
@pytest.mark.parametrize("condition", [2, 3, 4, 6, 8])
def test_correlated_columns_are_served_in_features(condition, dim, outlier, monkeypatch):
    """Up to a condition number of 10^4, beyond which the covariance itself, in the units of x, holds too few digits."""
    monkeypatch.setattr(sample, "BLOCK_ELEMENTS", 1)
    rng = np.random.default_rng(condition)
    axes, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    mixing = torch.from_numpy(axes * 10.0 ** -np.linspace(0.0, condition / 2, dim))
    plain = random_gmm(dim=dim)
    gmm = GMM(plain.weights, 1e3 + plain.means @ mixing.T, mixing @ plain.covariances @ mixing.T)
    case = Case(gmm.sample(10 * sample.FEWEST_ROWS), gmm.mixture())
    if outlier is not None:
        case.x[0] = outlier
    served = form.served(sample_of(case), case.mixture)
    assert served[1:].all() or condition > 4
    if outlier is None:
        assert_same_statistics(case)
    else:
        assert_close(*(found.log_evidence for found in both(case)))


@pytest.mark.parametrize("distance", [1e6, 1e9, 1e12])
@pytest.mark.parametrize("columns", [1, D])
def test_gross_outliers_cost_only_their_own_block_the_features(distance, columns, monkeypatch):
    monkeypatch.setattr(sample, "BLOCK_ELEMENTS", 1)
    gmm = random_gmm()
    x = gmm.sample(50 * sample.FEWEST_ROWS)
    x[7, :columns] = distance
    case = Case(x, gmm.mixture())
    served = form.served(sample_of(case), case.mixture)
    assert not served[0].any()
    assert served[1:].all()
    fast, exact = both(case)
    assert_close(fast.log_evidence, exact.log_evidence)
    for name in ("counts", "shift", "scatter"):
        # A component that the outlier does not belong to is judged by itself.
        for one, other in zip(getattr(fast, name), getattr(exact, name), strict=True):
            assert_close(one, other, scale=float(other.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_number(kind, threads, monkeypatch):
    monkeypatch.setattr(sample, "BLOCK_ELEMENTS", 1)
    x = random_gmm("full", seed=5).sample(20 * sample.FEWEST_ROWS)
    alone = GMM.fit(x, C, covariance_type=kind, max_iter=5)
    torch.set_num_threads(threads)
    shared = GMM.fit(x, C, covariance_type=kind, max_iter=5)
    assert torch.get_num_threads() == threads
    assert_close(shared.history, alone.history)
    assert_close(shared.covariances, alone.covariances, scale=float(alone.covariances.abs().max()))
    assert GMM.fit(x, C, covariance_type=kind, max_iter=5).history == shared.history


def test_an_error_in_a_share_is_raised_and_the_threads_are_as_before():
    def fails(blocks: range) -> int:
        raise ValueError(f"in {blocks[0]}")

    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="in 0"):
        list(shares.in_shares(fails, 9, 2))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("num_blocks", "threads"), [(1, 1), (1, 4), (2, 2), (9, 1), (9, 2), (100, 3)])
def test_shares_are_all_blocks_in_their_order(num_blocks, threads):
    found = [index for blocks in shares.in_shares(list, num_blocks, threads) for index in blocks]
    assert found == list(range(num_blocks))


@pytest.mark.parametrize(
    ("dim", "num_components", "expected"), [(4, 1, True), (16, 1, False), (64, 3, False), (64, 4, True)]
)
def test_few_components_of_many_dimensions_are_not_worth_features(dim, num_components, expected):
    gmm = random_gmm(num_components=num_components, dim=dim)
    case = Case(gmm.sample(100), gmm.mixture())
    mixture = case.mixture._replace(root=torch.eye(dim, dtype=torch.float64).expand(num_components, dim, dim))
    assert form.served(sample_of(case), mixture).all() == expected
    assert_same_statistics(case)
