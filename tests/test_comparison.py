"""Pairs compared: paired errors, an order that errs as rarely as it says, and estimates that cannot bear one."""

from __future__ import annotations

import json
import math
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae import figures
from ppl_vae.cli.comparison import _in_words
from ppl_vae.evaluation.ranks import holm
from ppl_vae.report import ModelRow, to_json, to_markdown
from tests.pairs import DiscreteVAE, ModuleVAE, binary_rows, chi_square, scaled_guide, small_ppca
from tests.statistical import Z_MAX, assert_close
from tests.training import fresh


class Known(NamedTuple):
    value: np.ndarray
    stderr: np.ndarray
    trusted: np.ndarray
    is_exact: bool = False


def known(value, stderr=0.0, trusted=True):
    """An estimate made by hand."""
    value = np.asarray(value, dtype=float)
    return Known(value, np.full(value.shape, stderr), np.full(value.shape, trusted))


def compare(pairs, x, k=50, **options):
    return pv.compare(pairs, x, k, progress=False, **options)


def shifted(ppca, by):
    return pv.PPCA(ppca.loading, ppca.bias + by, float(ppca.scale))


# Numbers


def test_two_exact_pairs_are_a_paired_t_test():
    ppca = small_ppca()
    x, other = ppca.sample(60), shifted(ppca, 0.2)
    found = compare({"far": other, "near": ppca}, x)
    (difference,) = found.differences
    near, far = (pair.log_prob(x).numpy() for pair in (ppca, other))
    assert (difference.better, difference.worse) == ("near", "far") == found.names
    assert_close(difference.mean, (near - far).mean(), torch.float64, scale=1.0)
    assert_close(difference.stderr, stats.sem(near - far), torch.float64, scale=1.0)
    assert_close(difference.p_value, stats.ttest_rel(near, far).pvalue, torch.float64, scale=1e-3)
    assert difference.monte_carlo == 0


def test_the_error_of_a_difference_is_smaller_than_that_of_either_mean():
    ppca = small_ppca(20, 2)
    found = compare({"a": ppca, "b": shifted(ppca, 0.05)}, ppca.sample(500))
    assert 3 * found.differences[0].stderr < min(ll.population_stderr for ll in found.estimates.values())


def test_equal_pairs_have_the_same_noise_and_are_not_told_apart():
    ppca = small_ppca()
    found = compare({"one": scaled_guide(ppca, 1.4), "two": scaled_guide(ppca, 1.4)}, ppca.sample(100))
    (difference,) = found.differences
    assert (difference.mean, difference.stderr, difference.p_value) == (0.0, 0.0, 1.0)
    assert difference.monte_carlo > 0
    assert found.groups == (("one", "two"),)
    assert found.ranks == {"one": (1, 2), "two": (1, 2)}


def test_the_seed_is_that_of_all_pairs():
    ppca, x = small_ppca(), small_ppca().sample(20)
    pairs = {"one": scaled_guide(ppca, 1.4), "two": scaled_guide(ppca, 1.3)}
    found, other = compare(pairs, x, seed=4), compare(pairs, x, seed=5)
    for name, pair in pairs.items():
        alone = pv.log_likelihood(pair, x, 50, seed=4, num_draws=0, progress=False)
        assert np.array_equal(found.estimates[name].value, alone.value)
        assert not np.array_equal(other.estimates[name].value, alone.value)


def test_monte_carlo_error_is_that_of_the_chi_square():
    """Var p-hat / p^2 = chi^2 / K for each of two guides; the delta method sees it to a few percent at K = 10,000."""
    ppca, k, n = small_ppca(), 10_000, 30
    pairs = {"wide": scaled_guide(ppca, 1.5), "wider": scaled_guide(ppca, 2.0)}
    (difference,) = compare(pairs, ppca.sample(n), k).differences
    expected = np.sqrt((chi_square(1.5, 2) + chi_square(2.0, 2)) / (k * n))
    assert 0.9 < difference.monte_carlo / expected < 1.1


def test_holm_is_closed_testing():
    """Adjusted p of a hypothesis: the largest Bonferroni p of any set of hypotheses that it belongs to."""
    for p in np.random.default_rng(0).uniform(0, 0.4, (20, 5)):
        sets = [s for size in range(1, 6) for s in combinations(range(5), size)]
        closed = [max(min(1, len(s) * min(p[list(s)])) for s in sets if i in s) for i in range(5)]
        assert_close(holm(p), np.array(closed))


