"""Escalation against exact evidence: who goes which way, and that what comes out is right."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.checking import check
from ppl_vae.evaluation import escalation, refining
from ppl_vae.evaluation.identity import signatures
from ppl_vae.evaluation.path import Path
from ppl_vae.evaluation.verdict import Misses
from ppl_vae.pair import as_pair
from ppl_vae.rng import seeded
from tests.pairs import (
    ModuleVAE,
    binary_rows,
    cut_off,
    of_two_kinds,
    positive_latent,
    scaled_guide,
    small_ppca,
)
from tests.running import estimate, refined_block
from tests.statistical import assert_estimates, assert_mean, assert_within

pytestmark = pytest.mark.usefixtures("float64")

CPU = torch.device("cpu")


def refined(pair, x, k):
    return refined_block(pair, x, k).summary


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


def test_a_sample_without_a_density_is_an_error_with_its_site():
    """Half of the posterior is where the model has no number: it had counted as zero, 0.3 nats too low."""
    with pytest.raises(pv.EstimateError, match=r"row [01]: .*found nan at .*site 'rule' of the model is none there"):
        refined(cut_off(1.5, float("nan")), torch.full((2,), 2.0), 1000)
    found = refined(cut_off(1.5, -torch.inf), torch.full((10,), 2.0), 1000)
    loc, scale = 2.0 * 0.8, 0.2**0.5
    exact = stats.norm.logpdf(2.0, 0, 1.25**0.5) + stats.norm.logcdf((1.5 - loc) / scale)
    assert_estimates(found.value, found.stderr, exact, effect=0.5)


# What is known of a datum


def two_modes(scale: float, mode: float = 6.0) -> pv.Pair:
    """z ~ 1/2 N(-6, 1) + 1/2 N(6, 1) whatever x ~ N(0, 1); the guide knows of the second mode."""

    def model(x):
        with pyro.plate("data", len(x)):
            modes = dist.Normal(torch.tensor([-mode, mode]), 1.0)
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), modes))
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full_like(x, mode), scale))

    return pv.Pair(model, guide)


def test_fitted_proposals_are_probed():
    """A t fitted to one of two modes, whose estimate is p(x) / 2: the other is as much again."""
    pair, x = as_pair(two_modes(1.0)), torch.zeros(200)
    with torch.no_grad(), seeded(0, CPU):
        path = Path(pair, (x,), check(pair, (x,)).layout, 256, "guide")
        one_mode = refining.Fitted(torch.full((200, 1), 6.0), torch.ones(200, 1, 1))
        half = dist.Normal(0.0, 1.0).log_prob(x).numpy() - np.log(2)
        assert_mean(refining._unseen(path, one_mode, half, 1024).share, 1.0, effect=0.5)
        both = refining.Fitted(torch.zeros(200, 1), torch.full((200, 1, 1), 6.0))
        assert (refining._unseen(path, both, half + np.log(2), 1024).share == 0).all()


def test_escalation_is_not_sure_of_one_mode_of_two():
    """Fits find one mode or both; where one, nobody may say reliable, nor a fit noisy."""
    x = torch.randn(30, generator=torch.Generator().manual_seed(0))
    pair = two_modes(0.5)
    ll = estimate(pair, x, 500, num_draws=0)
    found = pv.escalate(ll, pair, x, annealing=pv.Annealing(8, 20, 2), progress=False)
    half = found.value < dist.Normal(0.0, 1.0).log_prob(x).numpy() - 0.3
    assert half.any()
    assert not (half & (found.verdict == "reliable")).any()
    assert not (half & (found.method == "refined proposal") & (found.verdict == "noisy")).any()
    assert found.interval().high == np.inf
    assert str(found).startswith("log p(x) ≥ ")


def test_what_the_probes_of_others_found_is_not_forgotten():
    """x ~ N(z^2, 0.3), a guide of one root: probes of near roots find the other, those of many far ones nothing."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.square(), 0.3), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.clamp_min(0).sqrt(), 0.15))

    pair, draw = pv.Pair(model, guide), torch.Generator().manual_seed(0)
    x = torch.randn(40, generator=draw).square() + 0.3 * torch.randn(40, generator=draw)
    ll = estimate(pair, x, 300, num_draws=0)
    by_equals = (ll.verdict == "unreliable") & (ll.unseen < 1e-4)
    assert by_equals.any()
    found = pv.escalate(ll, pair, x, annealing=pv.Annealing(4, 10, 2), progress=False)
    assert not np.isin(found.method[by_equals], ["more samples"]).any()
    assert not (found.verdict[by_equals] == "reliable").any()


