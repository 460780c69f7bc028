"""What experiments share and measure with, each part against an independent answer."""

from __future__ import annotations

import pytest
import torch
from pyro.distributions import Normal
from statistical import assert_close

import ppl_vae as pv
from experiments.common.quadrature import log_evidence


@pytest.mark.usefixtures("float64")
def test_quadrature_gives_the_evidence_of_ppca(generator: torch.Generator):
    ppca = pv.PPCA(torch.randn(5, 2, generator=generator), torch.zeros(5), 0.7)
    x = ppca.sample(7)
    found = log_evidence(lambda z: Normal(z @ ppca.loading.mT + ppca.bias, ppca.scale).to_event(1), x, 200)
    assert_close(found.value, ppca.log_prob(x))
    assert found.error.max() < 1e-8


@pytest.mark.usefixtures("float64")
def test_quadrature_says_where_its_grid_is_too_coarse():
    """A posterior narrower than the grid: the value moves when every second line is left out."""
    x = torch.tensor([[0.3, -0.2]])
    found = log_evidence(lambda z: Normal(z, 1e-3).to_event(1), x, 100)
    assert found.error.item() > 1.0


def test_quadrature_wants_an_event():
    with pytest.raises(ValueError, match=r"expected a likelihood of batch shape \(100,\), found \(100, 2\): declare"):
        log_evidence(lambda z: Normal(z, 1.0), torch.zeros(1, 2), 10)