def test_pairs_without_and_with_finitely_many_latents_compare():
    pairs = {"discrete": fresh(make=DiscreteVAE), "none": pv.autoregressive.MADE(5, [8])}
    found = compare(pairs, binary_rows(20), 200)
    assert (found.estimates["none"].stderr == 0).all()
    assert "exact" in str(found)


def test_what_differs_by_rounding_is_a_tie():
    """W and W R give the same distribution, to 2e-16 nats, always with the same sign of the mean."""
    loading = torch.tensor([[1.0, 0.5], [0.3, 2.0], [0.7, -0.4]], dtype=torch.float64)
    bias = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    turn = torch.linalg.qr(torch.tensor([[0.3, 1.0], [-0.7, 0.2]], dtype=torch.float64))[0]
    one, turned = pv.PPCA(loading, bias, 0.5), pv.PPCA(loading @ turn, bias, 0.5)
    single = pv.PPCA(loading.float(), bias.float(), 0.5)
    x = one.sample(500)
    found = compare({"one": one, "turned": turned, "single": single}, x, 20)
    values = [found.estimates[name].value for name in ("one", "turned")]
    assert np.abs(values[0] - values[1]).max() > 0
    assert [d.p_value for d in found.differences] == [1.0] * 3
    assert found.ranks == dict.fromkeys(found.names, (1, 3))
    sure = compare({"one": one, "turned": turned, "worse": shifted(one, 0.3)}, x, 20)
    assert sure.ranks["worse"] == (3, 3)


def test_a_difference_above_rounding_counts():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=100)
    pairs = {"a": known(noise + 1e-4 * rng.uniform(size=100)), "b": known(noise)}
    assert pv.Comparison(pairs).ranks == {"a": (1, 1), "b": (2, 2)}
    assert pv.Comparison(pairs, rounding=1e-5).ranks == {"a": (1, 2), "b": (1, 2)}
    leans = np.where(np.arange(100) == 0, -2e-3, 5e-4)
    found = pv.Comparison({"a": known(noise + leans), "b": known(noise)}, rounding=1e-5)
    assert found.ranks == {"a": (1, 2), "b": (1, 2)}


def test_equal_differences_are_not_told():
    """A model that is surer than it should be is above the truth on the data where what it denies has not happened."""
    rng, wrong = np.random.default_rng(0), []
    for _ in range(300):
        heads = rng.random(100) < 0.99
        pairs = {str(p): known(np.where(heads, np.log(p), np.log1p(-p))) for p in (0.99, 0.9999)}
        wrong.append(pv.Comparison(pairs).ranks["0.9999"] == (1, 1))
    assert np.mean(wrong) <= 0.05  # 0.37 of these have nothing but heads
    noise = rng.normal(size=100)
    found = pv.Comparison({"a": known(noise + 0.5), "b": known(noise)})
    assert found.differences[0].p_value == 1.0


