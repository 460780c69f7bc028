"""The examples of a checkout of Pyro, imported as they are, and pairs in their form, go through every evaluation.

The examples are no part of what pip installs: set PYRO_CHECKOUT to a clone of https://github.com/pyro-ppl/pyro.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch

import ppl_vae as pv
from tests.pairs import binary_rows
from tests.pyro_programs import VAE, SemiSupervised

FIT = {"epochs": 4, "batch_size": 16, "learning_rate": 5e-3, "compile": False, "progress": False}


class Case(NamedTuple):
    """A pair as Pyro has it, and data for it."""

    pair: Any
    data: Any
    objective: Any = pv.ELBO()


def images(n: int = 48) -> torch.Tensor:
    """Binary images of 784 pixels, of one kind."""
    return (torch.rand(n, 784) < torch.linspace(0.02, 0.5, 784)).float()


def in_small() -> dict[str, Case]:
    """Pairs in the form of the examples, for machines without a checkout."""
    torch.manual_seed(0)
    few = torch.bernoulli(torch.full((48, 6), 0.3))
    return {
        "VAE": Case(VAE(), few),
        "labels": Case(SemiSupervised(), (binary_rows(48), torch.eye(3)[torch.arange(48) % 3])),
        "no labels": Case(SemiSupervised(), binary_rows(48), pv.ELBO(discrete="enumerate")),
    }


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of examples/vae, with its drawing and its download of MNIST left out."""
    folder = Path(os.environ.get("PYRO_CHECKOUT", "")) / "examples" / "vae"
    if not (folder / f"{name}.py").is_file():
        pytest.skip("no checkout of Pyro: set PYRO_CHECKOUT to one")
    for absent in ("visdom", "utils.mnist_cached", "utils.vae_plots", "pyro.contrib.examples.util"):
        stub = ModuleType(absent)
        stub.__getattr__ = lambda _: None
        monkeypatch.setitem(sys.modules, absent, stub)
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location(f"pyro_example_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def vae(monkeypatch: pytest.MonkeyPatch) -> Case:
    """examples/vae/vae.py."""
    return Case(example("vae", monkeypatch).VAE(z_dim=5, hidden_dim=16), images())


def semi_supervised(monkeypatch: pytest.MonkeyPatch, labelled: bool) -> Case:
    """examples/vae/ss_vae_M2.py, of images with labels or without."""
    module = example("ss_vae_M2", monkeypatch)
    pair = module.SSVAE(z_dim=5, hidden_layers=[16], config_enum="parallel")
    if labelled:
        return Case(pair, (images(), torch.eye(10)[torch.arange(48) % 10]))
    return Case(pair, images(), pv.ELBO(2))


CASES: dict[str, Callable[[pytest.MonkeyPatch], Case]] = {
    **{f"in small, {name}": lambda _, name=name: in_small()[name] for name in ("VAE", "labels", "no labels")},
    "vae.py": vae,
    "ss_vae_M2.py, labels": lambda patch: semi_supervised(patch, labelled=True),
    "ss_vae_M2.py, no labels": lambda patch: semi_supervised(patch, labelled=False),
}


def check(case: Case) -> None:
    first = case.data if isinstance(case.data, tuple) else (case.data,)
    assert pv.check(case.pair, tuple(a[:16] for a in first)).num_parameters > 0


def fit(case: Case) -> None:
    result = pv.fit(case.pair, case.data, objective=case.objective, **FIT)
    assert result.history[-1].elbo > result.history[0].elbo


def log_likelihood(case: Case) -> None:
    ll = pv.log_likelihood(case.pair, case.data, 50, compile=False, progress=False)
    assert np.isfinite(ll.value).all()
    assert (ll.value >= ll.elbo - 1e-6).all()


def compare(case: Case) -> None:
    found = pv.compare({"one": case.pair, "same": case.pair}, case.data, 20, compile=False, progress=False)
    assert found.differences[0].mean == 0


def split(case: Case) -> None:
    search = pv.LocalSearch(num_steps=10, max_rounds=2, num_particles=4)
    gaps = pv.gap_decomposition(case.pair, case.data, 50, search=search, compile=False, progress=False)
    for part in ("approximation", "amortisation", "gap"):
        low, high = gaps.interval(part)
        assert np.isfinite(gaps.mean(part).value)
        assert 0 <= low <= high
    assert np.allclose(gaps.approximation + gaps.amortisation, gaps.log_evidence - gaps.elbo)
    assert ("have not converged" in str(gaps)) == (not gaps.converged.all())


def calibrate(case: Case) -> None:
    found = pv.calibrate(case.pair, case.data, num_simulations=48, num_draws=19, progress=False)
    assert all(((r >= 0) & (r <= 19)).all() and len(r) == 48 for r in found.ranks.values())
    assert str(found).startswith(("calibrated", "not calibrated"))


# What a pair goes through, in this order; another evaluation is a line here.
WAY: list[Callable[[Case], None]] = [check, fit, log_likelihood, compare, split, calibrate]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
def test_a_pair_of_pyros_own_goes_all_the_way(name: str, monkeypatch: pytest.MonkeyPatch):
    case = CASES[name](monkeypatch)
    for step in WAY:
        step(case)
    assert len(pyro.get_param_store()) == 0
