"""The search for the best q of each datum: what it leaves is small, or is said; and what parts are known to."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.compile import CaptureError, lazy
from ppl_vae.errors import EstimateError, PairError
from ppl_vae.evaluation.intervals import interval_of_mean
from ppl_vae.evaluation.local import Found, Searcher, _Said
from tests.pairs import diagonal, scaled_guide, small_ppca
from tests.splitting import split
from tests.statistical import assert_close, assert_estimates, assert_within

NO_MORE = "0.01 nats are asked for, and noise"


def off_by_one(diagonal: bool = True) -> tuple[pv.Pair, torch.Tensor]:
    """A guide whose mean lies one standard deviation of two numbers off: an amortisation gap of 1."""
    ppca = pv.PPCA(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64), torch.zeros(3), 0.5)

    def guide(x):
        q = ppca.posterior(x)  # of independent numbers
        with pyro.plate("data", len(x)):
            if diagonal:
                pyro.sample("z", dist.Normal(q.loc + q.stddev, q.stddev).to_event(1))
            else:
                pyro.sample("z", dist.MultivariateNormal(q.loc + q.stddev, scale_tril=q.scale_tril))

    return pv.Pair(ppca.model, guide), ppca.sample(2, seed=1)


def test_a_compiled_step_of_the_search_is_compared_away_from_the_guide(monkeypatch):
    """Turned around, numbers that are all zero are the same: the second trial was the first one again."""
    tried = []

    def compiled(function, examples, module):
        tried.append([example[0].clone() for example in examples])
        raise CaptureError("no need")

    monkeypatch.setattr(lazy, "compile_function", compiled)
    pair, x = off_by_one()
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="no need"):
        pv.gap_decomposition(pair, x, 50, search=pv.LocalSearch(2, 1), richer=True, compile=True, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    searches = [example for example in tried if not example[0].any()]
    assert [len(first[0]) for first, _ in searches] == [4, 6]  # of the guide, of an affine map
    for first, second in searches:
        assert (first != second).all()
        assert (second.abs() < 1).all()


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "shift", "widen"), [(2, 0.2, 1.15), (10, 0.1, 1.05), (50, 0.05, 1.03)])
def test_the_default_search_finds_the_parts_of_ppca_to_a_hundredth(dim: int, shift: float, widen: float):
    generator = torch.Generator().manual_seed(dim)
    loading = torch.randn(dim + 2, dim, generator=generator, dtype=torch.float64) * (1.0 if dim < 20 else 0.3)
    ppca = pv.PPCA(loading, torch.zeros(dim + 2), 0.5)
    pair, kl = diagonal(ppca, shift, widen)
    x = ppca.sample(8, seed=1)
    found = split(pair, x, 64_000, pv.LocalSearch(), richer=False)
    found = dataclasses.replace(found, log_evidence=ppca.log_prob(x).numpy(), trusted=np.ones(8, dtype=bool))
    truth = {"approximation": kl(x, best=True).mean(), "amortisation": (kl(x, best=False) - kl(x, best=True)).mean()}
    assert found.mean("amortisation").stderr < 0.002
    for part, expected in truth.items():
        # log p is exact here: the error of the approximation gap is that of the ELBO of the best q.
        stderr = found.mean("elbo").stderr if part == "approximation" else found.mean(part).stderr
        value = found.mean(part).value
        assert_within(value, float(expected), absolute=0.01 + 5.91 * stderr, reason=NO_MORE)
    low, high = found.interval("amortisation", 1 - 1e-6)
    assert low <= truth["amortisation"] <= high
    # In 50 dimensions some searches cannot tell that they are through, though they are: all of their gap counts.
    assert high - low < 0.1 or not found.converged.all()
    assert found.converged.all() or dim == 50


def test_what_a_gain_says():
    """A loss, no number, little for sure, little perhaps, and more."""
    gain, stderr = torch.tensor([-1.0, math.nan, 0.005, 0.005, 0.2]), torch.tensor([0.1, 0.1, 0.001, 0.01, 0.01])
    said = _Said.of(gain, stderr, 0.01)
    assert said.worse.tolist() == [True, True, False, False, False]
    assert said.converged.tolist() == [False, False, True, False, False]
    assert said.clear.tolist() == [True, True, True, False, True]


def test_a_round_that_loses_has_not_converged():
    """Its steps are 400 times too long: what it lost was taken back, and called converged."""
    pair, x = off_by_one()
    search = pv.LocalSearch(num_steps=20, max_rounds=2, num_particles=8, learning_rate=20)
    found = split(pair, x, 500, search, richer=False)
    assert not found.converged.any()
    assert (found.late_gain < -1).all()
    assert_close(found.amortisation, np.zeros(2))
    assert "2 of 2 searches lost in their last round" in str(found)
    low, high = found.interval("amortisation", 0.9999)
    assert low <= 1.0 <= high  # all of the gap may be amortisation


def test_what_was_lost_is_tried_again_at_a_lower_rate():
    """A first round far too fast, and enough that are slower."""
    pair, x = off_by_one()
    found = split(pair, x, 2000, pv.LocalSearch(20, 5, 16, learning_rate=3, tolerance=0.05), richer=False)
    assert found.converged.all()
    assert_estimates(found.amortisation, found.amortisation_stderr + 0.01, np.ones(2), effect=0.5)


@pytest.mark.parametrize(("rate", "diagonal"), [(1e7, True), (20.0, False)])
def test_a_search_that_diverges_is_taken_back(rate: float, diagonal: bool):
    """Steps of millions, of which no number comes; and such that a density is rounding, which looks like a gain."""
    pair, x = off_by_one(diagonal)
    found = split(pair, x, 100, pv.LocalSearch(20, 1, 8, learning_rate=rate), richer=False)
    assert not found.converged.any()
    assert np.isneginf(found.late_gain).all()
    assert np.isfinite(found.amortisation).all()
    assert np.isfinite(found.mean("amortisation").value)
    assert "2 of 2 searches lost" in str(found)


def test_noise_is_not_called_convergence():
    """A tolerance far below what checks can tell: gains within their error of it are no proof."""
    ppca = small_ppca(6, 4)
    pair, _ = diagonal(ppca, 0.2, 1.15)
    found = split(pair, ppca.sample(4, seed=1), 50, pv.LocalSearch(20, 1, 8, tolerance=1e-6), richer=False)
    assert not found.converged.any()


def parts(**other) -> pv.GapDecomposition:
    """Two data of known parts, whose searches left nothing."""
    zero, one = np.zeros(2), np.ones(2)
    arrays = {"log_evidence": zero, "elbo": -3 * one, "best_elbo": -one, "richer_elbo": -0.5 * one}
    names = ("log_evidence", "elbo", "gap", "approximation", "amortisation", "richer_gain")
    arrays |= {f"{name}_stderr": 0.1 * one for name in names}
    arrays |= {"trusted": one.astype(bool), "unseen": zero, "late_gain": zero, "late_gain_stderr": zero}
    arrays |= {"rounded": zero.astype(bool), "rounding": zero}
    arrays |= {"richer_late_gain": zero, "richer_late_gain_stderr": zero}
    arrays |= {"converged": one.astype(bool), "richer_converged": one.astype(bool)}
    rest = {"family": {"z": "Normal"}, "is_supremum": True, "no_richer": "", "num_samples": 10, "seconds": 0.0}
    return pv.GapDecomposition(**arrays | rest | other)


def test_intervals_of_parts_hold_what_searches_have_left():
    error, bias = 1.959964 * 0.1 / math.sqrt(2), 0.1**2 / 2
    for part, value in (("gap", 3 + bias), ("approximation", 1 + bias), ("amortisation", 2.0), ("elbo", -3.0)):
        assert_close(np.array(parts().interval(part)), np.array([value - error, value + error]), scale=1e6)
    late = parts(late_gain=np.array([0.02, 0.04]))
    assert_close(late.interval("amortisation").high, 2 + error + 0.03, scale=1e6)
    assert_close(late.interval("approximation").low, 1 + bias - error - 0.03, scale=1e6)
    assert_close(late.interval("approximation").high, 1 + bias + error, scale=1e6)
    rich = parts(richer_late_gain=np.array([0.02, 0.04]), richer_late_gain_stderr=np.full(2, 0.1))
    assert_close(rich.interval("richer_gain").high, 0.5 + 2 * error + 0.03, scale=1e6)
    noisy = parts(late_gain_stderr=np.full(2, 0.1))
    assert_close(noisy.interval("amortisation").high, 2 + 2 * error, scale=1e6)


def test_intervals_reach_to_what_no_draw_can_have_seen():
    """As those of `log_likelihood` do, of which an interval of the evidence is one."""
    plain, found = parts(), parts(unseen=np.array([0.0, 0.05]))
    for part in ("log_evidence", "gap", "approximation"):
        assert found.interval(part).low == plain.interval(part).low
        assert_close(found.interval(part).high - plain.interval(part).high, np.log(1.05) / 2, scale=1.0)
    assert found.interval("elbo") == plain.interval("elbo")
    error, skewness = found.log_evidence_stderr, 1.5 * found.log_evidence_stderr  # of which the logarithm takes all
    same = interval_of_mean(found.log_evidence, error, skewness, found.unseen, 0.95)
    assert_within(found.interval("log_evidence"), same, absolute=1e-6, reason="a lean of next to nothing")


@pytest.mark.parametrize("why", [{"converged": np.array([True, False])}, {"is_supremum": False}])
def test_what_was_not_found_may_be_all_of_the_approximation_gap(why):
    error, bias, share = 1.959964 * 0.1 / math.sqrt(2), 0.1**2 / 2, 0.5 if "converged" in why else 1.0
    found, left = parts(**why), share * (1 + bias) + error * math.sqrt(share)
    assert_close(found.interval("amortisation").high, 2 + error + left, scale=1e6)
    assert_close(found.interval("approximation").low, max(0.0, 1 + bias - error - left), scale=1e6)


def test_a_log_p_that_is_not_trusted_has_no_upper_end():
    found = parts(trusted=np.array([True, False]))
    for part in ("log_evidence", "gap", "approximation"):
        assert found.interval(part).high == math.inf
    assert found.interval("amortisation").high < math.inf
    lost = parts(trusted=np.array([True, False]), converged=np.array([True, False]))
    assert lost.interval("amortisation").high == math.inf
    assert lost.interval("approximation").low == 0


def test_intervals_for_new_data_count_the_spread():
    spread = parts(best_elbo=np.array([-1.0, -0.6]))
    narrow, wide = (spread.interval("approximation", new_data=new) for new in (False, True))
    assert wide.high - narrow.high > 0.2
    rich = parts(richer_converged=np.zeros(2, dtype=bool))
    assert rich.interval("richer_gain").high == rich.interval("approximation").high


def test_an_elbo_that_is_not_finite_names_row_and_site():
    """A uniform likelihood that ends before the second datum, for some draws."""
    x = torch.tensor([0.01, 1.5], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros_like(x), 0.3))
            pyro.sample("x", dist.Uniform(0.0, z, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(torch.zeros_like(x) + 0.3, 0.3))

    with pytest.raises((EstimateError, PairError), match=r"row 1.*'x'"):
        split(pv.Pair(model, guide), x, 200, pv.LocalSearch(2, 1, 4), richer=False)


def test_a_posterior_that_is_found_has_nothing_left():
    ppca = small_ppca(6, 2)
    found = split(scaled_guide(ppca, 1.5), ppca.sample(4, seed=1), 500, richer=False)
    low, high = found.interval("approximation")
    assert low == 0
    assert high < 0.05


def guided_by_t(df: float) -> pv.Pair:
    """z ~ N(0, 1), x ~ N(z, 1/2), and a guide whose tails are those of t: E z^2 is infinite up to df = 2."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.StudentT(df, 0.8 * x, 0.4))

    return pv.Pair(model, guide)


