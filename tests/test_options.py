"""Numbers of draws and seeds, wherever they are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.rng import key, own_noise, seeded

PPCA = pv.PPCA([[1.0], [0.5]], [0.0, 0.0], 0.5)
GMM = pv.GMM([0.3, 0.7], [[0.0, 0.0], [4.0, 0.0]], [1.0, 1.0], "spherical")
VAE = pv.VAE(pv.priors.StandardNormal(1), pv.decoders.Gaussian.mlp(1, [], 2), pv.encoders.DiagonalNormal.mlp(2, [], 1))
X = torch.zeros(3, 2)

SAMPLED = {"GMM": GMM, "PPCA": PPCA, "VAE": VAE}
SEEDED = {
    "GMM": lambda seed: GMM.sample(2, seed),
    "PPCA": lambda seed: PPCA.sample(2, seed),
    "VAE": lambda seed: VAE.sample(2, seed),
    "binarize": lambda seed: pv.data.binarize(X, seed),
    "dequantize": lambda seed: pv.data.dequantize(X, 2, seed),
}
KEYED = {
    "log_likelihood": lambda seed: pv.log_likelihood(PPCA, X, 2, seed=seed, progress=False),
    "annealed": lambda seed: pv.annealed_importance_sampling(PPCA, X, seed=seed, progress=False),
    "bidirectional": lambda seed: pv.bidirectional_monte_carlo(PPCA, X, seed=seed, progress=False),
    "calibrate": lambda seed: pv.calibrate(PPCA, X, seed=seed, progress=False),
    "compare": lambda seed: pv.compare({"a": PPCA}, X, 2, seed=seed, progress=False),
    "escalate": lambda seed: pv.escalate(None, PPCA, X, seed=seed, progress=False),
    "gap_decomposition": lambda seed: pv.gap_decomposition(PPCA, X, 2, seed=seed, progress=False),
    "k_curve": lambda seed: pv.k_curve(PPCA, X, 2, seed=seed, progress=False),
    "ledger": lambda seed: pv.ledger(PPCA, X, 2, seed=seed, progress=False),
    "posterior_predictive": lambda seed: pv.posterior_predictive(PPCA, X, 2, seed=seed, progress=False),
    "fit": lambda seed: pv.fit(VAE, X, steps=1, seed=seed, progress=False),
    "GMM.fit": lambda seed: pv.GMM.fit(GMM.sample(5), 1, seed=seed, max_iter=1),
    "key": lambda seed: key(seed, 1),
    "cluster_agreement": lambda seed: pv.latents.cluster_agreement([[0.0], [1.0]], [0, 1], seed=seed),
}
UNKEPT = {"GMM.fit", "cluster_agreement", "key", "posterior_predictive"}  # of what no file of a run tells the seed


@pytest.mark.parametrize("name", SAMPLED)
def test_a_number_of_draws_is_a_whole_one_or_zero(name):
    model = SAMPLED[name]
    assert model.sample(0).shape == (0, 2)
    assert model.sample(np.int64(3)).shape == (3, 2)
    for n in (-1, 2.5, "a", None):
        with pytest.raises(ValueError, match="n: expected"):
            model.sample(n)


@pytest.mark.parametrize("wrong", [1.5, "1", None, float("nan")])
@pytest.mark.parametrize("name", [*SEEDED, *KEYED])
def test_a_seed_is_a_whole_number(name, wrong):
    with pytest.raises(ValueError, match=f"seed: expected a whole number, found {wrong!r}"):
        (SEEDED | KEYED)[name](wrong)


@pytest.mark.parametrize("wrong", [2**63, -(2**63), 10**30])
@pytest.mark.parametrize("name", sorted(KEYED.keys() - UNKEPT))
def test_a_seed_is_one_that_a_file_keeps(name, wrong):
    with pytest.raises(ValueError, match=f"seed: expected a whole number from .* found {wrong}"):
        KEYED[name](wrong)


@pytest.mark.parametrize("largest", [2**63 - 1, 1 - 2**63])
def test_the_largest_seeds_serve(largest):
    assert KEYED["log_likelihood"](largest).num_samples == 2


@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_has_64_bits(name):
    with pytest.raises(ValueError, match="seed: expected a whole number of 64 bits, found 18446744073709551616"):
        SEEDED[name](2**64)
    assert torch.equal(SEEDED[name](np.int64(-1)), SEEDED[name](-1))


def test_a_seed_that_is_refused_leaves_the_random_state_to_its_user():
    with pytest.raises(ValueError, match="seed: expected"), seeded(1.5):  # type: ignore[arg-type]
        pass
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with seeded(0), own_noise():
        assert torch.equal(torch.rand(2), expected)


LL = pv.log_likelihood(PPCA, X, 20, progress=False)
WRONG = {
    "memory: expected a whole number, found '1GB'": lambda: pv.log_likelihood(PPCA, X, 2, memory="1GB"),
    "memory: expected at least 1, found 0": lambda: pv.gap_decomposition(PPCA, X, 2, memory=0),
    "memory: expected at least 1, found -1": lambda: pv.calibrate(PPCA, X, memory=-1),
    "num_probes: expected 0, or at least 2": lambda: pv.log_likelihood(PPCA, X, 2, num_probes=1),
    r"annealing: expected Annealing\(...\), found 5": lambda: pv.annealed_importance_sampling(PPCA, X, 5),
    r"annealing: expected Annealing\(...\), found 6": lambda: pv.bidirectional_monte_carlo(PPCA, X, 6),
    r"annealing: expected Annealing\(...\), found 7": lambda: pv.escalate(LL, PPCA, X, annealing=7),
    r"search: expected LocalSearch\(...\), found 5": lambda: pv.gap_decomposition(PPCA, X, search=5),
    "estimates: expected name -> estimate, found list": lambda: pv.Comparison([LL]),
    "false_alarm: expected a probability": lambda: pv.calibrate(PPCA, X, 20, 9, progress=False).departures(5),
    "log_prob: expected an array of real numbers": lambda: pv.ExactLogLikelihood.of(["a"], 1),
}


@pytest.mark.parametrize("said", WRONG)
def test_other_options_are_refused_by_name(said):
    with pytest.raises((ValueError, pv.DataError), match=said):
        WRONG[said]()
