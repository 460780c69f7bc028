"""Autoregressive models: what sees what, probabilities that sum to one, draws of that law, and where they serve."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.autoregressive import MADE, Autoregressive, PixelCNN
from ppl_vae.cli.pictures import has_mean
from tests.running import estimate
from tests.statistical import assert_close, assert_estimates

IMAGES = {
    "binary": ((1, 4, 5), 2),
    "levels": ((1, 4, 5), 3),
    "two colours": ((2, 3, 4), 2),
    "three colours, levels": ((3, 3, 3), 4),
}


@pytest.fixture(autouse=True)
def _double(float64):
    """Identities hold to 1e-10."""


def pixelcnn(shape=(1, 4, 5), levels=2, **options):
    return PixelCNN(shape, **{"channels": 12, "num_layers": 3, "levels": levels, "first_size": 3, **options})


def dependence(model, context=None, draws=6):
    """Which entry's logits (rows) some draw of the data shows to depend on which entry (columns), in model order."""
    size = prod(model.event_shape)
    order = torch.arange(size) if model.order is None else torch.tensor(model.order)
    found = torch.zeros(size, size, dtype=torch.bool)
    for _ in range(draws):
        x = torch.randint(model.levels, (1, *model.event_shape)).double()
        jacobian = torch.autograd.functional.jacobian(lambda x: model.logits(x, context), x)
        each = jacobian.reshape(*model.event_shape, -1, size).abs().sum(-2).reshape(size, size)
        found |= each[order][:, order] > 0
    return found


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("sizes", [(3, 3), (5, 7)])
def test_a_pixel_depends_on_every_earlier_one_and_on_no_other(name, sizes):
    """No blind spot, nothing of itself: the Jacobian is strictly lower triangular, and full there."""
    kernel, first = sizes
    model = pixelcnn(*IMAGES[name], channels=15, num_layers=5, kernel_size=kernel, first_size=first)
    size = prod(model.event_shape)
    assert torch.equal(dependence(model), torch.ones(size, size).tril(-1).bool())


@pytest.mark.parametrize(("levels", "context"), [(2, 0), (4, 0), (2, 3), (3, 2)])
def test_an_entry_of_a_vector_depends_on_every_earlier_one_and_on_no_other(levels, context):
    model = MADE(6, [12, 14], levels, context)
    given = torch.randn(context) if context else None
    assert torch.equal(dependence(model, given), torch.ones(6, 6).tril(-1).bool())


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5)])
def test_every_pixel_depends_on_the_context(shape):
    model = pixelcnn(context_shape=shape)
    x, context = torch.ones(1, 1, 4, 5), torch.randn(1, *shape)
    jacobian = torch.autograd.functional.jacobian(lambda c: model.logits(x, c), context)
    assert (jacobian.reshape(20, 3, -1).abs().sum(-1) > 0).all()


def test_every_entry_of_a_vector_depends_on_the_context():
    model = MADE(4, [8], context_dim=2)
    jacobian = torch.autograd.functional.jacobian(lambda c: model.logits(torch.ones(4), c), torch.randn(2))
    assert (jacobian != 0).all()


def every_datum(shape, levels):
    return torch.tensor(list(product(range(levels), repeat=prod(shape)))).double().reshape(-1, *shape)


MODELS = {
    "binary image": lambda: pixelcnn((1, 3, 3)),
    "image of three levels": lambda: pixelcnn((1, 2, 3), 3),
    "image of two colours": lambda: pixelcnn((2, 2, 2)),
    "binary vector": lambda: MADE(5, [7]),
    "vector of three levels": lambda: MADE(4, [7, 6], 3),
}


@pytest.mark.parametrize("name", MODELS)
def test_probabilities_sum_to_one(name):
    model = MODELS[name]()
    x = every_datum(model.event_shape, model.levels)
    assert_close(model.log_prob(x).exp().sum(), torch.tensor(1.0))
    assert model.log_prob(x).std() > 0


@pytest.mark.parametrize("name", MODELS)
def test_log_prob_is_the_sum_of_conditionals(name):
    """One pass gives what the conditionals give one by one, each with later entries hidden."""
    model = MODELS[name]()
    x = torch.randint(model.levels, (4, *model.event_shape)).double()
    order = range(prod(model.event_shape)) if model.order is None else model.order
    known, total = torch.zeros_like(x).flatten(1), torch.zeros(4)
    for i in order:
        logits = model.logits(known.reshape(x.shape), None).reshape(4, known.shape[1], -1)[:, i]
        scores = nn.functional.pad(logits, (1, 0)) if model.levels == 2 else logits
        known[:, i] = x.flatten(1)[:, i]
        total = total + scores.log_softmax(-1).gather(1, known[:, i : i + 1].long()).squeeze(1)
    assert_close(model.log_prob(x), total)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