@pytest.mark.parametrize(("df", "has_error"), [(1.5, False), (30.0, True)])
def test_parts_of_an_elbo_that_is_minus_infinity_have_no_error(df: float, has_error: bool):
    found = split(guided_by_t(df), torch.linspace(-2, 2, 8), 300, pv.LocalSearch(2, 1, 2), richer=False)
    for part in ("elbo", "gap", "approximation", "amortisation"):
        mean, interval = found.mean(part), found.interval(part)
        assert np.isfinite([mean.stderr, mean.population_stderr]).all() == has_error
        assert has_error or interval == (-math.inf if part == "elbo" else 0.0, math.inf)
    assert math.isfinite(found.mean("log_evidence").stderr)
    for what in ("log-weights of the guide", "log-weights of the best q", "may be -inf", "± inf"):
        assert (what in str(found)) != has_error


def test_a_richer_family_that_has_no_better_q_gains_nothing():
    """Affine maps of log t give log-normals alone: the search lost 0.0007 ± 0.0002 nats, in an interval from 0 to 0."""
    x = torch.from_numpy(np.random.default_rng(0).poisson(4.0, size=(30, 2))).double()

    def model(x):
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Gamma(torch.tensor(2.0).to(x), 0.5))
            pyro.sample("x", dist.Poisson(t[..., None]).expand((*t.shape, 2)).to_event(1), obs=x)

    def guide(x):
        count = 2 + x.sum(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.LogNormal((count / 2.5).log(), 0.8 * count.rsqrt()))

    search = pv.LocalSearch(100, num_particles=16, learning_rate=0.1)
    found = pv.gap_decomposition(pv.Pair(model, guide), x, 500, search=search, compile=False, progress=False)
    assert (abs(found.richer_gain) < 1e-9).mean() > 0.9
    low, high = found.interval("richer_gain")
    assert low == 0.0
    assert 0 < high < 0.01
    assert found.amortisation.mean() > 0.02


