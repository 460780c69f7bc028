"""Draws that fail since their parameters are NaN are bad steps as any other (RELIABILITY F6)."""

from __future__ import annotations

from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.nans import nan_parameters
from ppl_vae.svi.order import Order
from ppl_vae.tape import Tape, UndrawnError
from ppl_vae.validation import validating
from tests.training import fresh, train


def with_bad_row(size: int, row: int, generator: torch.Generator) -> torch.Tensor:
    """Rows below four, but for one."""
    x = torch.randn(size, 3, generator=generator).clamp(-3.0, 3.0)
    x[row] = 5.0
    return x


class Choosing(nn.Module):
    """A latent whose parameters are NaN where a row is above four: torch draws from none such."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4)), nn.Linear(4, 3)

    def model(self, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", self.drawn_from(x.new_zeros(4)))
            pyro.sample("x", dist.Normal(self.decoder(self.code(k)), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            logits = torch.where(x[:, :1] > 4.0, torch.nan, self.encoder(x))
            pyro.sample("k", self.drawn_from(logits))

    def drawn_from(self, logits):
        return dist.Categorical(logits=logits)

    def code(self, k):
        return torch.eye(4)[k]


class StraightThrough(Choosing):
    """A draw by torch.multinomial that gradients pass through."""

    def drawn_from(self, logits):
        return dist.OneHotCategoricalStraightThrough(logits=logits)

    def code(self, k):
        return k


class Turning(StraightThrough):
    """Angles, which torch draws by rejection: from NaN it would go on for ever."""

    def drawn_from(self, logits):
        return dist.VonMises(torch.zeros(4), logits.exp()).to_event(1)


class Broken(Choosing):
    """A program with an error of its own, whose distribution has NaN where it does not matter."""

    def drawn_from(self, logits):
        fn = dist.Categorical(logits=logits.nan_to_num())
        fn.padding = torch.tensor(torch.nan)
        return fn

    def guide(self, x):
        super().guide(x)
        if self.training and bool((x > 4.0).any()):
            raise KeyError("a bug")


@pytest.mark.parametrize(
    "objective", [pv.ELBO(), pv.ELBO(discrete="enumerate"), pv.IWAE(3)], ids=["score", "enumerated", "IWAE"]
)
def test_a_draw_from_no_number_is_a_bad_step(objective, quiet: None, tmp_path: Path, generator: torch.Generator):
    """torch raises an error of its own there; the policy is that of every bad step, and buffers are as before it."""
    x = with_bad_row(64, 37, generator)
    options = {"batch_size": 8, "epochs": 2, "objective": objective, "compile": False}
    bad = [step for step in range(16) if 37 in Order(64, 8, 0).at(step)]
    with pytest.raises(pv.EstimateError) as caught:
        train(stopped := fresh(make=Choosing), x, **options)
    assert int(stopped.encoder[0].num_batches_tracked) == bad[0]
    skipping = train(fresh(make=Choosing), x, on_nonfinite="skip", run_dir=tmp_path, **options)
    assert skipping.skipped == tuple(bad)
    again = pv.replay(fresh(seed=9, make=Choosing), tmp_path, objective=objective)
    where = f"(rows [{again.rows.index(37)}] of the batch, [37] of the data)"
    assert again.reason == f"site 'k' of the guide draws from parameters that are NaN {where}"
    assert again.reason == again.recorded
    assert again.reason in str(caught.value)
    assert [(site.role, site.name) for site in again.sites] == [("guide", "k")]


@pytest.mark.parametrize("make", [StraightThrough, Turning])
def test_a_draw_from_no_number_is_known_by_its_failure(make, quiet: None, generator: torch.Generator):
    x = with_bad_row(16, 13, generator)
    where = r"site 'k' of the guide draws from parameters that are NaN \(rows \[\d\] of the batch, \[13\] of the data\)"
    with pytest.raises(pv.EstimateError, match=where):
        train(fresh(make=make), x, batch_size=8, epochs=1, compile=False)


def test_angles_are_not_drawn_from_no_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dist.VonMises, "sample", lambda *_: pytest.fail("torch goes on for ever"))
    with validating(False), Tape(), pytest.raises(UndrawnError, match=r"site .k.: expected parameters .*, found NaN"):
        Turning().guide(torch.full((2, 3), 5.0))


class Negative(Turning):
    """Counts of a rate that is none, and a number all the same."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Poisson(torch.where(x[:, :1] > 4.0, -1.0, self.encoder(x).exp())).to_event(1))

    def drawn_from(self, logits):
        return dist.Poisson(logits.exp()).to_event(1)


def test_a_draw_that_fails_for_another_reason_is_no_bad_step(generator: torch.Generator):
    x = with_bad_row(16, 13, generator)
    with pytest.raises(pv.PairError, match=r"step \d, on 8 rows, failed: RuntimeError: invalid Poisson rate"):
        train(fresh(make=Negative), x, batch_size=8, epochs=1, compile=False, on_nonfinite="skip")


def test_an_error_of_a_program_is_no_bad_step(generator: torch.Generator):
    x = with_bad_row(16, 13, generator)
    with pytest.raises(pv.PairError, match=r"step \d, on 8 rows, failed: KeyError: 'a bug'"):
        train(fresh(make=Broken), x, batch_size=8, epochs=1, compile=False, on_nonfinite="skip")


@pytest.mark.parametrize(
    "make",
    [
        lambda nan: dist.Categorical(probs=torch.ones(3, 2, 4) + nan[..., None]),
        lambda nan: dist.Poisson(1.0 + nan).mask(torch.tensor(True)),
        lambda nan: dist.Binomial(5, logits=nan),
        lambda nan: dist.MixtureSameFamily(
            dist.Categorical(logits=torch.zeros(3, 2, 4) + nan[..., None]), dist.Poisson(torch.ones(3, 2, 4))
        ),
        lambda nan: dist.MixtureSameFamily(
            dist.Categorical(logits=torch.zeros(3, 2, 4)), dist.Poisson(torch.ones(3, 2, 4) + nan[..., None])
        ),
    ],
)
def test_rows_whose_parameters_are_nan_are_told(make):
    """Of two numbers of a row one; within `to_event` it is the row."""
    nan = torch.zeros(3, 2)
    nan[1, 0] = torch.nan
    with validating(False):
        fn = make(nan)
        assert torch.equal(nan_parameters(fn), nan.isnan())
        assert torch.equal(nan_parameters(fn.to_event(1)), torch.tensor([False, True, False]))