def test_methods_that_only_do_worse_change_nothing(monkeypatch):
    """All data miss much: more samples of the same guide are not drawn, and lower bounds that are lower do not stay."""
    ppca = small_ppca()
    pair, x = scaled_guide(ppca, 0.3), ppca.sample(3, seed=1)
    ll = estimate(pair, x, 200, num_draws=0)
    assert (ll.verdict == "unreliable").all()
    worse = of_three(ll.value - 5.0, [0.1] * 3, ["noisy"] * 3)
    answer = escalation._Answer(worse, Misses(*np.zeros((2, 3), dtype=bool)), {})
    for method in ("_refined", "_annealed"):
        monkeypatch.setattr(escalation, method, lambda *_: answer)
    found = pv.escalate(ll, pair, x, progress=False)
    np.testing.assert_array_equal(found.value, ll.value)
    assert set(found.method) == {"guide"}


def test_escalation_leaves_nothing_worse():
    """In 30 dimensions, four short chains are worse than the guide, and few heavy weights too high by chance."""
    d, x = 30, torch.randn(8, generator=torch.Generator().manual_seed(1))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(d), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0 * z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            t = dist.StudentT(torch.tensor(5.0), torch.zeros(d), 0.5 * torch.ones(d)).to_event(1)
            pyro.sample("z", t.expand([len(x)]))

    pair = pv.Pair(model, guide)
    ll = estimate(pair, x, 1000, num_draws=0)
    found = pv.escalate(ll, pair, x, annealing=pv.Annealing(4, 10, 2), until="reliable", progress=False)
    assert (found.value >= ll.value)[found.verdict == "unreliable"].all()
    error = found.value - dist.Normal(0.0, 1.0).log_prob(x).numpy()
    assert (np.abs(error) <= 5.91 * found.stderr)[found.verdict != "unreliable"].all()


def of_three(value, stderr, words):
    zero, no = np.zeros(3), np.zeros(3, dtype=bool)
    return escalation._Found(np.array(value), np.array(stderr), zero, zero, zero, no, no, np.array(words))


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        (("noisy", -2.0, 0.1), ("reliable", -2.0, 0.1), True),
        (("noisy", -2.0, 0.1), ("noisy", -2.0, 0.1), True),
        (("noisy", -2.0, 0.1), ("unreliable", -1.0, 0.1), False),
        (("unreliable", -2.0, 0.1), ("unreliable", -1.0, 0.1), True),
        (("unreliable", -2.0, 0.1), ("unreliable", -2.1, 0.1), False),
        (("unreliable", -2.0, 0.1), ("unreliable", -1.0, 0.9), False),
        (("unreliable", -2.0, 0.1), ("noisy", -1.9, 0.9), True),
        (("unreliable", -20.0, 0.1), ("unreliable", -6.3, 0.9), False),
        (("unreliable", -20.0, 0.1), ("unreliable", -6.1, 0.9), True),  # by chance once in a thousand times at most
    ],
)
def test_which_of_two_estimates_stays(before, after, kept):
    old, new = (of_three([v] * 3, [s] * 3, [w] * 3) for w, v, s in (before, after))
    assert (escalation._is_better(new, old) == kept).all()


