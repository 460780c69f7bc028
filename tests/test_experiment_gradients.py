"""Moments of gradients that experiments report, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

import ppl_vae as pv
from experiments.common import gradients
from experiments.common.gradients import Moments
from experiments.gradient_estimators import slopes
from experiments.iwae_table import PAPER, cells, schedule
from ppl_vae.compile import capture
from ppl_vae.recipes import bernoulli_vae
from tests.statistical import assert_close, assert_mean


def test_moments_are_those_of_numpy():
    vectors = np.random.default_rng(0).normal(1.0, 2.0, (50, 3))
    direction = np.array([1.0, 2.0, -1.0])
    moments = Moments(direction)
    for vector in vectors:
        moments.add(vector)
    assert_close(moments.mean, vectors.mean(0))
    assert_close(moments.variance, vectors.var(0, ddof=1).sum())
    assert_close(np.array(moments.projections), vectors @ direction / 6.0)


def test_the_squared_norm_is_unbiased():
    """Of a mean of (0.3, 0, 0) with unit noise; the norm of the mean of 10 draws alone would give 0.39."""
    generator = np.random.default_rng(1)
    found = []
    for _ in range(3_000):
        moments = Moments()
        for vector in generator.normal([0.3, 0.0, 0.0], 1.0, (10, 3)):
            moments.add(vector)
        found.append(moments.squared_norm)
    assert_mean(found, 0.09, effect=0.3)


def test_the_time_is_that_of_compiled_code(monkeypatch: pytest.MonkeyPatch):
    """Validation, which a fit turns off, looks at values: with it nothing could be captured."""
    graph = lambda function, examples, pair: capture(function, *examples[0]) and function  # noqa: E731 (no compiler)
    monkeypatch.setattr(gradients, "compile_function", graph)
    x = pv.data.load("digits").train[:4].round()
    vae = bernoulli_vae(x, 2, [3])
    for compile in (True, False):
        found = gradients.timed(vae, pv.ELBO(), x, list(vae.encoder.parameters()), 1, compile)
        assert found.compiled is compile


def test_slopes_are_those_of_powers():
    rows = [
        {"estimator": name, "data": "digits", "seed": 0, "K": k, "snr": 3.0 * k**power}
        for name, power in (("DReG", 0.5), ("pathwise", -0.5))
        for k in (1, 10, 100, 1000)
    ]
    found = slopes(rows)
    assert_close(np.array([found["DReG, digits"].mean, found["pathwise, digits"].mean]), np.array([0.5, -0.5]))


def test_the_paper_s_protocol_has_its_stages():
    """3^i epochs at 0.001 x 10^(-i/7), i = 0, ..., 7: 3,280 in all; ten trainings."""
    factor = schedule("paper", PAPER.epochs, 1)
    lengths, epoch = [3**i for i in range(8)], 0
    assert sum(lengths) == PAPER.epochs
    for i, length in enumerate(lengths):
        for e in (epoch, epoch + length - 1):
            assert_close(factor(e), 10 ** (-i / 7))
        epoch += length
    assert len(cells(PAPER)) == 10
