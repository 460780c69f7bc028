"""Export to ArviZ 1.x, whose `from_dict` takes one mapping of groups; ArviZ 0.x is under test in test_likelihood."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from tests.pairs import HierarchicalVAE, binary_rows

SAMPLED = {"posterior", "log_likelihood", "posterior_predictive"}


class Tree(dict):
    """The groups, each variable as (dimensions, values)."""


def from_dict(
    data,
    *,
    name=None,
    sample_dims=None,
    save_warmup=None,
    index_origin=None,
    coords=None,
    dims=None,
    pred_dims=None,
    pred_coords=None,
    check_conventions=True,
    attrs=None,
):
    """`arviz.from_dict` of 1.x by its signature: samples have the dimensions chain and draw, constants have not."""
    tree = Tree()
    for group, variables in data.items():
        leading = ["chain", "draw"] if group in SAMPLED else []
        tree[group] = {key: ([*leading, *dims[key]], np.asarray(value)) for key, value in variables.items()}
    for group, variables in tree.items():
        for key, (named, value) in variables.items():
            assert len(named) == value.ndim, f"{group}/{key} has shape {value.shape} and dimensions {named}"
    return tree


@pytest.fixture(params=["fake", "real"])
def arviz_1(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """ArviZ 1.x: its signature, and where it is installed `arviz_base`, which is where 1.x has it from."""
    module = ModuleType("arviz")
    module.__version__ = "1.0.0"
    module.from_dict = from_dict if request.param == "fake" else pytest.importorskip("arviz_base").from_dict
    monkeypatch.setitem(sys.modules, "arviz", module)


@pytest.mark.usefixtures("arviz_1")
def test_groups_dimensions_and_numbers():
    ll = pv.log_likelihood(HierarchicalVAE(), binary_rows(7), 100, num_draws=5, progress=False)
    tree = ll.to_arviz()
    read = (lambda g, k: tree[g][k]) if isinstance(tree, Tree) else (lambda g, k: (tree[g][k].dims, tree[g][k].values))
    for name in ("z1", "z2"):
        dims, values = read("posterior", name)
        assert list(dims) == ["chain", "draw", "datum", f"{name}_dim_0"]
        np.testing.assert_array_equal(values, ll.posterior[name][np.newaxis])
    dims, values = read("log_likelihood", "x")
    assert list(dims) == ["chain", "draw", "datum"]
    np.testing.assert_array_equal(values, ll.posterior_log_lik[np.newaxis])
    for name in ("value", "stderr", "ess", "khat", "elbo"):
        dims, values = read("constant_data", name)
        assert list(dims) == ["datum"]
        np.testing.assert_array_equal(values, getattr(ll, name))


@pytest.mark.usefixtures("arviz_1")
def test_latents_whose_names_are_taken_keep_names_of_their_own():
    """Both were "x_", so that one was lost."""

    def model(y):
        with pyro.plate("data", len(y)):
            x, other = (pyro.sample(name, dist.Normal(torch.zeros(len(y)), 1.0)) for name in ("x", "x_"))
            pyro.sample("y", dist.Normal(x + other, 1.0), obs=y)

    def guide(y):
        with pyro.plate("data", len(y)):
            for name in ("x", "x_"):
                pyro.sample(name, dist.Normal(y / 3, 1.0))

    ll = pv.log_likelihood(pv.Pair(model, guide), torch.randn(4), 50, num_draws=5, progress=False)
    tree = ll.to_arviz()
    assert set(tree["posterior"]) == {"x_", "x__"}
    for name, latent in (("x_", "x_"), ("x__", "x")):
        np.testing.assert_array_equal(np.asarray(tree["posterior"][name][1])[0], ll.posterior[latent])


@pytest.mark.filterwarnings("ignore:draws of .* unreliable")
@pytest.mark.usefixtures("arviz_1")
def test_predictive_groups():
    found = pv.posterior_predictive(HierarchicalVAE(), binary_rows(7), 5, progress=False)
    tree = found.to_arviz()
    read = (lambda g, k: tree[g][k]) if isinstance(tree, Tree) else (lambda g, k: (tree[g][k].dims, tree[g][k].values))
    for group, name, value, leading in (
        ("posterior", "z1", found.posterior["z1"][np.newaxis], ["chain", "draw"]),
        ("posterior_predictive", "x", found.predictive["x"][np.newaxis], ["chain", "draw"]),
        ("observed_data", "x", found.observed["x"], []),
    ):
        dims, values = read(group, name)
        assert list(dims) == [*leading, "datum", f"{name}_dim_0"]
        np.testing.assert_array_equal(values, value)
    assert list(read("log_likelihood", "log_lik")[0]) == ["chain", "draw", "datum"]