def test_what_earlier_estimates_and_probes_say_is_not_forgotten():
    """Of a later one: lower than an earlier one, some of p(x) missed before, and much of it missing still."""
    before, after = (
        of_three([-2.0] * 3, [0.1] * 3, ["noisy"] * 3),
        of_three([-2.5, -2, -2], [0.1] * 3, ["reliable"] * 3),
    )
    no = np.zeros(3, dtype=bool)
    second, third = np.eye(3, dtype=bool)[1:]
    assert escalation._in_view_of(before, no, no, after).verdict.tolist() == ["unreliable", "reliable", "reliable"]
    found = escalation._in_view_of(before, second, third, after)
    assert found.verdict.tolist() == ["unreliable", "noisy", "unreliable"]


# Who goes which way


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
    ppca = small_ppca(8, 6)
    pair, x = scaled_guide(ppca, 2.0), ppca.sample(20, seed=1)
    ll = estimate(pair, x, 300, num_draws=0)
    assert (ll.unseen < 1e-4).all()
    found = pv.escalate(ll, pair, x, until="reliable", progress=False)
    assert (found.method != "guide").sum() >= (ll.verdict != "reliable").sum() > 0
    assert (found.verdict == "reliable").all()


def test_annealing_is_the_last_resort(monkeypatch):
    ppca = small_ppca()
    pair, x = scaled_guide(ppca, 0.4), ppca.sample(5, seed=1)
    ll = estimate(pair, x, 200, num_draws=0)
    fit = escalation._refined

    def hopeless(*arguments):
        answer = fit(*arguments)
        words = np.full(len(answer.found.value), "unreliable")
        return answer._replace(found=answer.found._replace(verdict=words))

    monkeypatch.setattr(escalation, "_refined", hopeless)
    found = pv.escalate(ll, pair, x, factor=1, annealing=pv.Annealing(16, 50, 5), progress=False)
    last = found.method == "annealing"
    assert last.any()
    assert (found.verdict[last] == "noisy").all()
    assert (found.skewness[last] != 0).all()
    assert (np.abs(found.value - ppca.log_prob(x).numpy())[last] <= 5.91 * found.stderr[last] + 0.02).all()


def test_what_cannot_be_escalated():
    ppca = small_ppca()
    x = ppca.sample(5)
    ll = estimate(ppca, x, 50)
    with pytest.raises(pv.DataError, match="expected the 5 data that were evaluated, found 4"):
        pv.escalate(ll, ppca, x[:4])
    with pytest.raises(ValueError, match="ll: expected what log_likelihood has returned, found NoneType"):
        pv.escalate(None, ppca, x)
    with pytest.raises(ValueError, match="until: expected 'noisy' or 'reliable', found 'sure'"):
        pv.escalate(ll, ppca, x, until="sure")
    with pytest.raises(ValueError, match="factor: expected at least 1"):
        pv.escalate(ll, ppca, x, factor=0)


def test_data_in_another_order_than_the_result_are_refused():
    """The estimates of some rows stood for those of others."""
    ppca = small_ppca()
    x = ppca.sample(5)
    pair, ll = scaled_guide(ppca, 0.4), estimate(scaled_guide(ppca, 0.4), x, 50)
    with pytest.raises(pv.DataError, match=r"row 0: expected the data .* same order, found the one that was row 4: "):
        pv.escalate(ll, pair, x.flip(0))
    with pytest.raises(
        pv.DataError, match=r"row 3: .* found one that was not among them: pass them as .*evaluate these"
    ):
        pv.escalate(ll, pair, torch.cat([x[:3], ppca.sample(2, seed=7)]))
    ll.__dict__.pop("signature")  # as pickled by another version
    few = {"annealing": pv.Annealing(2, 2, 1), "progress": False}
    assert len(pv.escalate(ll, pair, x.flip(0), **few).value) == 5


