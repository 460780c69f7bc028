"""The gap split in two, whatever the pair is; what cannot be split says why."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.errors import PairError
from tests.pairs import ModuleVAE, binary_rows, small_ppca
from tests.pyro_programs import VAE
from tests.splitting import split
from tests.statistical import assert_estimates, assert_within
from tests.training import fresh
from tests.zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_every_pair_of_the_zoo_is_split(name: str):
    case = ZOO[name]
    data = tuple(a[:5] for a in case.data) if isinstance(case.data, tuple) else case.data[:5]
    search = pv.LocalSearch(2, 1, 64)
    without = {"autoencoder": "reconstruction", "MADE": "expected latents", "PixelCNN": "expected latents"}
    if (kind := name.removesuffix(" of levels")) in without:
        with pytest.raises(PairError, match=without[kind]):
            split(case.make(), data, 8, search)
        return
    found = split(case.make(), data, 8, search)
    assert np.isfinite(found.gap).all()
    assert np.isfinite(found.richer_elbo).all() or found.no_richer
    assert str(found).count("nats") == 1


def test_a_pair_without_particles_has_no_richer_family():
    found = split(ZOO["constrained"].make(), ZOO["constrained"].data[:3], 8, pv.LocalSearch(2, 1, 8))
    assert "particle dimension" in found.no_richer
    assert "affine" not in str(found)


def test_numbers_that_numpy_lacks_are_split_too():
    pair, data = ModuleVAE().to(torch.bfloat16), binary_rows(3).to(torch.bfloat16)
    found = split(pair, data, 8, pv.LocalSearch(2, 1, 8))
    assert np.isfinite(found.gap).all()
    assert "found torch.bfloat16" in found.no_richer


def latent(q, prior=None):
    """A pair of one latent number, whose guide is `q(x)`."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior or dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(x))

    return pv.Pair(model, guide)


@pytest.mark.parametrize(
    "q",
    [
        lambda x: dist.Pareto(torch.ones_like(x), torch.full_like(x, 3.0)),
        lambda x: dist.AffineBeta(torch.full_like(x, 2.0), 3.0, torch.ones_like(x), 2.0),
    ],
    ids=["Pareto", "AffineBeta"],
)
def test_a_parameter_that_moves_the_support_stays(q):
    """Densities outside the support of the prior made a best ELBO that was above log p(x), and trusted."""
    x = torch.tensor([0.9, 1.5], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", q(x))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(x))

    pair = pv.Pair(model, guide)
    exact = pv.log_evidence(pair, x, progress=False)
    found = split(pair, x, 400, pv.LocalSearch(30, 1, 16, learning_rate=0.1), richer=False)
    assert not found.is_supremum
    assert_estimates(found.log_evidence, found.log_evidence_stderr, exact, effect=0.5)
    assert (found.best_elbo < exact).all()
    assert found.mean("amortisation").value > 0.1


def with_auxiliary():
    """A guide that draws beside the site and puts a point there, as automatic guides do."""

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x / 2, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u))

    return pv.Pair(latent(dist.Delta).model, guide)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (with_auxiliary(), r"site 'z': expected a distribution whose parameters can be free, found a point"),
        (
            latent(lambda x: dist.Poisson(1 + x.square()), dist.Poisson(1.0)),
            r"site 'z': expected a latent that is reparametrised or has finitely many values.*log_likelihood",
        ),
        (
            latent(lambda x: dist.Uniform(0 * x, 1 + 0 * x), dist.Uniform(0.0, 1.0)),
            r"site 'z': expected a distribution whose parameters can be free.*Uniform, whose low.*log_likelihood",
        ),
    ],
    ids=["point", "no gradient", "uniform"],
)
def test_what_cannot_be_freed_is_named(pair, message: str):
    with pytest.raises(PairError, match=message):
        split(pair, torch.tensor([0.1, 0.5]), 10)


def test_options_are_checked():
    with pytest.raises(ValueError, match="num_samples"):
        split(fresh(), binary_rows(2), 1)
    with pytest.raises(ValueError, match="num_steps"):
        pv.LocalSearch(num_steps=0)
    ppca = small_ppca(5, 3)
    with pytest.raises(PairError, match="at most 2 continuous latent numbers"):
        split(ppca, ppca.sample(2), 10, exact=True)


def test_pyro_s_own_example_goes_through():
    """With modules registered in the programs, in single precision, and a network that reshapes."""
    images = torch.bernoulli(torch.full((6, 1, 2, 3), 0.3))
    found = split(VAE(), images, 200)
    low = 1.96 * found.mean("gap").stderr
    assert abs(found.mean("gap").value - (found.mean("log_evidence").value - found.mean("elbo").value)) < low + 1e-9
    assert (found.amortisation > -6 * found.amortisation_stderr - 0.01).all()
    assert found.family == {"latent": "Normal"}


def test_the_search_compiles(interpreted: None):
    """To the numbers of the search as written, whatever block it was compiled for."""
    pair, x = fresh(make=ModuleVAE), binary_rows(12)
    search = pv.LocalSearch(3, 1, 4)
    written, compiled = (
        pv.gap_decomposition(pair, x, 20, search=search, richer=False, compile=c, progress=False) for c in (False, True)
    )
    assert_within(written.best_elbo, compiled.best_elbo, absolute=1e-4, reason="single precision, after three steps")