@pytest.mark.parametrize("levels", [2, 256])
@pytest.mark.parametrize("vector", [False, True])
def test_levels_have_one_probability_in_every_dtype(vector, levels, dtype):
    """Bytes from 128 on wrap where they are doubled in their own dtype."""
    model = MADE(4, [8], levels) if vector else pixelcnn((1, 2, 2), levels)
    x = torch.randint(levels, (6, *model.event_shape))
    assert_close(model.log_prob(x.to(dtype)), model.log_prob(x.double()))
    assert_close(model.logits(x.to(dtype), None), model.logits(x.double(), None))
    bytes_ = x.numpy().astype("uint8")
    found = pv.log_likelihood(model, bytes_, num_samples=1, progress=False).value
    assert_close(torch.from_numpy(found), model.log_prob(x.double()))


def test_bytes_train():
    fit = pv.fit(pixelcnn((1, 2, 2), 256), torch.randint(256, (6, 1, 2, 2), dtype=torch.uint8), steps=1, progress=False)
    assert fit.steps == 1


@pytest.mark.parametrize(
    "make",
    [lambda: pixelcnn((1, 2, 2)), lambda: pixelcnn((2, 1, 2)), lambda: MADE(4, [8]), lambda: MADE(3, [8], 3)],
    ids=["image", "image of two colours", "vector", "vector of three levels"],
)
def test_draws_have_the_probabilities(make, seed):
    torch.manual_seed(1)  # the model's own
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    n, size, x = 20_000, prod(model.event_shape), every_datum(model.event_shape, model.levels)
    p = model.log_prob(x).exp()
    drawn = model.sample(n, seed)
    assert drawn.shape == (n, *model.event_shape)
    index = (drawn.flatten(1) * model.levels ** torch.arange(size).flip(0)).sum(1).long()
    shares = torch.bincount(index, minlength=len(p)) / n
    likely = p * n > 400  # the normal law of a share
    assert p[likely].sum() > 0.6
    assert p.max() > 1.5 * p.min()
    errors = (p * (1 - p) / n).sqrt()
    assert_estimates(shares[likely], errors[likely], p[likely], effect=0.02)


