"""The self-test passes on a library that is right, fails on one that is not, and says what failed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import ppl_vae as pv
from ppl_vae.selftesting import likelihoods, machinery, rows, run
from ppl_vae.selftesting.programs import LinearGaussian, bound
from tests.commands import call, succeed
from tests.statistical import assert_within

QUICK = ["exact-guides", "importance-sampling", "bounds", "gradients", "mixture", "noise"]


def selftest(*cases, **options):
    return pv.selftest("cpu", only=cases, progress=False, **options)


def verdicts(result):
    return {row.what: row.verdict for found in result.rows.values() for row in found}


# What it finds


def test_the_quick_cases_pass(seed: int):
    result = selftest(*QUICK, seed=seed)
    assert result.passed, str(result)
    assert len(result.rows["cpu"]) == 20
    assert str(result).splitlines()[-1].startswith("all 20 lines pass")


@pytest.mark.parametrize(
    ("case", "lines"),
    [
        ("gaps-and-ledger", 4),
        ("families", 2),
        ("aggregate", 3),
        ("trust", 4),
        ("schedules", 2),
        ("constrained", 3),
        ("calibration", 2),
        ("escalation", 2),
        ("precision", 2),
        ("k-curve", 2),
        ("comparison", 1),
        ("predictive", 1),
    ],
)
def test_what_is_built_on_the_estimates_passes(case: str, lines: int, seed: int):
    result = selftest(case, seed=seed)
    assert result.passed, str(result)
    assert len(result.rows["cpu"]) == lines


def shifted(name: str, fields: dict[str, float]):
    """An estimator of `ppl_vae` whose arrays are off by so many nats."""

    def estimate(*arguments, **options):
        found = getattr(pv, name)(*arguments, **options)
        return replace(found, **{field: getattr(found, field) + amount for field, amount in fields.items()})

    return estimate


@pytest.mark.parametrize(
    ("case", "name", "fields", "failures"),
    [
        ("gaps-and-ledger", "evaluations.gap_decomposition", {"log_evidence": 0.1}, 2),
        ("families", "accounts.gap_decomposition", {"richer_elbo": -0.05}, 1),
        ("trust", "likelihoods.log_likelihood", {"value": 0.2}, 1),
        ("trust", "likelihoods.log_likelihood", {"smoothed": 0.02}, 1),
        ("trust", "likelihoods.log_likelihood", {"unseen": 1.0}, 1),
        ("constrained", "chains.annealed_importance_sampling", {"value": 1e-6}, 1),
        ("escalation", "evaluations.escalate", {"value": -0.05}, 1),
        ("precision", "evaluations.log_likelihood", {"value": 0.05}, 2),
        ("k-curve", "evaluations.k_curve", {"bounds": 0.05}, 1),
        ("predictive", "evaluations.posterior_predictive", {"log_lik": 0.2}, 1),
    ],
)
def test_what_is_built_on_the_estimates_fails_where_it_is_off(monkeypatch, case, name, fields, failures):
    monkeypatch.setattr(f"ppl_vae.selftesting.{name}", shifted(name.partition(".")[2], fields))
    assert list(verdicts(selftest(case)).values()).count("FAIL") == failures


@pytest.mark.slow
def test_the_line_of_annealing_sees_a_tenth_of_a_nat(monkeypatch: pytest.MonkeyPatch):
    """Forward chains have mean weight p(x), to 0.1 nat at five standard errors."""
    lines = [row for row in selftest("annealing").rows["cpu"] if row.what.startswith("annealed")]
    assert len(lines) == 1
    assert lines[0].verdict == "pass"
    assert lines[0].allowed < 0.1


@pytest.mark.slow
def test_all_cases_pass_in_less_than_a_minute(device: torch.device):
    result = pv.selftest(device, progress=False)
    assert result.passed, str(result)
    assert result.seconds < 60


def estimates_off_by(amount):
    def log_likelihood(*arguments, **options):
        ll = pv.log_likelihood(*arguments, **options)
        return replace(ll, value=ll.value + amount, elbo=ll.elbo + amount)

    return log_likelihood


def test_a_wrong_estimator_fails_and_the_command_says_so_by_its_status(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(likelihoods, "log_likelihood", estimates_off_by(0.05))
    result = call("selftest", "--device", "cpu", "--only", "importance-sampling,mixture")
    assert result.exit_code == 1
    assert "4 of 6 lines FAILED" in result.stdout
    found = verdicts(selftest("importance-sampling", "mixture"))
    assert {what for what, verdict in found.items() if verdict == "FAIL"} == {
        "ELBO + KL(q, posterior)",
        "importance sampling: log of mean p-hat / p",
        "its root-mean-square error, sqrt(chi^2 / K)",
        "mixture, its guide",
    }


def test_wrong_gradients_and_unstable_noise_fail(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr("ppl_vae.selftesting.objectives.bound", lambda *a: 1.1 * bound(*a))
        assert set(verdicts(selftest("gradients")).values()) == {"FAIL"}
    calls = []

    def drifting(*arguments, **options):
        calls.append(1)
        return estimates_off_by(1e-9 * len(calls))(*arguments, **options)

    monkeypatch.setattr(machinery, "log_likelihood", drifting)
    assert set(verdicts(selftest("noise")).values()) == {"FAIL"}


def test_an_error_is_a_failed_line_with_its_message(monkeypatch: pytest.MonkeyPatch):
    def broken(*_, **__):
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(likelihoods, "log_evidence", broken)
    result = selftest("mixture", "quadrature")
    assert not result.passed
    assert str(result).count("RuntimeError: no such kernel") == 2
    assert verdicts(result)["mixture, log p(x)"] == "pass"


def test_what_cannot_be_compiled_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        machinery, "_trained", lambda setting, compile: (torch.zeros(3), False, "no C++ compiler" * compile)
    )
    result = selftest("compiled-steps")
    assert result.passed
    assert "nothing can be compiled here: no C++ compiler" in str(result)
    assert str(result).splitlines()[-1].startswith("all 1 lines pass, 1 left out")


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"only: expected cases among exact-guides.*found 'nothing'"):
        selftest("nothing")
    result = call("selftest", "--only", "mixture,nothing")
    assert (result.exit_code, "--only: expected cases among" in result.stderr) == (2, True)
    assert "all 3 lines pass" in succeed("selftest", "--only", "mixture", "--device", "cpu")


def test_auto_takes_cuda_beside_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(run, "choose_device", lambda name: torch.device(name, 0))
    monkeypatch.setitem(run.CASES, "mixture", lambda setting: [rows.equal(str(setting.device), 0.0, 0.0, 1.0)])
    result = pv.selftest(only=["mixture"], progress=False)
    assert {device: [row.what for row in found] for device, found in result.rows.items()} == {
        "cpu": ["cpu"],
        "cuda:0": ["cuda:0"],
    }


# Lines


def test_a_line_passes_where_it_is_within_what_is_allowed():
    assert rows.equal("", [1.0, 200.0], [1.0, 200.0 * (1 + 1e-11)], 1e-10).verdict == "pass"
    assert rows.equal("", [1.0, 2.1], [1.0, 2.0], 1e-10).verdict == "FAIL"
    assert rows.equal("", [1.0, math.nan], [1.0, 2.0], 1e-10).verdict == "FAIL"
    assert rows.estimated("", 1.49, 1.0, 0.1).verdict == "pass"
    assert rows.estimated("", 1.51, 1.0, 0.1).verdict == "FAIL"
    assert rows.estimated("", math.nan, 1.0, 0.1).verdict == "FAIL"
    assert rows.between("", 0.5, 0.0, 1.0, 0.0).verdict == "pass"
    assert rows.between("", 1.51, 0.0, 1.0, 0.1).verdict == "FAIL"
    assert rows.between("", -0.51, 0.0, 1.0, 0.1).verdict == "FAIL"
    assert rows.left_out("", "why").verdict == "left out"


# Its oracles


def test_the_linear_gaussian_pair_has_the_density_of_scipy():
    pair = LinearGaussian(5, 2)
    x = pair.draw(20, 0)
    weight, bias = pair.weight.detach().numpy(), pair.bias.detach().numpy()
    exact = stats.multivariate_normal(bias, weight @ weight.T + 0.49 * np.eye(5)).logpdf(x)
    assert_within(pair.exact(x), exact, relative=1e-10, reason="rounding of an inverse")


def test_the_linear_gaussian_pair_has_the_posterior_of_ppca():
    pair = LinearGaussian(5, 2)
    ppca = pv.PPCA(pair.weight.detach(), pair.bias.detach(), 0.7)
    x = pair.draw(20, 0)
    loc, covariance = pair.posterior(x)
    q = ppca.posterior(x)
    assert_within(loc, q.loc, relative=1e-9, absolute=1e-9, reason="rounding of an inverse")
    assert_within(covariance, q.covariance_matrix[0], relative=1e-9, absolute=1e-9, reason="rounding of an inverse")
    kl = torch.distributions.kl_divergence(
        q, torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    )
    whole = pair.mean_log_lik(x) - kl.numpy()  # the ELBO of the posterior
    assert_within(whole, pair.exact(x), relative=1e-9, reason="rounding of an inverse")


@pytest.mark.parametrize("num_particles", [1, 2])
def test_bounds_are_integrals(num_particles: int):
    loc, log_scale = torch.tensor(-0.5).double(), torch.tensor(1.3).log().double()
    q = stats.norm(-0.5, 1.3)

    def weight(z):
        return stats.norm.pdf(z) * stats.norm.pdf(1.0, z) / q.pdf(z)

    if num_particles == 1:
        expected = integrate.quad(lambda z: q.pdf(z) * np.log(weight(z)), -12, 12)[0]
    else:
        grid = np.linspace(-9, 8, 801)
        inner = q.pdf(grid) * q.pdf(grid)[:, None] * np.log((weight(grid) + weight(grid)[:, None]) / 2)
        expected = integrate.trapezoid(integrate.trapezoid(inner, grid), grid)
    assert_within(bound(loc, log_scale, num_particles).numpy(), expected, relative=1e-5, reason="64 points")
