"""What the compiler is given instead computes the same numbers, at the ends of their range too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.compile.capture import capture
from ppl_vae.compile.rewrite import rewrite
from ppl_vae.evaluation.proposal import propose

EPSILON = torch.finfo(torch.float32).eps


def rewritten(function, *arguments):
    """The function after capture and rewrites, and the names of the operations it then has."""
    captured = capture(function, *arguments)
    rewrite(captured.graph)
    names = {node.target for node in captured.graph.graph.nodes if node.op == "call_function"}
    return captured.graph, names


def test_tanh_is_right_to_a_few_units_in_the_last_place():
    small, ordinary = torch.logspace(-30, 0, 5000), torch.linspace(0, 12, 200_000)
    x = torch.cat([small, ordinary, torch.tensor([0.0, 88.0, 1e30, torch.inf])])
    x = torch.cat([x, -x])
    graph, names = rewritten(lambda t: (torch.tanh(t),), x)
    (found,) = graph(x)
    expected = x.double().tanh()
    assert torch.ops.aten.tanh.default not in names
    assert float(((found - expected).abs() / expected.abs().clamp_min(1e-38)).max()) < 8 * EPSILON
    assert bool(found.abs().max() <= 1)
    assert bool(graph(torch.tensor([torch.nan]).expand(len(x)))[0].isnan().all())


def test_tanh_in_double_precision_stays():
    x = torch.linspace(-3, 3, 100, dtype=torch.float64)
    graph, names = rewritten(lambda t: (torch.tanh(t),), x)
    assert torch.ops.aten.tanh.default in names
    torch.testing.assert_close(graph(x)[0], x.tanh(), rtol=0, atol=0)


@pytest.mark.parametrize(("shape", "regrouped"), [((784,), True), ((64,), True), ((28, 28), True), ((30,), False)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_sums_over_bits(shape, regrouped, scale, generator):
    """log p of bits under Bernoullis whose logits are tiny or huge; the bits are the same for every particle."""
    logits = scale * torch.randn(3, 5, *shape, generator=generator)
    x = (torch.rand(5, *shape, generator=generator) < 0.5).float()

    def log_prob(logits, x):
        bits = torch.distributions.Bernoulli(logits=logits, validate_args=False)
        return (torch.distributions.Independent(bits, len(shape)).log_prob(x),)

    graph, names = rewritten(log_prob, logits, x)
    expected = log_prob(logits.double(), x.double())[0]
    assert torch.ops.aten.binary_cross_entropy_with_logits.default not in names
    assert (torch.ops.aten.prod.dim_int in names) == regrouped
    torch.testing.assert_close(graph(logits, x)[0].double(), expected, rtol=4 * EPSILON, atol=1e-4)


def test_affine_maps(generator):
    layer = nn.Linear(7, 4)
    x = torch.randn(5, 7, generator=generator)
    graph, names = rewritten(lambda t: (layer(t),), x)
    held = [layer.weight.detach(), layer.bias.detach()]
    assert torch.ops.aten.addmm.default not in names
    torch.testing.assert_close(graph(*held, x)[0], layer(x))


def test_a_chunk_takes_memory_for_what_it_makes_not_for_what_it_sees():
    """Weights that are only looked at in another shape do not count: a decoder of MNIST scores a thousand at once."""
    from ppl_vae.evaluation.scoring import Scorer

    decoder = pv.decoders.Bernoulli.mlp(50, [200, 200], 784)
    vae = pv.VAE(pv.priors.StandardNormal(50), decoder, pv.encoders.DiagonalNormal.mlp(784, [200, 200], 50))
    x = torch.zeros(2, 784)
    pair, layout = pv.as_pair(vae), pv.check(vae, x).layout
    scorer = Scorer(pair, layout, 256 << 20, False, 10_000)
    with torch.no_grad():
        rows, particles = scorer._chunk_shape((x,), propose(pair, (x,), 5000, layout), 5000)
    assert rows * particles > 900
