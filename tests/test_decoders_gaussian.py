"""The decoder of real numbers: densities against scipy, scales, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from ppl_vae.decoders import Gaussian
from ppl_vae.errors import PairError
from ppl_vae.networks import MLP
from tests.statistical import assert_close


def softplus(raw):
    return np.log1p(np.exp(raw))


@pytest.mark.parametrize("scale", [0.1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_of_fixed_scale(scale, dtype, generator):
    loc, x = (torch.randn(4, 6, generator=generator, dtype=dtype) for _ in range(2))
    decoder = Gaussian(nn.Identity(), 6, scale)
    assert not list(decoder.parameters())
    log_prob = decoder(loc).log_prob(x)
    expected = stats.norm(loc.double().numpy(), scale).logpdf(x.double().numpy()).sum(-1)
    assert log_prob.dtype == dtype
    assert_close(log_prob, expected)


@pytest.mark.parametrize("min_scale", [0.0, 0.25])
def test_gaussian_of_learned_scale_has_one_parameter_that_trains(min_scale):
    decoder = Gaussian(nn.Identity(), (1, 2, 3), "learned", min_scale)
    assert [p.numel() for p in decoder.parameters()] == [1]
    p = decoder(torch.zeros(4, 6))
    assert_close(p.base_dist.scale.unique(), [min_scale + np.log(2)])
    p.log_prob(torch.ones(4, 1, 2, 3)).sum().backward()
    # d/dsigma of -log sigma - 1 / (2 sigma^2), with d sigma / d raw = 1/2, for 24 entries
    sigma = min_scale + np.log(2)
    assert_close(decoder.raw_scale.grad, 24 * (sigma**-3 - 1 / sigma) / 2)


@pytest.mark.parametrize("num_scales", [1, 6])
@pytest.mark.parametrize("min_scale", [0.0, 0.25])
@pytest.mark.parametrize("shape", [6, (1, 2, 3)])
def test_gaussian_of_scale_per_latent(num_scales, min_scale, shape, generator):
    features = torch.randn(3, 4, 6 + num_scales, generator=generator, dtype=torch.float64)
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    p = Gaussian(nn.Identity(), shape, "per_latent", min_scale)(features)
    sigma = min_scale + softplus(features.numpy()[..., 6:])
    expected = stats.norm(features.numpy()[..., :6], sigma).logpdf(x.numpy()).sum(-1)
    assert_close(p.log_prob(x.reshape(4, *p.event_shape)).numpy(), expected)


@pytest.mark.parametrize("scale", [0.5, "learned", "per_latent"])
def test_gaussian_mlp_has_the_right_number_of_outputs(scale):
    p = Gaussian.mlp(2, [3], (1, 2, 3), scale)(torch.zeros(4, 5, 2))
    assert p.batch_shape == (4, 5)
    assert p.event_shape == (1, 2, 3)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), "fixed", "", True])
def test_other_scales_are_refused(scale):
    with pytest.raises(PairError, match="scale expected"):
        Gaussian(nn.Identity(), 6, scale)


@pytest.mark.parametrize(("scale", "min_scale"), [(0.1, 0.2), (1.0, -1.0), ("learned", float("nan"))])
def test_scales_below_their_bound_are_refused(scale, min_scale):
    with pytest.raises(PairError, match="expected"):
        Gaussian(nn.Identity(), 6, scale, min_scale)


@pytest.mark.parametrize("scale", [0.7, "learned", "per_latent", "shared"])
def test_start_at_gives_means_and_standard_deviations(scale, generator):
    x = torch.tensor([1.0, -2.0, 0.5]) + torch.tensor([0.1, 1.0, 3.0]) * torch.randn(50, 3, generator=generator)
    network = MLP(2, [4], {"per_latent": 6, "shared": 4}.get(scale, 3))
    decoder = Gaussian(network, 3, "per_latent" if scale == "shared" else scale, min_scale=0.05)
    decoder.start_at(x)
    nn.init.zeros_(network.layers[-1].weight)
    p = decoder(torch.randn(7, 2)).base_dist
    assert_close(p.loc[2], x.mean(0))
    each = x.std(0, correction=0)
    together = each.square().mean().sqrt().expand(3)
    expected = {0.7: torch.full((3,), 0.7), "per_latent": each}.get(scale, together)
    assert_close(p.scale.expand(7, 3)[2], expected)


@pytest.mark.parametrize("scale", ["learned", "per_latent"])
def test_start_at_takes_data_that_never_change(scale):
    decoder = Gaussian.mlp(2, [4], 3, scale)
    decoder.start_at(torch.ones(50, 3))
    assert all(torch.isfinite(p).all() for p in decoder.parameters())


def test_start_at_refuses_a_network_without_one_bias_per_feature():
    with pytest.raises(PairError, match="4 or 6 biases"):
        Gaussian(MLP(2, [], 5), 3, "per_latent").start_at(torch.zeros(9, 3))