def test_a_gain_is_kept_that_all_data_have_or_that_one_has_alone(monkeypatch):
    family = SimpleNamespace(size=1, dtype=torch.float64)
    searcher = Searcher(family, pv.Pair(lambda x: None, lambda x: None), pv.LocalSearch(), False, 1)
    one, noise = torch.ones(100, 1), torch.full((100,), 0.02)
    for gain, kept in ((0.01 * one[:, 0], 100), (-0.01 * one[:, 0], 0), (0.1 * (torch.arange(100) == 7), 1)):
        monkeypatch.setattr(searcher, "_gain", lambda *_, gain=gain: (gain, noise))
        found = searcher.better_than_start(Found(one, 3 + noise, 4 + noise, noise > 0), (), (one,), 0)
        put_back = found.free[:, 0] == 0
        assert found.free.sum() == kept
        assert torch.equal(found.gain, torch.where(put_back, gain, 3 + noise))
        assert torch.equal(found.gain_stderr, torch.where(put_back, noise, 4 + noise))


@pytest.mark.slow
def test_a_gain_that_noise_hides_is_in_its_interval():
    """An affine map gains 0.01 nats of every datum, about as much as a search is not sure of."""
    loading = torch.tensor([[1.0, 0.0], [0.35, 0.8], [0.0, 0.3]], dtype=torch.float64)
    ppca = pv.PPCA(loading, torch.zeros(3), 0.8)
    pair, kl = diagonal(ppca, 0.1, 1.1)
    covered = 0
    for seed in range(6):
        x = ppca.sample(4, seed=seed)
        low, high = split(pair, x, 150, pv.LocalSearch(60, 2, 8), seed=seed).interval("richer_gain")
        covered += low <= float(kl(x, best=True).mean()) <= high
    assert 0.005 < float(kl(x, best=True).mean()) < 0.02
    assert covered >= 5