def test_equal_weights_are_not_called_exact():
    """The posterior has modes at -25 and 25, a guide is one of them: every weight is p(x) / 2."""
    modes = torch.tensor([-25.0, 25.0], dtype=torch.float64)

    def mixture():
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(2).double()), dist.Normal(modes, 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", mixture())
            pyro.sample("x", dist.Normal(z * 0, 1.0), obs=x)

    def one(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full_like(x, 25.0), 1.0))

    def both(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", mixture())

    x = torch.linspace(-1, 1, 20, dtype=torch.float64)
    found = compare({"one": pv.Pair(model, one), "both": pv.Pair(model, both)}, x, 100)
    assert found.exact == frozenset()
    text = str(found)
    assert "exact" not in text
    assert "(any mistake in it: probability at most 0.05, as long as no guide misses a mode)" in text
    sums = compare({"sum": fresh(make=DiscreteVAE), "none": pv.autoregressive.MADE(5, [8])}, binary_rows(20), 200)
    assert sums.exact == {"sum", "none"}
    assert str(sums).count("exact") == 2
    assert "misses a mode" not in str(sums)


# The order


def test_an_order_errs_as_rarely_as_it_says(seed: int):
    """Four pairs of the same mean: any two are told apart in at most 5 % of 300 repetitions; a shift is seen."""
    rng = np.random.default_rng(seed)
    wrong, seen = [], 0
    for _ in range(300):
        hard = rng.normal(size=(1, 40))
        values = hard + rng.normal(size=(4, 40))
        wrong.append(any(d.p_value <= 0.05 for d in pv.Comparison(_named(values)).differences))
        values[3] -= 2.5
        seen += pv.Comparison(_named(values)).ranks["3"] == (4, 4)
    assert np.mean(wrong) <= 0.05 + Z_MAX * np.sqrt(0.05 * 0.95 / len(wrong))
    assert np.mean(wrong) > 0.01  # nor so rarely that nothing could be told
    assert seen > 290


def _named(values):
    return {str(i): known(row) for i, row in enumerate(values)}


def test_ties_are_groups_and_ranks_are_ranges():
    rng = np.random.default_rng(0)
    near, noise = 0.001 * rng.normal(size=100), rng.normal(size=100)
    found = pv.Comparison({"c": known(noise - 5 - near), "a": known(noise), "b": known(noise + near)})
    assert found.groups == (found.names[:2], ("c",))
    assert found.ranks == {"a": (1, 2), "b": (1, 2), "c": (3, 3)}
    assert found.behind(found.names[0]) is None
    assert found.behind("c").better == found.names[0]
    assert "= joins pairs that cannot all be told apart" in str(found)


def test_the_bias_of_an_estimate_is_no_difference():
    """A guide that is wider makes the same model look worse by s^2 / 2; with enough data that would be significant."""
    rng = np.random.default_rng(0)
    truth, s = rng.normal(size=50_000), 0.2
    biased = known(truth - s**2 / 2 + s * rng.normal(size=truth.shape), s)
    found = pv.Comparison({"exact": known(truth), "wide": biased})
    assert stats.ttest_rel(truth, biased.value).pvalue < 1e-10
    assert found.differences[0].p_value > 0.01


def test_a_guide_that_fails_on_some_data_does_not_rank_the_model_lower():
    ppca = small_ppca(6, 2)
    x = ppca.sample(200)

    def guide(x):
        with pyro.plate("data", len(x)):
            q = ppca.posterior(x)
            narrow = torch.where(x[:, 0] > 0.5, 0.1, 1.0)[:, None, None]
            pyro.sample("z", dist.MultivariateNormal(q.loc, scale_tril=narrow * q.scale_tril))

    found = compare({"exact": ppca, "fails": pv.Pair(ppca.model, guide)}, x, 500)
    low = found.estimates["exact"].value - found.estimates["fails"].value
    assert low.mean() > 5 * stats.sem(low) > 0  # a t-test alone would say that the model is worse
    assert 0 < found.share_untrusted("fails") < 0.5
    assert found.groups == (("exact", "fails"),)
    assert "data are untrusted, rather too low: what another pair is above it there does not count, nor" in str(found)


def test_lower_bounds_do_not_rank_each_other():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=100)
    low, high = known(noise, 0.1, trusted=False), known(noise + 3, 0.1, trusted=False)
    found = pv.Comparison({"low": low, "high": high, "sure": known(noise + rng.uniform(size=100))})
    assert found.ranks == {"high": (1, 2), "low": (1, 3), "sure": (2, 3)}  # a bound may well lie above what is sure
    assert found.groups == (("sure",),)
    assert found.unplaced == ("high", "low")
    text = str(found)
    assert "high, low: mostly untrusted, not placed, for lower bounds cannot rank each other" in text
    assert "≥ " in text


def test_one_datum_and_one_sample_rank_nothing():
    for n in (1, 5):
        found = compare({"a": fresh(0), "b": fresh(1)}, binary_rows(n), 1)
        assert len({found.ranks[name] for name in "ab"} - {(1, 2)}) == 0
        assert "nan" not in str(found)


def test_the_level_is_a_coverage_as_everywhere():
    """What is told at a level is told at each lower one; 0.99 asks for more than 0.95."""
    noise = np.random.default_rng(0).normal(size=100)
    pairs = {"a": known(noise + 0.25 * noise[::-1] + 0.04), "b": known(noise)}
    p_value = pv.Comparison(pairs).differences[0].p_value
    assert 0.01 < p_value < 0.05
    told = [pv.Comparison(pairs, level).ranks["a"] == (1, 1) for level in (0.5, 0.95, 0.99)]
    assert told == [True, True, False]
    assert "probability at most 0.05" in str(pv.Comparison(pairs))