def test_draws_are_a_function_of_the_seed():
    model = pixelcnn()
    before = torch.random.get_rng_state()
    assert torch.equal(model.sample(5, seed=1), model.sample(5, seed=1))
    assert not torch.equal(model.sample(5, seed=1), model.sample(5, seed=2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.training


@pytest.mark.parametrize("shape", [(2,), (2, 4, 5)])
def test_particles_and_data_lead(shape):
    """Densities of (K, N) contexts are those of each alone; data without particles broadcast."""
    model = pixelcnn(context_shape=shape)
    context = torch.randn(3, 5, *shape)
    x = torch.randint(2, (5, 1, 4, 5)).double()
    p = model(context)
    assert p.batch_shape == (3, 5)
    alone = torch.stack([model(c[None]).log_prob(v[None]) for k in context for c, v in zip(k, x, strict=True)])
    assert_close(p.log_prob(x), alone.reshape(3, 5))
    assert p.sample((2,)).shape == (2, 3, 5, 1, 4, 5)


def test_vectors_of_particles_and_data_lead():
    model = MADE(4, [8], context_dim=2)
    context, x = torch.randn(3, 5, 2), torch.randint(2, (5, 4)).double()
    alone = torch.stack([model(c).log_prob(v) for k in context for c, v in zip(k, x, strict=True)])
    assert_close(model(context).log_prob(x), alone.reshape(3, 5))


def test_flat_data_and_images_have_the_same_density():
    model, x = pixelcnn(), torch.randint(2, (6, 20)).double()
    assert_close(model.log_prob(x), model.log_prob(x.reshape(6, 1, 4, 5)))


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("make", [pixelcnn, lambda: MADE(20, [20])])
def test_an_estimate_without_latents_is_exact(make, k):
    model, x = make(), torch.randint(2, (30, 20)).double()
    ll = estimate(model, x, k, num_draws=2)
    assert_close(ll.value, model.log_prob(x))
    assert (ll.stderr == 0).all()
    assert (ll.khat == -np.inf).all()
    assert (ll.ess == k).all()
    assert ll.trusted.all()
    assert_close(ll.elbo, ll.value)
    assert ll.posterior_log_lik.shape == (2, 30)
    assert f"K = {k}" in str(ll)


def test_other_estimates_without_latents():
    """The evidence is log p(x) too; chains have nothing to move."""
    model, x = MADE(5, [6]), torch.randint(2, (4, 5)).double()
    assert_close(pv.log_evidence(model, x, progress=False), model.log_prob(x))
    with pytest.raises(pv.PairError, match="found a pair without"):
        pv.annealed_importance_sampling(model, x, progress=False)


def test_an_estimate_without_latents_scores_each_datum_once():
    model, rows = pixelcnn(), []
    x = torch.randint(2, (20, 20)).double()
    pv.check(model, x)
    model.head.register_forward_hook(lambda *call: rows.append(len(call[-1])))
    estimate(model, x, 3, compile=False)
    few = sum(rows)
    rows.clear()
    estimate(model, x, 4000, compile=False)
    assert sum(rows) == few


@pytest.mark.parametrize("objective", [pv.ELBO(), pv.IWAE(3), pv.ELBO(4, kl="sampled")])
def test_fit_raises_the_exact_log_likelihood(objective):
    model = MADE(5, [12])
    torch.manual_seed(0)
    x = torch.bernoulli(torch.tensor([0.9, 0.1, 0.5, 0.8, 0.2]).expand(200, 5))
    x[:, 4] = x[:, 0]
    before = model.log_prob(x).mean()
    fit = pv.fit(model, x, objective=objective, epochs=40, batch_size=50, learning_rate=1e-2, progress=False)
    after = model.log_prob(x).mean()
    assert after > before + 1.0
    assert fit.history["rate"][-1] == 0.0
    still = pv.fit(model, x, objective=objective, epochs=1, batch_size=200, learning_rate=1e-12, progress=False)
    assert_close(still.history["objective"][0], float(after))


def test_a_pixelcnn_works_on_whole_digits():
    """28 x 28: it trains, scores and draws."""
    model = pixelcnn((1, 28, 28), channels=4, num_layers=2).float()
    x = pv.data.binarize(torch.rand(8, 784, dtype=torch.float32).round())
    before = float(model.log_prob(x).mean())
    pv.fit(model, x, steps=3, batch_size=8, learning_rate=1e-2, progress=False)
    assert float(model.log_prob(x).mean()) > before
    assert torch.isin(model.sample(1), torch.tensor([0.0, 1.0])).all()


def test_as_a_decoder_it_makes_a_vae():
    decoder = nn.Sequential(nn.Linear(2, 3), pixelcnn(context_shape=3))
    vae = pv.VAE(pv.priors.StandardNormal(2), decoder, pv.encoders.DiagonalNormal.mlp(20, [5], 2))
    x = torch.randint(2, (6, 20)).double()
    assert pv.check(vae, x).layout.vectorized
    assert vae.sample(3).shape == (3, 1, 4, 5)
    assert vae.reconstruct(x, 2, mean=False).shape == (2, 6, 1, 4, 5)
    with pytest.raises(pv.EstimateError, match="closed form"):
        vae.sample(3, mean=True)
    assert not has_mean(vae)


def test_values_beyond_the_levels_are_refused():
    for model, x in ((pixelcnn(), torch.full((3, 20), 0.5)), (MADE(20, [20], 3), torch.full((3, 20), 3.0))):
        with pytest.raises(pv.DataError, match="support"):
            estimate(model, x, 1)
        with pytest.raises(ValueError, match="support"):
            model.log_prob(x)


def test_the_distribution_of_any_logits(generator):
    """A Markov chain written by hand: log p is that of its transitions, and expansion keeps it."""
    log3 = torch.tensor(3.0).log()
    p = Autoregressive(lambda x: nn.functional.pad(2 * x[..., :-1] - 1, (1, 0)) * log3, 2, (4,), torch.zeros(()))
    x = torch.bernoulli(torch.full((7, 4), 0.5), generator=generator)
    same = (x[:, 1:] == x[:, :-1]).sum(1)
    expected = 0.5 * 0.75**same * 0.25 ** (3 - same)
    assert_close(p.log_prob(x), expected.log())
    assert_close(p.expand((2, 7)).log_prob(x), expected.log().expand(2, 7))
    assert p.expand((2, 7)).sample().shape == (2, 7, 4)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PixelCNN((4, 4)), "event shape"),
        (lambda: PixelCNN((1, 4, 4), context_shape=(2, 3, 3)), "context shape"),
        (lambda: PixelCNN((1, 4, 4), kernel_size=2), "odd kernels"),
        (lambda: PixelCNN((1, 4, 4), first_size=1), "odd kernels"),
        (lambda: PixelCNN((3, 4, 4), channels=2), "channels"),
        (lambda: PixelCNN((1, 4, 4), num_layers=0), "one layer"),
        (lambda: PixelCNN((1, 0, 4)), "positive"),
        (lambda: PixelCNN((1, 4, 4), levels=1), "levels"),
        (lambda: PixelCNN(16), "event shape"),
        (lambda: MADE(5, [4]), "widen"),
        (lambda: MADE(1, [4]), "at least 2"),
        (lambda: MADE(5, []), "widen"),
        (lambda: MADE(5, [5], context_dim=2)(), "context"),
        (lambda: MADE(5, [5])(torch.zeros(2)), "context"),
        (lambda: pixelcnn(context_shape=3)(torch.zeros(5, 2)), "context"),
        (lambda: pixelcnn(context_shape=3).log_prob(torch.zeros(5, 20)), "context"),
    ],
)
def test_what_has_no_meaning_is_refused(make, match):
    with pytest.raises(pv.PairError, match=match):
        make()


@pytest.mark.parametrize("option", ["levels", "channels", "num_layers"])
def test_fractions_of_what_is_counted_are_refused(option):
    with pytest.raises(ValueError, match=f"{option}: expected a whole number, found 2.5"):
        PixelCNN((1, 4, 4), **{option: 2.5})


def test_data_of_another_size_are_refused():
    with pytest.raises(pv.DataError, match="event shape"):
        pixelcnn().log_prob(torch.zeros(3, 21))
    with pytest.raises(ValueError, match="n"):
        pixelcnn().sample(-1)
