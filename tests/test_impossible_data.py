"""Data of probability 0: minus infinity where that is log p(x) itself, an error where weights alone say so."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae import figures
from ppl_vae.errors import EstimateError
from ppl_vae.rundir import read_arrays, read_evaluation
from tests.commands import succeed

X = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])


def coin(one: float) -> pv.Pair:
    """No latents; x = 1 with probability `one`."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(logits=torch.tensor([1 - one, one]).log()), obs=x)

    return pv.Pair(model, lambda x: None)


def two_coins(first: float, second: float, share: float = 0.5) -> pv.Pair:
    """The first or the second of two coins, which the guide takes for the second with probability `share`."""
    of_coin = torch.tensor([first, second])

    def model(x):
        with pyro.plate("data", len(x)):
            one = of_coin[pyro.sample("c", dist.Categorical(torch.tensor([0.5, 0.5])))]
            pyro.sample("x", dist.Categorical(logits=torch.stack([1 - one, one], -1).log()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.tensor([1 - share, share]).expand(len(x), 2)))

    return pv.Pair(model, guide)


IMPOSSIBLE = {"no latents": coin(0.0), "summed": two_coins(0.0, 0.0)}


def evaluate(pair: pv.Pair, k: int = 20, **options) -> pv.LogLikelihood:
    return pv.log_likelihood(pair, X, k, progress=False, **options)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_exact_zero_is_minus_infinity(name: str):
    found = evaluate(IMPOSSIBLE[name])
    np.testing.assert_allclose(found.value, [0.0, 0.0, -np.inf, -np.inf, 0.0], atol=1e-6)
    np.testing.assert_array_equal(found.value, pv.log_evidence(IMPOSSIBLE[name], X, progress=False))
    assert (found.stderr == 0).all()
    assert found.is_exact
    assert (found.verdict == "reliable").all()
    assert found.mean == -math.inf
    assert found.interval() == (-math.inf, -math.inf)
    np.testing.assert_array_equal(found.intervals(), [found.value, found.value])
    assert str(found).startswith("log p(x) = -inf nats per datum: 2 of 5 have probability 0, exactly (5 data")
    agreed = pv.agreement(found, found.value)
    assert (agreed.mean_error, agreed.coverage) == (0.0, 1.0)
    again = pv.escalate(found, IMPOSSIBLE[name], X, progress=False)
    np.testing.assert_array_equal(again.value, found.value)


def test_zero_weights_without_latents_are_no_samples_outside_the_support():
    assert not evaluate(coin(0.0)).zero_weights.any()


def test_probs_of_zero_exclude_nothing_in_torch():
    """What is exact is what distributions say; documented, for data that a decoder is sure of rely on it."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(torch.zeros(len(x))), obs=x)

    found = evaluate(pv.Pair(model, lambda x: None))
    np.testing.assert_allclose(found.value, [0.0, 0.0, -15.9424, -15.9424, 0.0], atol=1e-3)
    assert found.is_exact


@pytest.mark.parametrize("target", [None, 0.1])
def test_of_a_value_never_drawn_the_sum_knows(target: float | None):
    """No draw allows a one, of which the sum knows all the same; there are no draws of its posterior."""
    pair = two_coins(0.0, 0.6, share=1e-12)
    found = evaluate(pair, num_draws=0, target_stderr=target)
    np.testing.assert_allclose(found.value, np.log([0.7, 0.7, 0.3, 0.3, 0.7]), rtol=1e-6)
    assert (found.is_exact, found.ess[2]) == (True, 0.0)
    with pytest.raises(EstimateError, match="row 2: all 20 weights are zero"):
        evaluate(pair)


def test_weights_alone_do_not_tell_a_zero():
    """One sample cannot go through both values."""
    with pytest.raises(EstimateError, match="row 2: all 1 weights are zero"):
        evaluate(IMPOSSIBLE["summed"], k=1)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_pair_that_excludes_a_datum_is_the_worse_one(name: str):
    arviz = pytest.importorskip("arviz")
    assert arviz.__version__
    pairs = {"zero": IMPOSSIBLE[name], "half": coin(0.5)}
    found = pv.compare(pairs, X, 20, progress=False)
    assert found.ranks == {"half": (1, 1), "zero": (2, 2)}
    assert "order: half > zero (any mistake" in str(found)
    behind = found.to_arviz()["constant_data"]["behind_best"].values
    np.testing.assert_array_equal(np.isposinf(behind[1]), [False, False, True, True, False])


def test_the_command_writes_and_compares_minus_infinity(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """A record of it could not be written, nor its figure drawn."""
    size = len(read_arrays(copy, ("value",))[0])
    value = np.linspace(-3.0, -1.0, size)
    value[[1, 4]] = -np.inf
    exact = pv.ExactLogLikelihood.of(value, 3)
    monkeypatch.setattr("ppl_vae.cli.evaluating.exact_log_likelihood", lambda *args, **options: exact)
    text = succeed("evaluate", copy, "--method", "exact", "--limit", str(size))
    assert f"log p(x) = -inf nats per datum: 2 of {size} have probability 0, exactly" in text
    assert "bits per dimension inf" in text
    assert "nan" not in text
    assert read_evaluation(copy).mean is None
    np.testing.assert_array_equal(read_arrays(copy, ("value",))[0], value)
    assert "-inf exact" in succeed("compare", copy)
    (row,) = json.loads(succeed("compare", copy, "--format", "json"))["rows"]
    assert row["log_likelihood"] == "-inf"


def test_a_histogram_counts_what_it_cannot_draw():
    values = np.linspace(-3.0, -1.0, 50)
    values[[1, 4]] = -np.inf
    axes = figures.log_likelihood_histogram(values).axes[0]
    assert sum(bar.get_height() for bar in axes.containers[0]) == 48
    assert "mean −inf nats: 2 of 50 data have probability 0" in axes.get_legend_handles_labels()[1]
    figures.log_likelihood_histogram(np.full(3, -np.inf)).canvas.draw()