# What it is given and gives


def test_arviz_gets_all_estimates():
    arviz = pytest.importorskip("arviz")
    ppca = small_ppca()
    found = compare({"a": shifted(ppca, 1.0), "b": ppca}, ppca.sample(6))
    group = found.to_arviz()["constant_data"]
    assert arviz.__version__
    assert list(group["model"].values) == ["b", "a"]
    for i, name in enumerate(found.names):
        np.testing.assert_array_equal(group["value"].values[i], found.estimates[name].value)
        np.testing.assert_array_equal(group["trusted"].values[i], found.estimates[name].trusted)
    assert_close(float(group["behind_best"].values[1].mean()), found.differences[0].mean, torch.float64, scale=1.0)


def test_the_table_has_a_row_for_each_pair_the_best_first():
    ppca = small_ppca()
    lines = str(compare({"second": shifted(ppca, 2.0), "first": ppca}, ppca.sample(50))).splitlines()
    assert "50 data" in lines[0]
    assert [line.split()[:2] for line in lines[2:4]] == [["1", "first"], ["2", "second"]]
    assert lines[4].startswith("order: first > second (any mistake in it: probability at most 0.05, as long")


def test_a_datum_of_probability_zero_makes_a_pair_the_worse_one():
    """Its mean is minus infinity; a t-test of infinite differences told nothing."""
    good = np.linspace(-1.0, -0.5, 50)
    never, twice = good + 0.7, good + 0.9
    never[3], twice[[3, 4]] = -np.inf, -np.inf
    found = pv.Comparison({"good": known(good), "never": known(never), "twice": known(twice)})
    assert found.ranks == {"good": (1, 1), "never": (2, 3), "twice": (2, 3)}
    assert [d.mean for d in found.differences[:2]] == [math.inf, math.inf]
    assert math.isnan(found.differences[2].mean)
    assert "order: good > never = twice" in str(found)
    one = pv.Comparison({"good": known(good[3:4]), "never": known(never[3:4])})
    assert one.groups == (("good",), ("never",))


def test_pairs_that_both_exclude_a_datum_are_shown_as_that(tmp_path):
    """Their difference there is no number: exports warned of it, the table said nan, and the figure nothing."""
    good = np.linspace(-1.0, -0.5, 8)
    never, twice = good + 0.7, good + 0.9
    never[3], twice[[3, 4]] = -np.inf, -np.inf
    both = pv.Comparison({"never": known(never), "twice": known(twice)})
    assert both.ranks == {"never": (1, 2), "twice": (1, 2)}
    assert "both -inf" in str(both)
    assert "nan" not in str(both)
    assert _in_words(both.differences[0]).startswith("never and twice both have mean -inf")
    behind = both.to_arviz()["constant_data"]["behind_best"].values
    assert behind[0].tolist() == [0.0] * 8
    np.testing.assert_allclose(behind[1], [-0.2, -0.2, -0.2, 0.0, np.inf, -0.2, -0.2, -0.2])
    all_three = pv.Comparison({"good": known(good), "never": known(never), "twice": known(twice)})
    figure = figures.rank_intervals(all_three)
    figure.savefig(tmp_path / "ranks.png")
    words = [text for text in figure.axes[0].texts if text.get_text()]
    assert ["inf" in text.get_text() for text in words] == [False, True, True]
    size = figure.get_window_extent().bounds
    assert all(0 <= text.get_window_extent().x0 <= size[2] for text in words)
    order = {"differences": [d._asdict() for d in both.differences]}
    rows = [
        ModelRow(model=name, num_parameters=3, log_likelihood=both.estimates[name].value.mean()) for name in both.names
    ]
    read = json.loads(to_json(rows, 1, order))
    assert (read["differences"][0]["mean"], read["rows"][1]["log_likelihood"]) == ("nan", "-inf")
    assert "-inf" in to_markdown(rows, 1)


def test_options_and_estimates_are_checked():
    with pytest.raises(ValueError, match="level: expected a probability"):
        compare({"a": ModuleVAE()}, binary_rows(4), level=1.0)
    with pytest.raises(pv.DataError, match=r"all of the same data, found .'a': 3, 'b': 4"):
        pv.Comparison({"a": known(np.zeros(3)), "b": known(np.zeros(4))})
    with pytest.raises(pv.DataError, match="found none"):
        pv.Comparison({})
