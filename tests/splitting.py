"""Decompositions of a gap, quick ones, for tests."""

from __future__ import annotations

import ppl_vae as pv

QUICK = pv.LocalSearch(num_steps=60, max_rounds=3, num_particles=64, learning_rate=0.1)


def split(pair, x, num_samples=500, search=QUICK, **options):
    return pv.gap_decomposition(pair, x, num_samples, search=search, compile=False, progress=False, **options)
