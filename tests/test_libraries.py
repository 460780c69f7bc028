"""What of installed packages is entered, and what is not."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.special.cython_special
import scipy.stats
import torch
from scipy import stats
from sklearn.preprocessing import StandardScaler

import ppl_vae as pv
from ppl_vae.attributes import Attributes
from ppl_vae.libraries import is_library
from ppl_vae.pair import as_pair

x = torch.linspace(-1, 1, 6)
compiled = scipy.special.cython_special.gamma
frozen = scipy.stats.gamma(2.0)
scaler = StandardScaler().fit(np.array([[0.0], [2.0]]))
frame = pd.DataFrame({"scale": [1.0, 2.0]})

PACKAGE = """
import {imported}
import torch
from torch import nn

class Box:
    def __init__(self):
        self.net, self.calls = nn.Linear(1, 1), 0

    def __call__(self, x):
        self.calls += 1
        return self.net(x.unsqueeze(-1)).squeeze(-1)

box, net = Box(), nn.Linear(1, 1)

def encode(x):
    return net(x.unsqueeze(-1)).squeeze(-1)
"""


def observing(scale):
    """A pair whose model asks for the scale of its datum each time it runs."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale()), obs=x)

    return pv.Pair(model, guided(lambda x: 0.5 * x).guide)


def guided(encode):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encode(x), 0.8))

    return pv.Pair(model, guide)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes a package where packages are installed, and returns it."""
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))

    def make(name: str, imported: str):
        (tmp_path / "site-packages" / name).mkdir(parents=True)
        (tmp_path / "site-packages" / name / "__init__.py").write_text(PACKAGE.format(imported=imported))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return make


@pytest.mark.parametrize(
    "scale",
    [
        lambda: 1 / stats.norm.ppf(0.75),
        lambda: frozen.mean() / 2,
        lambda: float(scaler.scale_[0]),
        lambda: float(frame["scale"].iloc[0]),
        lambda: compiled(1.0),
    ],
    ids=["a function of SciPy", "a distribution of SciPy", "an estimator", "a data frame", "a compiled function"],
)
def test_programs_may_use_other_libraries(scale):
    pair = observing(scale)
    assert np.isfinite(pv.log_likelihood(pair, x, 20, progress=False).value).all()
    names = [place.holder.name for place in Attributes(as_pair(pair)).places]
    assert not [name for name in names if name.startswith(("norm", "frozen.", "scaler.", "frame."))]


def test_what_compiled_extensions_give_for_a_module_is_a_librarys():
    kind = type(type(compiled))
    assert not isinstance(kind.__module__, str)
    assert is_library(kind.__module__)
    assert not is_library(None)


def test_an_installed_package_of_programs_is_the_users(installed):
    package = installed("programs_installed", "pyro")
    pair = guided(package.encode)
    assert {id(p) for p in package.net.parameters()} <= {id(p) for p in pair.parameters()}
    attributes = Attributes(as_pair(guided(package.box)))
    package.box.calls += 1
    assert "calls" in attributes.changed().name


def test_of_other_installed_packages_parameters_are_found_and_nothing_else(installed):
    package = installed("tools_installed", "math")
    for encode, net in ((package.box, package.box.net), (package.encode, package.net)):
        pair = guided(encode)
        assert {id(p) for p in net.parameters()} == {id(p) for p in pair.parameters()}
        attributes = Attributes(as_pair(pair))
        package.box.calls += 1
        assert attributes.changed() is None
