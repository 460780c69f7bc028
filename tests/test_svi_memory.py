"""Memory that runs out in the validation of a fit: the same numbers from smaller pieces."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import ppl_vae as pv
from ppl_vae import shrinking
from ppl_vae.storage import steps
from ppl_vae.svi.gradient import Gradient
from tests.pairs import ModuleVAE, binary_rows
from tests.statistical import assert_close
from tests.training import fresh, state, train

NUMBERS = ("validation_elbo", "validation_distortion", "validation_rate")


class Short(ModuleVAE):
    """Memory for so many vectors in the decoder at once, without gradients."""

    most = 10**9

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[int] = []
        self.decoder.register_forward_pre_hook(self.look)

    def look(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        size = inputs[0].shape[:-1].numel()
        if size > self.most and not torch.is_grad_enabled():
            self.failed.append(size)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


class Enumerated(Short):
    """Two latents, one of which is summed over, drawn after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.choice = nn.Linear(5, 2)

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            c = pyro.sample("c", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + c[..., None]).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("c", dist.Bernoulli(logits=self.choice(x)[..., 0]))
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


class Looped(Short):
    """Takes one particle after another."""

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            logits = self.decoder(z.reshape(len(x), 2))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch):
    """Going through all that pytest holds takes longer than any of these fits."""
    monkeypatch.setattr(shrinking, "gc", SimpleNamespace(collect=lambda: None))


def validated(make, most: int, objective, **options):
    """A fit whose checks have memory enough."""
    pair = fresh(0, make).double()
    x, held_out = binary_rows(8).double(), binary_rows(600, seed=2).double()
    pair.most = most
    return pair, train(pair, x, epochs=2, objective=objective, validation=held_out, compile=False, **options)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("make", "objective", "options"),
    [
        (Short, pv.ELBO(), {"record_kl": True}),
        (Short, pv.IWAE(3), {}),
        (Short, pv.from_pyro(Trace_ELBO()), {}),
        (Enumerated, pv.ELBO(discrete="enumerate"), {}),
    ],
    ids=["ELBO", "IWAE", "Pyro", "enumerated"],
)
def test_a_validation_in_pieces_has_the_same_numbers(make, objective, options):
    """F11: the guide draws for the block of 512 rows, whatever the pieces."""
    _, whole = validated(make, 10**9, objective, **options)
    pair, cut = validated(make, 300, objective, **options)
    assert pair.failed[0] >= 512
    for name in NUMBERS[: 1 if isinstance(objective, pv.objectives.FromPyro) else 3]:  # Pyro knows one of them
        assert_close(torch.tensor(cut.history[name]), torch.tensor(whole.history[name]))
    for found, expected in zip(cut.history, whole.history, strict=True):
        for site, values in expected.validation_kl.items():
            assert_close(torch.tensor(found.validation_kl[site]), torch.tensor(values))
    assert len(pair.failed) < 12  # what was too much is not tried again


def test_noise_of_particles_that_come_one_by_one_is_not_divided():
    with pytest.raises(
        pv.EstimateError, match="validation: expected memory for more than 256 rows at once, found too little"
    ):
        validated(Looped, 300, pv.IWAE(3))


def test_a_step_without_memory_is_an_error_that_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was saved before it is there, and with memory the run ends where it would have."""

    def fit(pair, run_dir, **options):
        return train(pair, binary_rows(8), run_dir=run_dir, checkpoint_every=1, compile=False, **options)

    whole, again, step, calls = fresh(0), fresh(9), Gradient.__call__, itertools.count(1)

    def lacking(gradient, *arguments):
        if next(calls) == 3:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1073741824 bytes.")
        return step(gradient, *arguments)

    fit(whole, tmp_path / "whole")
    monkeypatch.setattr(Gradient, "__call__", lacking)
    with pytest.raises(
        pv.EstimateError, match=r"a step of this fit, on 4 rows: expected memory .* choose a smaller batch_size, or use"
    ):
        fit(fresh(0), tmp_path / "parts")
    assert max(steps(tmp_path / "parts" / "checkpoints")) == 2
    assert fit(again, tmp_path / "parts", resume=True).steps == 4
    assert all(torch.equal(state(whole)[name], value) for name, value in state(again).items())
