"""Simulated data are ancestral draws also where a distribution reads what is observed elsewhere."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_vae as pv
from ppl_vae.checking import check
from ppl_vae.evaluation.simulation import Simulated, simulate
from ppl_vae.rng import seeded
from ppl_vae.validation import validating
from tests.statistical import assert_close, assert_estimates

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12  # scale of noise that leaves what is read, and nothing else
LENGTH, SLOPE = 6, 0.9


def simulated(pair: pv.Pair, *batch: Tensor, seed: int = 0) -> Simulated:
    with torch.no_grad(), seeded(seed):
        return simulate(pair, batch, check(pair, batch).layout)


def prior(*batch: Tensor) -> None:
    with pyro.plate("data", len(batch[0])):
        pyro.sample("z", dist.Normal(torch.zeros(len(batch[0])), 1.0))


def before(x: Tensor) -> Tensor:
    """Each number's forerunner."""
    return torch.nn.functional.pad(x[:, :-1], (1, 0))


def forced(slope: float = SLOPE, scale: float = 1.0, read=before) -> pv.Pair:
    """x_t ~ N(z + slope x_{t - 1}, scale^2), with its posterior as guide."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) + slope * read(x), scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        precision = 1 + LENGTH / scale**2
        with pyro.plate("data", len(x)):
            loc = (x - slope * read(x)).sum(-1) / scale**2 / precision
            pyro.sample("z", dist.Normal(loc, precision**-0.5))

    return pv.Pair(model, guide)


def test_a_site_reads_what_is_drawn_for_another(seed):
    """The first site reads the last argument, as the last site the first: sites need not stand in order."""

    def model(x: Tensor, y: Tensor, w: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(3 * y + w, EXACT), obs=x)
            pyro.sample("y", dist.Bernoulli(torch.full((len(x),), 0.5)), obs=y)
            z = pyro.sample("z", dist.Normal(5 * y, 1.0))
            pyro.sample("w", dist.Normal(z, EXACT), obs=w)

    made = simulated(pv.Pair(model, prior), *torch.zeros(3, 20), seed=seed)
    x, y, w = made.batch
    assert 0 < y.sum() < 20
    assert (w - 5 * y).abs().max() < 6
    assert_close(w, made.latents["z"])
    assert_close(x, 3 * y + w)


def test_teacher_forcing_reads_what_is_drawn_before(seed):
    made = simulated(forced(scale=EXACT), torch.ones(5, LENGTH), seed=seed)
    (x,) = made.batch
    assert_close(x, made.latents["z"].unsqueeze(-1) + SLOPE * before(x))


def test_an_exact_guide_of_teacher_forcing_passes(seed):
    """Data of one run were rejected with p = 4e-304."""
    found = pv.calibrate(forced(), torch.zeros(1, LENGTH), 400, 39, seed, progress=False)
    root = found.num_simulations**0.5
    assert_estimates(found.scores / root, 1 / root, 0.0, 0.6)


def test_bounds_of_teacher_forcing_meet_where_the_guide_is_the_posterior(seed):
    annealing = pv.Annealing(2, 2, 1)
    found = pv.bidirectional_monte_carlo(forced(), torch.zeros(8, LENGTH), annealing, seed, progress=False)
    response = torch.linalg.inv(torch.eye(LENGTH) - SLOPE * torch.diag(torch.ones(LENGTH - 1), -1))
    covariance = response @ (1 + torch.eye(LENGTH)) @ response.T
    exact = torch.distributions.MultivariateNormal(torch.zeros(LENGTH), covariance).log_prob(
        torch.from_numpy(found.x[0])
    )
    assert_close(found.lower, exact)
    assert_close(found.upper, exact)


def poisson() -> pv.Pair:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Poisson(z.unsqueeze(-1).exp() + before(x)).to_event(1), obs=x)

    return pv.Pair(model, prior)


@pytest.mark.parametrize("pair", [forced(read=lambda x: x), poisson()], ids=["of itself", "noise of other rows"])
def test_draws_that_do_not_settle_are_refused(pair: pv.Pair):
    with pytest.raises(pv.PairError, match=r"site 'x': .*after 7 runs.*still change.*log_likelihood"):
        simulated(pair, torch.zeros(8, LENGTH))


def test_noise_that_other_rows_move_is_no_number_that_depends_on_itself(seed):
    """torch takes as much noise for a Poisson draw as that needs: what one row draws moves the noise of the next."""

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("y", dist.Bernoulli(z.sigmoid()), obs=y)
            pyro.sample("x", dist.Poisson((20 * y + 5).unsqueeze(-1).expand(*y.shape, 3)).to_event(1), obs=x)

    x, y = simulated(pv.Pair(model, prior), torch.zeros(40, 3), torch.zeros(40), seed=seed).batch
    assert (x[y == 1].mean() - x[y == 0].mean()) > 10


def beside(x: Tensor) -> Tensor:
    """The other of each two numbers."""
    return x.reshape(len(x), -1, 2).flip(-1).reshape(x.shape)


@pytest.mark.parametrize("read", [torch.tanh, torch.round, beside])
@pytest.mark.parametrize("num_data", [1, 16])
def test_draws_that_settle_and_depend_on_themselves_are_refused(read, num_data: int):
    """A bracket was printed of a log p(x) that there is none of, and a guide blamed."""
    pair, x = forced(0.1, read=read), torch.zeros(num_data, 40)
    with pytest.raises(pv.PairError, match="let each number read only those before it"):
        simulated(pair, x)


@pytest.mark.parametrize("evaluate", [pv.calibrate, pv.bidirectional_monte_carlo])
def test_evaluations_refuse_them(evaluate):
    with pytest.raises(pv.PairError, match="change with themselves"):
        evaluate(forced(0.1, read=torch.tanh), torch.zeros(4, 40), progress=False)


@pytest.mark.parametrize("evaluate", [pv.calibrate, pv.bidirectional_monte_carlo])
def test_a_factor_is_refused_by_name(evaluate):
    """Draws owe nothing to it: brackets were nats off log p(x), and an exact guide was not calibrated."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.factor("near three", -0.5 * ((z - 3) / 0.2) ** 2)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(pv.PairError, match=r"site 'near three': .*pyro.factor.*log_likelihood"):
        evaluate(pv.Pair(model, prior), torch.zeros(4), progress=False)


def test_a_mask_of_what_is_drawn_is_refused():
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).mask(x > 0), obs=x)

    with pytest.raises(pv.PairError, match=r"site 'x': .*a mask.*depends on what is drawn"):
        simulated(pv.Pair(model, prior), torch.ones(20))


def test_numbers_that_are_none_settle():
    """They are for the caller to refuse, with a better reason."""

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z * y, 1.0), obs=x.reshape(-1))

    pair, x = pv.Pair(model, prior), torch.ones(4)
    layout = check(pair, (x, x)).layout
    with torch.no_grad(), seeded(0), validating(False):
        made = simulate(pair, (x, torch.full((4,), torch.nan)), layout)
    assert made.batch[0].isnan().all()