def test_data_are_known_again_whatever_their_type():
    ppca = small_ppca()
    x = ppca.sample(3).float()
    pair, ll = scaled_guide(ppca, 1.0), estimate(scaled_guide(ppca, 1.0), x, 50)
    for same in (x.double(), x.numpy(), x.numpy().astype(np.float64)):
        assert (pv.escalate(ll, pair, same, progress=False).value == ll.value).all()
    fine = torch.randn(3, 2)
    assert (signatures((fine,)) == signatures((fine.float(),))).all()
    assert len(set(signatures((fine, torch.arange(3))))) == 3


def test_intervals_of_annealed_data_are_those_of_students_t():
    words = np.array(["noisy", "noisy", "unreliable"])
    zero, error = np.zeros(3), np.full(3, 0.1)
    method = np.array(["guide", "annealing", "annealing"])
    found = pv.EscalatedLogLikelihood(
        zero, error, zero, zero + np.nan, zero, zero > 0, zero > 0, words, method, (), 16, 1, 0.0
    )
    low, high = found.intervals()
    half = 0.1 * stats.t.ppf(0.975, 15)
    below, above = np.log1p([-half, half])
    np.testing.assert_allclose((low[1], high[1], low[2], high[2]), (below, above, below, np.inf), rtol=1e-4)
    assert high[0] < 0.21  # by the normal distribution


def test_the_interval_of_the_mean_knows_which_errors_are_of_few_chains():
    """All annealed it is that of `AnnealedLogLikelihood`; of one annealed datum in two, by Satterthwaite."""
    error, zero = np.array([0.3, 0.1]), np.zeros(2)
    words, chains = np.array(["noisy", "noisy"]), pv.Annealing(num_chains=6)
    ais = pv.AnnealedLogLikelihood(zero, error, 6 + zero, 1.5 * error, 1 + zero, zero, zero, 6 + zero, chains, 1, 0.0)

    def interval(*method):
        named = np.array(method)
        return pv.EscalatedLogLikelihood(
            zero, error, 1.5 * error, zero, zero, zero > 0, zero > 0, words, named, (), 6, 1, 0.0
        ).interval()

    assert interval("annealing", "annealing") == ais.interval()
    degrees = 5 * (0.3**2 + 0.1**2) ** 2 / (0.3**4 + 0.1**4)
    half, bias = stats.t.ppf(0.975, degrees) * np.hypot(*error) / 2, np.square(error).sum() / 4
    assert_within(ais.interval(), (bias - half, bias + half), absolute=1e-6, reason="a lean of next to nothing")
    low, high = interval("annealing", "guide")
    of_one = stats.t.ppf(0.975, 5 * (0.3**2 + 0.1**2) ** 2 / 0.3**4)
    assert_within((high - low) / np.hypot(*error), of_one, relative=0.01, reason="the guide's datum leans a little")


def test_a_datum_that_a_method_fails_for_is_no_obstacle_to_others():
    """The density of row 3 is NaN where only many samples come."""
    x = 1.5 * torch.randn(12, 2, generator=torch.Generator().manual_seed(0)).double()
    x[:, 1] = 0.0
    x[3] = torch.tensor([0.0, 1.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).to(x), 1.0))
            loc = torch.where((x[:, 1] > 0) & (z > 1.45), torch.nan, z)
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=False), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x[:, 0], 0.4))

    pair = pv.Pair(model, guide)
    ll = pv.log_likelihood(pair, x, 200, num_draws=0, num_probes=0, progress=False)
    found = pv.escalate(ll, pair, x, until="reliable", factor=100, compile=False, progress=False)
    (failure, *_) = (f for f in found.failures if f.method == "more samples")
    assert (failure.num_data, failure.row) == (1, 3)
    assert "nan" in failure.reason
    assert found.method[3] != "more samples"
    assert (np.delete(found.method, 3) != "guide").any()
