"""The deterministic autoencoder: what it maximises, what it maps, and what it must not be asked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ppl_vae as pv
from tests.pairs import binary_rows
from tests.running import estimate
from tests.statistical import assert_close


def autoencoder(dim=5):
    return pv.Autoencoder(encoder=pv.networks.MLP(dim, [8], 2), decoder=pv.decoders.Bernoulli.mlp(2, [8], dim))


def score(pair, x):
    """log p(x given f(x)) by hand, for each datum."""
    logits = pair.decoder.network(pair.encoder(x))
    return -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


@pytest.mark.usefixtures("float64")
def test_its_objective_is_the_log_likelihood_of_reconstructions():
    pair, x = autoencoder(), binary_rows(30).double()
    expected = float(score(pair, x).mean().detach())
    history = pv.fit(pair, x, epochs=1, batch_size=30, learning_rate=1e-12, progress=False, validation=x).history
    assert_close(history["objective"][0], expected)
    assert_close(history["distortion"][0], -expected)
    assert history["rate"][0] == 0.0
    assert history["elbo"][0] != history["elbo"][0]  # NaN: it bounds no log p(x)
    assert history["validation_elbo"][0] != history["validation_elbo"][0]


def test_it_trains_to_reproduce_its_data():
    pair, x = autoencoder(), binary_rows(8)
    fit = pv.fit(pair, x, epochs=400, batch_size=8, learning_rate=3e-2, progress=False, compile=False)
    assert fit.history["distortion"][-1] < 0.5 * fit.history["distortion"][0]
    assert "objective=" in repr(fit)
    agree = (pair.reconstruct(x) > 0.5) == (x > 0.5)
    assert agree.float().mean() > 0.9


def test_codes_and_reconstructions():
    pair, x = autoencoder(), binary_rows(6)
    pair.train()
    codes = pair.encode(x)
    assert_close(codes, pair.encoder(x))
    assert not codes.requires_grad
    assert_close(pair.reconstruct(x), pair.decoder(codes).mean)
    assert_close(pair.decode(codes), pair.reconstruct(x))
    assert pair.decode(torch.zeros(3, 4, 2)).shape == (3, 4, 5)
    drawn = pair.decode(codes, seed=1, mean=False)
    assert torch.equal(drawn, pair.decode(codes, seed=1, mean=False))
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert pair.training


def test_dropout_is_off_in_codes():
    pair = pv.Autoencoder(
        encoder=nn.Sequential(nn.Linear(5, 2), nn.Dropout(0.5)), decoder=pv.decoders.Bernoulli.mlp(2, [4], 5)
    )
    x = binary_rows(6)
    assert torch.equal(pair.encode(x), pair.encode(x))


@pytest.mark.parametrize("objective", [pv.IWAE(5), pv.Renyi(0.5, 3)])
def test_bounds_on_log_p_refuse_it(objective):
    with pytest.raises(pv.PairError, match=r"site 'x'.*reconstruction"):
        pv.fit(autoencoder(), binary_rows(6), objective=objective, epochs=1, progress=False)


def test_it_has_no_log_likelihood():
    with pytest.raises(pv.PairError, match=r"site 'x'.*reconstruction"):
        estimate(autoencoder(), binary_rows(6), 10)


def test_the_check_says_that_it_reconstructs():
    report = pv.check(autoencoder(), binary_rows(6))
    assert any("reconstruction" in note for note in report.notes)
    assert report.layout.reconstructed == ("x",)
    made = pv.autoregressive.MADE(5, [6])
    assert pv.check(made, binary_rows(6)).layout.reconstructed == ()


@pytest.mark.parametrize(
    ("encoder", "decoder", "match"),
    [
        (nn.Linear(5, 2), nn.Linear(2, 5), "the decoder.*distribution"),
        (pv.encoders.DiagonalNormal.mlp(5, [4], 2), pv.decoders.Bernoulli.mlp(2, [4], 5), "tensor of codes"),
    ],
)
def test_parts_of_another_kind_are_named(encoder, decoder, match):
    with pytest.raises(pv.PairError, match=match):
        pv.check(pv.Autoencoder(encoder=encoder, decoder=decoder), binary_rows(6))


def test_parts_are_modules():
    with pytest.raises(pv.PairError, match="encoder: expected a module"):
        pv.Autoencoder(encoder=torch.tanh, decoder=nn.Linear(2, 5))
