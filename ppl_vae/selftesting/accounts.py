"""What guides of a family can reach, and what latents say of the data, against closed forms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ppl_vae.evaluation import LocalSearch, gap_decomposition, ledger
from ppl_vae.exact import PPCA
from ppl_vae.selftesting.programs import LinearGaussian, MeanField, Setting
from ppl_vae.selftesting.rows import Row, between, equal, estimated

__all__ = ["aggregate", "families"]

_DIM, _LATENT, _CLOSE = 5, 2, 0.004
_NODES, _DRAWS, _APART = 100, 2000, 1.5


def families(setting: Setting) -> Iterator[Row]:
    """Independent latents cost what is known, all of which a full covariance gives back."""
    pair = MeanField(_DIM, _LATENT)
    x = pair.draw(16, setting.seed)
    found = gap_decomposition(
        pair, x, 1000, setting.seed, search=LocalSearch(150, 1), compile=False, device=setting.device, progress=False
    )
    least, gained = found.mean("approximation"), found.mean("richer_gain")
    exact = pair.least_kl
    yield between("approximation gap of independent latents", least.value, exact, exact + _CLOSE, least.stderr)
    yield between("what the richer family gains", gained.value, exact - _CLOSE, exact + _CLOSE, gained.stderr)


def aggregate(setting: Setting) -> Iterator[Row]:
    """Two data, with the posteriors N(m, s^2) and N(m + d s, s^2) of one latent: their mixture is the aggregate."""
    pair = LinearGaussian(_DIM, 1)
    x = pair.draw(1, setting.seed).detach()
    shift = torch.linalg.solve(pair.gain @ pair.weight, _APART * pair.posterior(x)[1].sqrt())
    x = torch.cat([x, x + (pair.weight @ shift).T]).detach()
    loc, covariance = pair.posterior(x)
    apart = float((loc[1] - loc[0]) / covariance.sqrt())
    found = ledger(pair, x, 2, setting.seed, num_aggregate=_DRAWS, device=setting.device, progress=False).surgery
    assert found is not None
    information, error = found.mutual_information, found.mutual_information_stderr
    yield estimated("ledger: mutual information of two data", information, _information(apart), error)
    yield estimated("its upper bound, a KL", found.upper, apart**2 / 2, found.upper_stderr)
    loading = torch.tensor([[1.0, 0.0], [0.5, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    ppca = PPCA(loading, torch.zeros(3, dtype=torch.float64), 0.5)
    use = ledger(ppca, ppca.sample(200), 2, setting.seed, num_aggregate=0, device=setting.device, progress=False)
    active = use.latents[0].active
    assert active is not None
    yield equal("active units of two latents, one of them unused", active.astype(float), [1.0, 0.0], 0.0)


def _information(apart: float) -> float:
    """E log q / [(q + q') / 2] of two normals so many standard deviations apart, by Gauss-Hermite quadrature."""
    z, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    log_other = apart * z - apart**2 / 2
    return float(weights / weights.sum() @ (np.log(2) - np.logaddexp(0.0, log_other)))
