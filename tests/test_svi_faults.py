"""Data in every form, bad data (RELIABILITY F7), and numbers that stop being finite (F6)."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import ModuleVAE, binary_rows
from statistical import assert_mean
from torch import nn
from training import fresh, state, train

import ppl_vae as pv
from ppl_vae.svi import stepper


def test_data_in_every_form_give_the_same_run(tmp_path):
    x = binary_rows(10)
    np.save(tmp_path / "x.npy", x.numpy())
    forms = {
        "tensor": x,
        "numpy": x.numpy(),
        "double": x.numpy().astype(np.float64),
        "tuple": (x,),
        "strided": torch.stack([x, x], -1)[..., 0],
        "memory-mapped": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "Dataset": torch.utils.data.TensorDataset(x),
        "big-endian": x.numpy().astype(">f4"),
    }
    states = []
    for form in forms.values():
        pair = fresh()
        train(pair, form)
        states.append(state(pair))
    for other in states[1:]:
        assert all(torch.equal(states[0][k], other[k]) for k in other)


@pytest.mark.parametrize("binarize", ["dynamic", "fixed"])
def test_binarisation_draws_from_the_grey_values(binarize, seed):
    seen = []

    class Spy(pv.ELBO):
        def evaluate(self, pair, batch, layout, beta):
            seen.append(batch[0].clone())
            return super().evaluate(pair, batch, layout, beta)

    x = torch.full((400, 5), 0.3)
    train(ModuleVAE(), x, binarize=binarize, objective=Spy(), epochs=10, batch_size=400, seed=seed)
    epochs = torch.stack([batch.sort(0).values for batch in seen])
    assert set(torch.cat(seen).unique().tolist()) == {0.0, 1.0}
    assert bool((epochs == epochs[0]).all()) == (binarize == "fixed")
    drawn = seen[0] if binarize == "fixed" else torch.cat(seen)
    assert_mean(drawn, 0.3, sigma=math.sqrt(0.3 * 0.7), effect=0.12)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.full((4, 5), 1.5), "row 0.*binarize"),
        (torch.full((4, 5), 3, dtype=torch.uint8), "divide by 255"),
    ],
)
def test_binarisation_needs_probabilities(data, message):
    with pytest.raises(pv.DataError, match=f"(?s){message}"):
        train(ModuleVAE(), data, binarize="dynamic")


def bad_rows():
    x = binary_rows(20)
    x[13, 2] = torch.nan
    return x


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bad_rows, "row 13.*NaN"),
        (lambda: torch.zeros(0, 5), "empty"),
        (lambda: (torch.zeros(4, 5), torch.zeros(3)), r"equal numbers of rows.*\[4, 3\]"),
        (lambda: torch.tensor(3.0), "scalar"),
        (lambda: [["a"]], "list|numpy"),
        (lambda: np.array([["a", "b"]]), "dtype <U1"),
        (lambda: np.array([object()]), "dtype object"),
        (lambda: (), "empty tuple"),
        (lambda: torch.zeros(4, 5, dtype=torch.complex64), "real dense"),
        (lambda: torch.full((4, 5), 2.0), "row 0.*boolean"),
        (lambda: torch.zeros(4, 5, dtype=torch.uint8), "dtype"),
        (lambda: torch.zeros(4, 7), "failed on a batch"),
    ],
)
def test_bad_data_is_an_error_with_the_row(data, message):
    """F7."""
    with pytest.raises(pv.PplVaeError, match=f"(?s){message}"):
        train(ModuleVAE(), data())


def test_the_row_of_bad_data_is_counted_from_the_first():
    x = torch.zeros(5000, 5)
    x[4500, 1] = torch.inf
    with pytest.raises(pv.DataError, match="row 4500"):
        train(ModuleVAE(), x)


class Exploding(ModuleVAE):
    """log of a difference that becomes negative when the third parameter moves far enough."""

    def __init__(self):
        super().__init__()
        self.edge = nn.Parameter(torch.tensor(0.05))

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            loc, _ = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, self.edge.log() + 3.5).to_event(1))


def test_a_number_that_is_not_finite_stops_the_fit_before_the_step():
    """F6: the first bad site is named, and no parameter is NaN."""
    pair = Exploding()
    with pytest.raises(pv.EstimateError, match=r"step \d+.*site 'z' of the guide.*rows"):
        train(pair, binary_rows(8), epochs=400, optimizer=torch.optim.SGD, learning_rate=0.2)
    assert all(bool(torch.isfinite(p).all()) for p in pair.parameters())


def test_the_site_is_named_for_many_particles():
    """The diagnosis repeats the noise of the step: a site that fails for one draw in a hundred is found."""

    class Rare(ModuleVAE):
        def model(self, x):
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                edge = torch.where(z[..., :1] > 3.0, torch.nan, 0.0)
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + edge).to_event(1), obs=x)

    with pytest.raises(pv.EstimateError, match=r"step \d+.*site 'x' of the model.*rows \[\d"):
        train(Rare(), binary_rows(8), objective=pv.ELBO(num_particles=100), epochs=50)


def test_an_infinite_gradient_is_seen_though_the_loss_is_finite():
    class Root(ModuleVAE):
        def guide(self, x):
            with pyro.plate("data", x.shape[0]):
                loc, raw = self.encoder(x).chunk(2, -1)
                scale = 1.0 + (raw * 0.0).sqrt()
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    pair = Root()
    before = state(pair)
    with pytest.raises(pv.EstimateError, match=r"step 1.*gradient of parameter 'programs.self.encoder"):
        train(pair, binary_rows(8))
    assert all(torch.equal(before[k], v) for k, v in state(pair).items())


def test_the_guard_of_a_gpu_freezes_the_parameters_from_the_first_bad_step(monkeypatch):
    """The same on the CPU: the fused optimiser skips every update until the host looks."""

    class Lazy(stepper.Guard):
        def __init__(self, device, fused):
            super().__init__(device, fused)
            self._lazy = True

    monkeypatch.setattr(stepper, "Guard", Lazy)
    pair = Exploding()
    with pytest.raises(pv.EstimateError, match="site 'z'"):
        train(pair, binary_rows(8), epochs=400, learning_rate=0.2)
    assert all(bool(torch.isfinite(p).all()) for p in pair.parameters())
