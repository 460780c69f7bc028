"""Short fits for tests."""

from __future__ import annotations

import ppl_vae as pv
from ppl_vae.pair import as_pair
from ppl_vae.rng import seeded
from tests.pairs import ModuleVAE


def state(pair):
    return {name: value.detach().clone() for name, value in as_pair(pair).state_dict().items()}


def fresh(seed=0, make=ModuleVAE):
    with seeded(seed):
        return make()


def train(pair, x, **options):
    return pv.fit(pair, x, **{"epochs": 2, "batch_size": 4, "progress": False, **options})


def fitted(pair, data, **options):
    """A fit in batches of eight rows, on the CPU."""
    return pv.fit(pair, data, **{"batch_size": 8, "progress": False, "device": "cpu", **options})
