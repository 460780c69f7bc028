"""The path of annealed chains, for tests."""

from __future__ import annotations

from ppl_vae.checking import check
from ppl_vae.evaluation.path import Path
from ppl_vae.pair import as_pair


def path_of(pair, x, num_chains=4, start="prior"):
    """From the start to the posterior of data x."""
    pair = as_pair(pair)
    return Path(pair, (x,), check(pair, (x,)).layout, num_chains, start)
