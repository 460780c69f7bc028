"""Values of objectives against closed forms, and what may be asked of which pair."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae import schedules
from ppl_vae.pair import as_pair
from ppl_vae.rng import key
from tests.pairs import DiscreteVAE, HierarchicalVAE, ModuleVAE, binary_rows, chi_square, scaled_guide, small_ppca
from tests.running import evaluate
from tests.statistical import assert_close, assert_mean


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("s", [0.8, 1.3])
@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_elbo_is_log_p_minus_the_divergence(s, kl, seed):
    """S7: ELBO + KL(q, posterior) = log p, with KL = d [log 1/s + (s^2 - 1) / 2]."""
    ppca = small_ppca()
    x = ppca.sample(50, seed=4).repeat(40, 1)
    truth = float(ppca.log_prob(x).mean()) - 2 * (math.log(1 / s) + (s**2 - 1) / 2)
    objective = pv.ELBO(num_particles=20, kl=kl)
    values = [float(evaluate(scaled_guide(ppca, s), x, objective, key(seed, i)).elbo) for i in range(20)]
    # A sampled log-weight is log p + log s^2 - (s^2 - 1) |e|^2 / 2 with e standard normal in two dimensions.
    sigma = abs(s**2 - 1) / math.sqrt(20 * len(x)) if kl == "sampled" else None
    assert_mean(values, truth, sigma, effect=0.03)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("objective", [pv.ELBO(kl="sampled"), pv.IWAE(3), pv.Renyi(0.5, num_particles=3)], ids=repr)
def test_the_exact_posterior_makes_every_bound_log_p(objective):
    ppca = small_ppca()
    x = ppca.sample(50, seed=4)
    assert_close(evaluate(ppca, x, objective).objective, ppca.log_prob(x).mean())


@pytest.mark.usefixtures("float64")
def test_the_bound_is_a_bound_and_approaches_log_p(seed):
    """S5: E L_K = log p - chi2 / (2 K) + o(1/K), from below."""
    ppca, s = small_ppca(), 1.25
    x = ppca.sample(1, seed=6).expand(4000, -1).contiguous()
    pair = scaled_guide(ppca, s)
    exact = float(ppca.log_prob(x[:1]))
    values = [float(evaluate(pair, x, pv.IWAE(20), key(seed, i)).objective) for i in range(40)]
    assert_mean(values, exact - chi_square(s, 2) / 40, effect=0.003)


class Fixed(dist.TorchDistribution):
    """A diagonal normal whose draw is given."""

    arg_constraints: ClassVar[dict] = {}
    has_rsample = True

    def __init__(self, loc, scale, noise, batch_shape=None):
        self.normal = dist.Normal(loc, scale).to_event(1)
        self.noise = noise
        super().__init__(batch_shape or self.normal.batch_shape, torch.Size((2,)), validate_args=False)

    @property
    def support(self):
        return self.normal.support

    def expand(self, batch_shape, _instance=None):
        return Fixed(self.normal.base_dist.loc, self.normal.base_dist.scale, self.noise, torch.Size(batch_shape))

    def rsample(self, sample_shape=()):
        return self.normal.base_dist.loc + self.normal.base_dist.scale * self.noise

    def log_prob(self, value):
        return self.normal.log_prob(value)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("objective", [pv.ELBO(kl="sampled"), pv.ELBO(), pv.IWAE(num_particles=3)], ids=repr)
def test_minibatches_average_to_the_whole(objective):
    """S6: mean over all mini-batches of two, with the noise of each datum held, equals the value of the whole."""
    pair = ModuleVAE()
    x = binary_rows(5)
    noise = torch.randn(3, 5, 2)

    def held(rows):
        class Held(ModuleVAE):
            def guide(self, x):
                with pyro.plate("data", 5, subsample=rows):
                    loc, raw = pair.encoder(x).chunk(2, -1)
                    draw = noise[: objective.num_particles][:, rows] if objective.num_particles > 1 else noise[0, rows]
                    pyro.sample("z", Fixed(loc, raw.exp(), draw))

            def model(self, x):
                with pyro.plate("data", 5, subsample=rows):
                    z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                    pyro.sample("x", dist.Bernoulli(logits=pair.decoder(z)).to_event(1), obs=x)

        return Held()

    def value(rows):
        rows = torch.tensor(rows)
        program = held(rows)
        layout = pv.check(ModuleVAE(), x).layout._replace(full_size=5, analytic=frozenset())
        return float(objective.evaluate(as_pair(program), (x[rows],), layout, 1.0).objective)

    batches = [value(list(rows)) for rows in itertools.combinations(range(5), 2)]
    assert_close(sum(batches) / len(batches), value([0, 1, 2, 3, 4]))


@pytest.mark.usefixtures("float64")
def test_subsamples_of_a_nested_plate_average_to_the_whole():
    """R7: every two of four pixels, with the same noise: objective and true ELBO are unbiased."""
    x = torch.randn(5, 4)

    def programs(index):
        def model(x):
            with pyro.plate("data", x.shape[0], dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0], 1), 1.0))
                with pyro.plate("pixels", 4, subsample=index, dim=-1):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, index])

        def guide(x):
            with pyro.plate("data", x.shape[0], dim=-2):
                pyro.sample("z", dist.Normal(x.mean(1, keepdim=True), 0.5))

        return pv.Pair(model, guide)

    whole = evaluate(programs(torch.arange(4)), x, pv.ELBO())
    parts = [evaluate(programs(torch.tensor(i)), x, pv.ELBO()) for i in itertools.combinations(range(4), 2)]
    for name in ("objective", "elbo", "distortion", "rate"):
        mean = sum(float(getattr(part, name)) for part in parts) / len(parts)
        assert_close(mean, getattr(whole, name))


def test_beta_multiplies_the_rate_of_the_objective_and_nothing_else():
    x, pair = binary_rows(), ModuleVAE()
    plain, tempered = evaluate(pair, x, pv.ELBO()), evaluate(pair, x, pv.ELBO(beta=4.0))
    assert float(tempered.elbo) == float(plain.elbo)
    assert_close(tempered.objective, -plain.distortion - 4 * plain.rate)
    assert_close(plain.elbo, -plain.distortion - plain.rate)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_the_true_elbo_knows_no_scale_of_the_programs(kl):
    """Programs scaled by the user train as written; what is reported beside it is the ELBO."""
    x, pair = binary_rows(), ModuleVAE()
    scaled = pv.Pair(*(pv.scale_latents(program, 3.0) for program in (pair.model, pair.guide)))
    plain, tempered = (evaluate(p, x, pv.ELBO(kl=kl)) for p in (pair, scaled))
    assert_close(tempered.objective, -plain.distortion - 3 * plain.rate)
    assert_close(tempered.elbo, plain.elbo)


@pytest.mark.usefixtures("float64")
def test_free_bits_are_a_floor_under_the_mean_rate():
    """The rate counts as the larger of itself and the floor; the true ELBO is not touched."""
    x, pair = binary_rows(), ModuleVAE()
    plain = evaluate(pair, x, pv.ELBO())
    for bits in (0.5 * float(plain.rate), float(plain.rate), 2 * float(plain.rate)):
        held = evaluate(pair, x, pv.ELBO(free_bits=bits))
        assert_close(held.objective, -plain.distortion - max(float(plain.rate), bits))
        assert float(held.elbo) == float(plain.elbo)


def test_free_bits_hold_the_rate_up():
    x = binary_rows(64)
    rates = []
    for bits in (0.0, 1.0):
        torch.manual_seed(0)
        pair = ModuleVAE()
        pv.fit(pair, x, objective=pv.ELBO(free_bits=bits), epochs=60, learning_rate=1e-2, progress=False)
        rates.append(float(evaluate(pair, x, pv.ELBO()).rate))
    assert rates[1] > rates[0] + 0.2


def test_held_out_data_are_judged_by_the_plain_bound():
    tempered = pv.ELBO(num_particles=3, beta=4.0, free_bits=1.0, kl="sampled", baseline="none")
    assert tempered.judge() == pv.ELBO(num_particles=3)
    assert pv.ELBO(discrete="enumerate").judge() == pv.ELBO(discrete="enumerate")
    assert pv.IWAE(num_particles=7, gradient="dreg").judge() == pv.IWAE(num_particles=7)


@pytest.mark.parametrize("objective", [pv.IWAE(5), pv.Renyi(0.5, 5)])
def test_a_bound_of_a_part_of_a_datum_is_refused(objective):
    """R7: a noisy estimate of log p(x given z) inside a logarithm lifts the bound above log p(x)."""

    def model(x):
        with pyro.plate("data", x.shape[0], dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0], 1), 1.0))
            with pyro.plate("pixels", 10, 3, dim=-1) as index:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, index])

    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-2):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x.mean(1, keepdim=True), 0.3))

    with pytest.raises(pv.PairError, match="subsampled"):
        pv.fit(pv.Pair(model, guide), torch.randn(6, 10), objective=objective, epochs=1, progress=False)
    assert pv.fit(pv.Pair(model, guide), torch.randn(6, 10), epochs=1, progress=False).steps == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.ELBO(num_particles=0), "num_particles"),
        (lambda: pv.ELBO(kl="exact"), "kl.*'exact'"),
        (lambda: pv.ELBO(gradient="stl", kl="analytic"), "gradient='stl'"),
        (lambda: pv.ELBO(gradient="score", discrete="enumerate"), "gradient='score'"),
        (lambda: pv.ELBO(baseline="leave_one_out"), "num_particles"),
        (lambda: pv.ELBO(free_bits=-1), "free_bits.*-1"),
        (lambda: pv.ELBO(free_bits=math.nan), "free_bits.*nan"),
        (lambda: pv.ELBO(beta=math.nan), "beta: expected a finite number, found nan"),
        (lambda: pv.ELBO(beta=math.inf), "beta: expected a finite number, found inf"),
        (lambda: pv.ELBO(beta=-1.0), "beta: expected at least 0, found -1.0"),
        (lambda: pv.ELBO(beta="a"), "beta: expected a finite number, found 'a'"),
        (lambda: pv.Renyi(math.nan), "alpha: expected a finite number, found nan"),
        (lambda: pv.scale_latents(lambda: None, math.nan), "beta.*nan"),
        (lambda: pv.ELBO(free_bits=1, gradient="score"), "free_bits"),
        (lambda: pv.IWAE(gradient="stl"), "gradient.*'stl'"),
        (lambda: pv.Renyi(1.0), "alpha"),
        (lambda: schedules.Linear(0, 1, steps=0), "steps"),
        (lambda: schedules.Cyclical(0, 1, period=10, ramp=0.0), "ramp"),
    ],
)
def test_illegal_combinations_say_which_option(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _counting_pair():
    """A categorical latent beside one that has infinitely many values."""

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("a", dist.Categorical(torch.ones(2) / 2))
            return pyro.sample("z", dist.Poisson(torch.full((x.shape[0],), 2.0)))

    def model(x):
        z, rate = guide(x), pyro.param("rate", torch.tensor(0.1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Bernoulli(logits=(rate * z).unsqueeze(-1).expand(*z.shape, 5)).to_event(1), obs=x)

    return pv.Pair(model, guide)


@pytest.mark.parametrize(
    ("objective", "make", "message"),
    [
        (pv.ELBO(kl="analytic"), HierarchicalVAE, "closed-form KL"),
        (pv.IWAE(gradient="dreg"), DiscreteVAE, "reparametrised"),
        (pv.ELBO(free_bits=1.0), DiscreteVAE, "reparametrised"),
        (pv.ELBO(discrete="enumerate"), ModuleVAE, "finitely many"),
        (pv.ELBO(discrete="enumerate"), lambda: _counting_pair(), "'z'.*finitely many"),
        (pv.ELBO(gradient="stl"), DiscreteVAE, "'z'.*reparametrised"),
        (pv.ELBO(2, baseline="leave_one_out"), ModuleVAE, "score-function latent"),
    ],
)
def test_combinations_that_only_the_pair_rules_out(objective, make, message):
    with pytest.raises(pv.PairError, match=message):
        pv.fit(make(), binary_rows(), objective=objective, epochs=1, progress=False)
