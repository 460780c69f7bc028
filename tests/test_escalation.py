"""Escalation against exact evidence: who goes which way, and that what comes out is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pairs import DiscreteVAE, ModuleVAE, binary_rows, of_two_kinds, scaled_guide, small_ppca
from running import estimate
from test_verdict import positive_latent

import ppl_vae as pv
from ppl_vae.checking import check
from ppl_vae.evaluation import escalation
from ppl_vae.evaluation.refining import refine
from ppl_vae.pair import as_pair

pytestmark = pytest.mark.usefixtures("float64")

CPU = torch.device("cpu")


def refined(pair, x, k):
    pair = as_pair(pair)
    with torch.no_grad():
        return refine(pair, (x,), check(pair, (x,)).layout, 0, k, 0, CPU)


@pytest.mark.parametrize(("s", "dim"), [(0.4, 2), (0.6, 10), (2.5, 10)])
def test_a_fitted_proposal_mends_a_guide_too_narrow_or_too_wide(s, dim):
    ppca = small_ppca(dim + 2, dim)
    x = ppca.sample(10, seed=1)
    found = refined(scaled_guide(ppca, s), x, 1000)
    assert (np.abs(found.value - ppca.log_prob(x).numpy()) <= 5.91 * found.stderr).all()
    assert found.stderr.max() < 0.06
    assert found.khat.max() < 0.5


def test_a_fitted_proposal_of_a_constrained_latent():
    x = torch.tensor([-1.0, 0.3, 2.0])
    found = refined(positive_latent(0.4), x, 1000)
    exact = torch.distributions.Normal(0.0, 1.25**0.5).log_prob(x).numpy()
    assert (np.abs(found.value - exact) <= 5.91 * found.stderr).all()
    assert found.stderr.max() < 0.04


def test_a_fitted_proposal_of_a_neural_vae_against_quadrature():
    vae, x = ModuleVAE(), binary_rows(6)
    exact = pv.log_evidence(vae, x, progress=False)
    found = refined(vae, x, 2000)
    assert (np.abs(found.value - exact) <= 5.91 * found.stderr).all()
    assert found.stderr.max() < 0.05


def test_only_what_cannot_be_trusted_is_estimated_anew():
    ppca = small_ppca()
    pair, x = of_two_kinds(ppca, 0.4), ppca.sample(60, seed=1)
    ll = estimate(pair, x, 200, num_draws=0)
    found = pv.escalate(ll, pair, x, progress=False)
    kept = ll.verdict != "unreliable"
    assert (kept == (x[:, 0].numpy() > 0)).all()
    assert (found.method[kept] == "guide").all()
    np.testing.assert_array_equal(found.value[kept], ll.value[kept])
    assert (found.method[~kept] != "guide").all()
    assert (found.value[~kept] != ll.value[~kept]).all()
    assert (found.verdict != "unreliable").all()
    exact = ppca.log_prob(x).numpy()
    mended = found.method == "refined proposal"
    assert mended.any()
    assert (np.abs(found.value - exact)[mended] <= 5.91 * found.stderr[mended]).all()
    assert np.abs(found.value - exact)[~kept].mean() < 0.5 * np.abs(ll.value - exact)[~kept].mean()
    low, high = found.interval(1 - 1e-6)
    assert low < found.mean < high
    assert sum(n for by_word in found.counts().values() for n in by_word.values()) == 60
    assert f"{(~kept).sum()} of them escalated" in str(found)
    assert "refined proposal" in str(found)


def test_reliable_may_be_asked_for():
    ppca = small_ppca()
    pair, x = scaled_guide(ppca, 0.7), ppca.sample(20, seed=1)
    ll = estimate(pair, x, 300, num_draws=0)
    found = pv.escalate(ll, pair, x, until="reliable", progress=False)
    assert (found.method != "guide").sum() >= (ll.verdict != "reliable").sum() > 0
    assert (found.verdict == "reliable").all()


def test_annealing_is_the_last_resort(monkeypatch):
    ppca = small_ppca()
    pair, x = scaled_guide(ppca, 0.4), ppca.sample(5, seed=1)
    ll = estimate(pair, x, 200, num_draws=0)
    fit = escalation._refined

    def hopeless(*arguments):
        found = fit(*arguments)
        return found._replace(verdict=np.full(len(found.value), "unreliable"))

    monkeypatch.setattr(escalation, "_refined", hopeless)
    found = pv.escalate(ll, pair, x, factor=1, annealing=pv.Annealing(16, 50, 5), progress=False)
    last = found.method == "annealing"
    assert last.any()
    assert (found.verdict[last] == "noisy").all()
    assert (np.abs(found.value - ppca.log_prob(x).numpy())[last] <= 5.91 * found.stderr[last] + 0.02).all()


def test_what_cannot_be_escalated():
    ppca = small_ppca()
    x = ppca.sample(5)
    ll = estimate(ppca, x, 50)
    with pytest.raises(pv.DataError, match="expected the 5 data that were evaluated, found 4"):
        pv.escalate(ll, ppca, x[:4])
    with pytest.raises(ValueError, match="until: expected 'noisy' or 'reliable', found 'sure'"):
        pv.escalate(ll, ppca, x, until="sure")
    with pytest.raises(ValueError, match="factor: expected at least 1"):
        pv.escalate(ll, ppca, x, factor=0)
    discrete, rows = DiscreteVAE(), binary_rows(5)
    few = estimate(discrete, rows, 2)
    with pytest.raises(pv.PairError, match=r"'z'.*log_evidence"):
        pv.escalate(few, discrete, rows, factor=1, progress=False)
