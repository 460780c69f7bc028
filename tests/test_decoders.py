"""Decoders: densities against scipy, supports, scales, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from statistical import assert_close
from torch import nn

from ppl_vae.decoders import Bernoulli, Gaussian
from ppl_vae.errors import PairError
from ppl_vae.networks import MLP, ConvDecoder


def softplus(raw):
    return np.log1p(np.exp(raw))


@pytest.mark.parametrize("shape", [6, (6,), (1, 2, 3)])
def test_bernoulli_has_the_density_of_its_logits(shape, generator):
    logits = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    p = Bernoulli(nn.Identity(), shape)(logits)
    x = p.sample()
    assert x.shape == (4, 5, *((shape,) if isinstance(shape, int) else shape))
    expected = stats.bernoulli(1 / (1 + np.exp(-logits.numpy()))).logpmf(x.reshape(4, 5, 6).numpy()).sum(-1)
    assert_close(p.log_prob(x).numpy(), expected)


def test_bernoulli_scores_binary_data_only():
    p = Bernoulli.mlp(2, [], 3)(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.full((1, 3), 0.5))


def test_convolutions_decode_particles_to_images_or_flat_data():
    network = ConvDecoder(2, [3, 2], (1, 8, 8))
    z = torch.zeros(4, 5, 2)
    assert Bernoulli(network, (1, 8, 8))(z).event_shape == (1, 8, 8)
    assert Bernoulli(network, 64)(z).event_shape == (64,)
    assert Bernoulli(network, 64)(z).batch_shape == (4, 5)


def test_start_at_gives_the_smoothed_pixel_means(generator):
    x = torch.bernoulli(torch.full((9, 1, 2, 2), 0.3), generator=generator)
    x[:, 0, 0, 0], x[:, 0, 1, 1] = 0, 1
    decoder = Bernoulli.mlp(2, [3], (1, 2, 2))
    decoder.start_at(x)
    nn.init.zeros_(decoder.network.layers[-1].weight)
    assert_close(decoder(torch.randn(7, 2)).mean[3], (x.sum(0) + 0.5) / 10)


@pytest.mark.parametrize("network", [ConvDecoder(2, [3], (1, 2, 2)), nn.Identity(), MLP(2, [], 5)])
def test_start_at_refuses_a_network_without_one_bias_per_pixel(network):
    with pytest.raises(PairError, match="4 biases"):
        Bernoulli(network, 4).start_at(torch.zeros(9, 4))


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


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), "fixed", ""])
def test_other_scales_are_refused(scale):
    with pytest.raises(PairError, match="scale expected"):
        Gaussian(nn.Identity(), 6, scale)


@pytest.mark.parametrize(("scale", "min_scale"), [(0.1, 0.2), (1.0, -1.0), ("learned", float("nan"))])
def test_scales_below_their_bound_are_refused(scale, min_scale):
    with pytest.raises(PairError, match="expected"):
        Gaussian(nn.Identity(), 6, scale, min_scale)


@pytest.mark.parametrize("shape", [0, (), (1, -2)])
def test_empty_events_are_refused(shape):
    with pytest.raises(PairError, match="event_shape"):
        Bernoulli(nn.Identity(), shape)


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [(Bernoulli, "6"), (Gaussian, "6"), (lambda n, s: Gaussian(n, s, "per_latent"), "7 or 12")],
)
def test_other_numbers_of_features_are_refused(decoder, expected):
    with pytest.raises(PairError, match=f"expected {expected} features .*found 8"):
        decoder(MLP(2, [], 8), 6)(torch.zeros(3, 2))
