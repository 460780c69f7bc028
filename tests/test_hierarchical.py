"""Several stochastic layers: against the marginal of a chain of Gaussians, and the network of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.decoders import Bernoulli
from ppl_vae.encoders import DiagonalNormal
from ppl_vae.errors import PairError
from ppl_vae.hierarchical import HierarchicalVAE
from ppl_vae.priors import StandardNormal
from tests.linear import SIGMA, chain
from tests.running import estimate, evaluate
from tests.statistical import assert_close, assert_mean


def small():
    return HierarchicalVAE.burda((1, 2, 3), hidden=((5, 4), (3,)), latent_dims=(3, 2))


def binary(n, generator):
    return torch.bernoulli(torch.full((n, 6), 0.5), generator=generator)


def test_the_exact_guide_makes_every_weight_the_evidence(float64, generator):
    """S1 for two layers: x ~ N(0.5 - 2 x 0.3, 4 Var z1 + sigma^2)."""
    vae, variance = chain()
    x = torch.randn(5, 1, generator=generator)
    expected = torch.distributions.Normal(-0.1, (4 * variance + SIGMA**2) ** 0.5).log_prob(x).squeeze(1)
    ll = estimate(vae, x, 20)
    assert_close(ll.value, expected, torch.float64)
    assert float(ll.stderr.max()) == 0.0
    assert_close(evaluate(vae, x, pv.ELBO(kl="sampled")).elbo, expected.mean())


def test_samples_have_the_moments_of_the_model(float64):
    vae, variance = chain()
    x = vae.sample(100_000).flatten().numpy()
    sd = (4 * variance + SIGMA**2) ** 0.5
    assert_mean(x, -0.1, sigma=sd, effect=0.2)
    assert_mean((x + 0.1) ** 2, sd**2, sigma=sd**2 * 2**0.5, effect=0.7)


def test_reconstructions_go_through_the_first_layer(float64):
    vae, _ = chain()
    x = torch.tensor([[1.0], [-2.0]])
    means = vae.reconstruct(x, 20_000).squeeze(-1)
    with torch.no_grad():
        q = vae.encoders[0](x)
    for n in range(2):
        expected = 0.5 - 2 * float(q.mean[n])
        assert_mean(means[:, n].numpy(), expected, sigma=2 * float(q.stddev[n]), effect=0.1)


def test_the_default_is_the_network_of_the_paper():
    def widths(network):
        linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
        return [linear[0].in_features, *(m.out_features for m in linear)]

    vae = HierarchicalVAE.burda()
    assert [widths(e) for e in vae.encoders] == [[784, 200, 200, 2 * 100], [100, 100, 100, 2 * 50]]
    assert [widths(c) for c in vae.conditionals] == [[50, 100, 100, 2 * 100]]
    assert widths(vae.decoder) == [100, 200, 200, 784]


def test_the_top_layer_has_a_closed_form_and_every_parameter_trains(generator):
    vae, x = small(), binary(6, generator)
    assert pv.check(vae, x).layout.analytic == {"z2"}
    evaluate(vae, x, pv.ELBO()).loss.backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in vae.parameters())
    assert vae.sample(4).shape == (4, 1, 2, 3)
    assert vae.reconstruct(x, 5).shape == (5, 6, 1, 2, 3)


def test_three_layers_run_from_top_to_bottom(generator):
    vae = HierarchicalVAE.burda(6, ((5,), (4,), (3,)), (4, 3, 2))
    layout = pv.check(vae, binary(6, generator)).layout
    assert layout.local_latents == ("z1", "z2", "z3")
    assert layout.vectorized


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditionals": []}, "at least two encoders and one conditional fewer, found 2 encoders and 0"),
        ({"prior": StandardNormal(5)}, "latent_dim: expected 5 in the encoder of z2, as in the model, found 2"),
        ({"encoders": [DiagonalNormal.mlp(6, [], 9), DiagonalNormal.mlp(9, [], 2)]}, "encoder of z1.*found 9"),
        ({"conditionals": [3]}, "encoder: expected a module, found int"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    parts = {
        "prior": StandardNormal(2),
        "conditionals": [DiagonalNormal.mlp(2, [], 3)],
        "decoder": Bernoulli.mlp(3, [], 6),
        "encoders": [DiagonalNormal.mlp(6, [], 3), DiagonalNormal.mlp(3, [], 2)],
    }
    with pytest.raises(PairError, match=message):
        HierarchicalVAE(**{**parts, **change})


def test_a_conditional_for_other_latents_is_named(generator):
    vae = small()
    vae.conditionals[0] = DiagonalNormal.mlp(7, [], 3)
    with pytest.raises(
        PairError, match=r"the conditional of z1 failed on z of shape \(\d, 2\).*latents of shape \(2,\)"
    ):
        pv.check(vae, binary(4, generator))
