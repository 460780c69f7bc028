"""Scores of codes against brute-force formulas, other implementations, and cases whose score is known."""

from __future__ import annotations

from itertools import combinations
from math import log

import numpy as np
import pytest
import torch
from scipy import stats

from ppl_vae.errors import DataError
from ppl_vae.latents import (
    active_units,
    cluster_agreement,
    dci,
    linear_probe,
    mig,
    mutual_information,
    neighbour_accuracy,
    sap,
)
from ppl_vae.latents.disentanglement import _balanced_accuracy, _scores
from tests.statistical import assert_close, assert_mean, assert_within


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def factors() -> np.ndarray:
    """Every combination of three factors, 20 times."""
    return np.repeat(np.indices((3, 4, 5)).reshape(3, -1).T, 20, axis=0)


# Usage and classes


def test_a_unit_is_active_where_its_mean_varies(rng: np.random.Generator):
    means = rng.normal(size=(1000, 3))
    means = (means - means.mean(0)) / means.std(0) * np.sqrt([1.0, 0.0099, 0.0101])
    assert active_units(means).tolist() == [True, False, True]
    assert active_units(means, threshold=2.0).sum() == 0
    with pytest.raises(
        DataError, match=r"noise: expected a variance for each of the means \(1000, 3\), found .* \(7, 3\)"
    ):
        active_units(means, noise=np.ones((7, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_taken_with_their_gradient(dtype: torch.dtype):
    codes, labels = torch.tensor([[-1.0], [1.0], [2.0]], dtype=dtype, requires_grad=True), torch.tensor([0, 1, 1])
    assert active_units(2 * codes).tolist() == [True]
    assert neighbour_accuracy(codes, labels, 2 * codes, labels, 1) == 1.0


@pytest.mark.parametrize(
    ("codes", "match"),
    [
        ([["a"], ["b"]], "real numbers, found dtype <U1"),
        ([[1.0], [2.0, 3.0]], "means: expected an array of real numbers: "),
        (np.ones((2, 2), complex), "real numbers, found dtype complex128"),
    ],
)
def test_codes_that_are_no_real_numbers_are_refused(codes, match: str):
    with pytest.raises(DataError, match=match):
        active_units(codes)


def test_linear_probe_is_ridge_regularised_softmax_regression(rng: np.random.Generator):
    """The same convex problem, solved by torch."""
    z, test = rng.normal(size=(150, 4)) * [1, 5, 0.1, 2], rng.normal(size=(200, 4)) * [1, 5, 0.1, 2]
    weights = rng.normal(size=(4, 3)) / np.array([[1], [5], [0.1], [2]])
    y, test_y = ((x @ weights + rng.gumbel(size=(len(x), 3))).argmax(1) for x in (z, test))
    scaled, scaled_test = (torch.from_numpy((x - z.mean(0)) / z.std(0)) for x in (z, test))
    w, b = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([w.requires_grad_(), b.requires_grad_()], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = scaled @ w + b
        value = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="sum") + 0.5 * (w**2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    expected = float(((scaled_test @ w + b).argmax(1).numpy() == test_y).mean())
    assert_within(
        linear_probe(z, y, test, test_y), expected, absolute=1 / 200, reason="one datum on the boundary, to rounding"
    )


def test_neighbours_vote(rng: np.random.Generator):
    z, test = rng.normal(size=(60, 2)), rng.normal(size=(40, 2))
    y, test_y = rng.integers(3, size=60), rng.integers(3, size=40)
    right = 0
    for point, label in zip(test, test_y, strict=True):
        nearest = sorted(range(60), key=lambda i: np.square(z[i] - point).sum())[:4]
        votes = [sum(y[i] == c for i in nearest) for c in range(3)]
        right += votes.index(max(votes)) == label
    assert_close(neighbour_accuracy(z, y, test, test_y, 4), right / 40)


def pairs_alike(a: np.ndarray, b: np.ndarray) -> float:
    """Adjusted Rand index, pair by pair."""
    pairs = list(combinations(range(len(a)), 2))
    same_a, same_b = ([x[i] == x[j] for i, j in pairs] for x in (a, b))
    both, by_chance = sum(map(all, zip(same_a, same_b, strict=True))), sum(same_a) * sum(same_b) / len(pairs)
    return (both - by_chance) / ((sum(same_a) + sum(same_b)) / 2 - by_chance)


def information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information by scipy's entropies of counts."""
    joint = np.array([[np.sum((a == i) & (b == j)) for j in np.unique(b)] for i in np.unique(a)])
    return float(stats.entropy(joint.sum(1)) + stats.entropy(joint.sum(0)) - stats.entropy(joint.ravel()))


def test_cluster_agreement_is_that_of_clusters_seen_with_the_eye(rng: np.random.Generator):
    """Three heaps far apart, whose labels are partly wrong."""
    heap = np.repeat([0, 1, 2], [10, 20, 30])
    labels = np.where(rng.random(60) < 0.3, rng.permutation(heap), heap)
    found = cluster_agreement(10.0 * heap[:, None] + rng.normal(size=(60, 2)), labels)
    assert_close(found.adjusted_rand, pairs_alike(heap, labels))
    entropies = [stats.entropy(np.bincount(x)) for x in (heap, labels)]
    assert_close(found.normalised_mutual_information, information(heap, labels) / np.mean(entropies))


# Disentanglement


def test_mutual_information_is_that_of_counts(rng: np.random.Generator, factors: np.ndarray):
    codes = factors[:, [2, 0]] + rng.normal(size=(len(factors), 2))
    found = mutual_information(codes, factors, num_bins=7)
    for u, code in enumerate(codes.T):
        low, width = code.min(), (code.max() - code.min()) / 7
        bins = np.minimum((code - low) // width, 6)
        for v, factor in enumerate(factors.T):
            assert_close(found[u, v], information(bins, factor), scale=1.0)


def test_mig_is_the_gap_over_the_entropy(rng: np.random.Generator, factors: np.ndarray):
    codes = factors @ rng.normal(size=(3, 4)) + rng.normal(size=(len(factors), 4))
    gaps = []
    for v, size in enumerate((3, 4, 5)):
        second, first = sorted(mutual_information(codes, factors)[:, v])[-2:]
        gaps.append((first - second) / log(size))
    assert_close(mig(codes, factors), np.mean(gaps))


def test_sap_is_the_gap_of_squared_correlations(rng: np.random.Generator, factors: np.ndarray):
    codes = factors @ rng.normal(size=(3, 4)) + rng.normal(size=(len(factors), 4))
    squared = np.array([[stats.pearsonr(z, v).statistic ** 2 for v in factors.T] for z in codes.T])
    best = np.sort(squared, 0)
    assert_close(sap(codes, factors), (best[-1] - best[-2]).mean())


def test_sap_of_categories_counts_values_alike(rng: np.random.Generator):
    """Two codes and two factors; one threshold, the best of all that there are."""
    v = np.repeat([0, 1], [100, 20])
    codes = np.stack([v + 0.4 * rng.normal(size=120), rng.normal(size=120)], 1)

    def best(code: np.ndarray) -> float:
        cuts = (np.sort(code)[1:] + np.sort(code)[:-1]) / 2
        right = [((code[v == 1] > c).mean() + (code[v == 0] <= c).mean()) / 2 for c in cuts]
        return max(max(right), 1 - min(right))

    for code in codes.T:
        reached = _balanced_accuracy(code, v)
        assert best(code) - 0.05 <= reached <= best(code)  # the tree's threshold is the best by impurity
    expected = _balanced_accuracy(codes[:, 0], v) - _balanced_accuracy(codes[:, 1], v)
    assert_close(sap(codes, np.stack([v, v], 1), categorical=[0, 1]), expected)


def test_dci_scores_are_entropies_of_importances(rng: np.random.Generator):
    """The formulas with scipy's entropies, on importances with a code that matters for nothing."""
    r = rng.exponential(size=(4, 3))
    r[2] = 0.0
    per_code = [1 - stats.entropy(row, base=3) for row in r[[0, 1, 3]]]
    found = _scores(r, 0.5)
    assert_close(found.disentanglement, np.average(per_code, weights=r[[0, 1, 3]].sum(1)))
    assert_close(found.completeness, np.mean([1 - stats.entropy(column, base=4) for column in r.T]))


def test_a_perfect_code_has_perfect_scores(factors: np.ndarray):
    """Codes in another order and on another scale, one of them useless."""
    codes = np.column_stack([factors * [1.0, -2.0, 0.5], np.zeros(len(factors))])[:, [3, 1, 0, 2]]
    assert_close(mig(codes, factors), 1.0)
    assert_close(sap(codes, factors), 1.0)
    assert_close(np.array(dci(codes, factors)), np.ones(3))


def test_a_duplicated_code_has_no_gap_and_is_half_complete(factors: np.ndarray):
    """The case by which Locatello et al. (2019) test their scores; theirs have to reach the same values within 0.1."""
    codes = np.hstack([factors, factors]).astype(float)
    found = dci(codes, factors)
    assert_close(mig(codes, factors), 0.0, scale=1.0)
    assert_close(sap(codes, factors), 0.0, scale=1.0)
    assert_close(found.disentanglement, 1.0)
    reason = "trees choose between equal codes at random; two codes of six have entropy log 2"
    assert_within(found.completeness, 1 - log(2) / log(6), absolute=0.05, reason=reason)


def test_rotated_codes_are_informative_but_not_disentangled(factors: np.ndarray):
    mixed = np.array([[2.0, -2.0, 1.0], [1.0, 2.0, 2.0], [2.0, 1.0, -2.0]]) / 3
    scaled = (factors - factors.mean(0)) / factors.std(0)
    found = dci(scaled @ mixed, factors)
    assert mig(scaled @ mixed, factors) < 0.2
    assert sap(scaled @ mixed, factors) < 0.2
    assert found.disentanglement < 0.4
    assert found.informativeness > 0.9


def test_codes_of_something_else_know_nothing(factors: np.ndarray):
    """Codes that run through all their values for every combination of the factors."""
    codes = np.tile(np.indices((4, 5)).reshape(2, -1).T.astype(float), (60, 1))
    assert_close(mutual_information(codes, factors), np.zeros((2, 3)), scale=1.0)
    assert_close(mig(codes, factors), 0.0, scale=1.0)
    assert_close(sap(codes, factors), 0.0, scale=1.0)
    assert_close(sap(codes, factors, categorical=[0, 1, 2]), 0.0, scale=1.0)
    assert dci(np.zeros((len(factors), 2)), factors).disentanglement == 0.0


def test_noise_informs_by_chance_only(rng: np.random.Generator):
    data = [(rng.normal(size=(200, 3)), rng.integers([2, 4], size=(200, 2))) for _ in range(30)]
    assert_mean([dci(*both, seed).informativeness for seed, both in enumerate(data)], (1 / 2 + 1 / 4) / 2, effect=0.1)


def test_scores_know_neither_scale_nor_rounding_of_a_code(rng: np.random.Generator, factors: np.ndarray):
    """A code beyond float32, a tiny one, and one whose last bit tells a factor."""
    codes = factors + rng.normal(size=factors.shape)
    scale, plain = np.ldexp(1.0, [200, 0, -300]), np.column_stack([codes, np.full(len(codes), 0.3)])
    odd = np.column_stack([codes * scale, np.where(factors[:, 0] == 0, 0.3, np.nextafter(0.3, 1.0))])
    for score in (mig, sap, dci, lambda z, v: sap(z, v, [0, 1])):
        assert score(odd, factors) == score(plain, factors)
    assert (mutual_information(odd, factors)[3] == 0.0).all()


def test_seeds_are_whole_numbers_of_any_size(factors: np.ndarray):
    codes = factors + np.random.default_rng(0).normal(size=factors.shape)
    assert dci(codes, factors, seed=2**32) == dci(codes, factors, seed=2**32) != dci(codes, factors, seed=0)
    assert cluster_agreement(codes, factors[:, 0], seed=2**70).adjusted_rand < 1.0


@pytest.mark.parametrize(
    ("codes", "factors", "match"),
    [
        (np.ones((4, 2)), np.ones((3, 2), int), "factors"),
        (np.ones((4, 2)), np.ones((4, 2)), "whole numbers"),
        (np.ones((4, 2)), np.ones((4, 2), int), "factor 0"),
        (np.ones((4, 1)), np.ones((4, 2), int), "two codes"),
        (np.full((4, 2), np.nan), np.ones((4, 2), int), "codes, row 0"),
        (np.full((4, 2), 1e200), np.ones((4, 2), int), "codes, row 0: expected numbers of size .* 1e.200: rescale"),
    ],
)
@pytest.mark.parametrize("score", [mig, sap, dci])
def test_what_cannot_be_scored_is_an_error(score, codes: np.ndarray, factors: np.ndarray, match: str):
    with pytest.raises(DataError, match=match):
        score(codes, factors)


def test_labels_of_other_data_are_an_error():
    with pytest.raises(DataError, match="labels"):
        neighbour_accuracy(np.ones((4, 1)), np.ones(5, int), np.ones((4, 1)), np.ones(4, int))


@pytest.mark.parametrize(
    ("score", "error", "match"),
    [
        (lambda z, y: linear_probe(z, 0 * y, z, y), DataError, "labels: expected at least two classes"),
        (lambda z, y: linear_probe(z, y, z[:, :1], y), DataError, "test_codes: expected 2 codes a datum .* found 1"),
        (lambda z, y: neighbour_accuracy(z, y, z, y, 9), DataError, "codes: expected at least num_neighbours = 9 rows"),
        (lambda z, y: neighbour_accuracy(z, y, z, y, 2.5), ValueError, "num_neighbours: expected a whole number"),
        (lambda z, y: mutual_information(z, y[:, None], 1), ValueError, "num_bins: expected at least 2"),
        (lambda z, y: sap(z, np.stack([y, y], 1), [2]), ValueError, "categorical: expected columns of the 2 factors"),
        (lambda z, y: sap(z, np.stack([y, y], 1), [True]), ValueError, "categorical: expected a whole .* found True"),
        (lambda z, y: sap(z, np.stack([y, y], 1), [1.0]), ValueError, "categorical: expected a whole .* found 1.0"),
        (lambda z, y: sap(z, np.stack([y, y], 1), 0), ValueError, "categorical: expected a list of columns .* found 0"),
        (lambda z, y: linear_probe(z * 1e200, y, z, y), DataError, "codes, row .*: rescale them"),
        (lambda z, y: neighbour_accuracy(z, y, z * 1e200, y), DataError, "test_codes, row .*: rescale them"),
        (lambda z, y: cluster_agreement(z * 1e200, y), DataError, "codes, row .*: rescale them"),
    ],
)
def test_what_has_no_meaning_is_refused(score, error, match: str, rng: np.random.Generator):
    with pytest.raises(error, match=match):
        score(rng.normal(size=(8, 2)), np.arange(8) % 2)
