"""What results have in common with other values of Python: they can be copied, sent to a process, and compared."""

from __future__ import annotations

import copy
import pickle

import pytest

import ppl_vae as pv
from tests.pairs import ModuleVAE, binary_rows
from tests.training import train

X = binary_rows(12)


def estimated() -> pv.LogLikelihood:
    return pv.log_likelihood(ModuleVAE(), X, 20, progress=False)


RESULTS = {
    "Fit": lambda: train(ModuleVAE(), X),
    "Fit with validation": lambda: train(ModuleVAE(), X, validation=X, record_kl=True),
    "LogLikelihood": estimated,
    "Comparison": lambda: pv.compare({"one": ModuleVAE()}, X, 20, progress=False),
    "PosteriorPredictive": lambda: pv.posterior_predictive(ModuleVAE(), X, 20, corrected=False, progress=False),
    "CheckReport": lambda: pv.check(ModuleVAE(), X),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_can_be_copied_and_pickled(name: str):
    found = RESULTS[name]()
    for again in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert type(again) is type(found)
        assert repr(again) == repr(found)


@pytest.mark.parametrize("name", ["LogLikelihood", "Comparison", "PosteriorPredictive"])
def test_results_that_hold_arrays_are_equal_to_themselves_alone(name: str):
    """NumPy compares arrays number by number, which says neither yes nor no."""
    one, other = RESULTS[name](), RESULTS[name]()
    assert one == one
    assert one != other
    assert len({one, other}) == 2
