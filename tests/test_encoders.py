"""Encoders: densities against scipy, the order of features, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from ppl_vae.encoders import DiagonalNormal, FullCovarianceNormal, LowRankNormal
from ppl_vae.errors import PairError
from ppl_vae.networks import MLP
from tests.statistical import assert_close


class RankTwo(LowRankNormal):
    """The low-rank encoder, made as the others are."""

    def __init__(self, network, latent_dim, min_scale=0.0):
        super().__init__(network, latent_dim, 2, min_scale)

    @classmethod
    def mlp(cls, in_features, hidden, latent_dim, min_scale=0.0):
        return LowRankNormal.mlp(in_features, hidden, latent_dim, 2, min_scale)


ENCODERS = [DiagonalNormal, FullCovarianceNormal, RankTwo]


def softplus(raw):
    return np.log1p(np.exp(raw))


@pytest.mark.parametrize("min_scale", [0.0, 0.3])
def test_diagonal_normal_has_the_density_of_its_features(min_scale, generator):
    features, z = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (6, 3))
    q = DiagonalNormal(nn.Identity(), 3, min_scale)(features)
    loc, raw = features.numpy()[:, :3], features.numpy()[:, 3:]
    expected = stats.norm(loc, min_scale + softplus(raw)).logpdf(z.numpy()).sum(1)
    assert_close(q.log_prob(z), expected)


@pytest.mark.parametrize("min_scale", [0.0, 0.3])
@pytest.mark.parametrize("dim", [1, 2, 4])
def test_full_covariance_normal_has_the_density_of_its_features(dim, min_scale, generator):
    below = dim * (dim - 1) // 2
    features = torch.randn(5, 2 * dim + below, generator=generator, dtype=torch.float64)
    z = torch.randn(5, dim, generator=generator, dtype=torch.float64)
    q = FullCovarianceNormal(nn.Identity(), dim, min_scale)(features)
    for row, point, log_prob in zip(features.numpy(), z.numpy(), q.log_prob(z), strict=True):
        factor = np.diag(min_scale + softplus(row[dim : 2 * dim]))
        factor[np.tril_indices(dim, -1)] = row[2 * dim :]
        expected = stats.multivariate_normal(row[:dim], factor @ factor.T).logpdf(point)
        assert_close(log_prob, expected)


@pytest.mark.parametrize("min_scale", [0.0, 0.3])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_low_rank_normal_has_the_density_of_its_features(rank, min_scale, generator):
    dim = 3
    features = torch.randn(5, (rank + 2) * dim, generator=generator, dtype=torch.float64)
    z = torch.randn(5, dim, generator=generator, dtype=torch.float64)
    q = LowRankNormal(nn.Identity(), dim, rank, min_scale)(features)
    for row, point, log_prob in zip(features.numpy(), z.numpy(), q.log_prob(z), strict=True):
        factor = row[2 * dim :].reshape(dim, rank)
        covariance = factor @ factor.T + np.diag(min_scale + softplus(row[dim : 2 * dim])) ** 2
        assert_close(log_prob, stats.multivariate_normal(row[:dim], covariance).logpdf(point))


def test_a_rank_of_none_is_refused():
    with pytest.raises(ValueError, match="rank: expected at least 1"):
        LowRankNormal.mlp(4, [], 3, 0)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_mlp_encoder_takes_data_and_particles_and_trains(encoder):
    q = encoder.mlp(64, [10], 3)
    assert q(torch.zeros(5, 1, 8, 8)).batch_shape == (5,)
    assert q(torch.zeros(2, 5, 64)).batch_shape == (2, 5)
    z = q(torch.ones(5, 64)).rsample()
    assert z.shape == (5, 3)
    z.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in q.parameters())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("min_scale", [-0.1, float("nan"), float("inf")])
def test_scales_without_a_lower_bound_are_refused(encoder, min_scale):
    with pytest.raises(PairError, match="min_scale"):
        encoder.mlp(4, [], 3, min_scale)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_indices_are_no_state(encoder):
    assert set(encoder.mlp(4, [], 3).state_dict()) == {"network.layers.0.weight", "network.layers.0.bias"}


@pytest.mark.parametrize(("encoder", "expected"), [(DiagonalNormal, 6), (FullCovarianceNormal, 9), (RankTwo, 12)])
def test_other_numbers_of_features_are_refused(encoder, expected):
    with pytest.raises(PairError, match=f"expected {expected} features .*found 7"):
        encoder(MLP(4, [], 7), 3)(torch.zeros(2, 4))
