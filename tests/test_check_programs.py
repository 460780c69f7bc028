"""The checker runs programs: with particles, fewer rows, in both modes, and on data that suit no density."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import ppl_vae as pv
from ppl_vae.checking import kind_of_density
from ppl_vae.pair import as_pair
from tests.bodies import X, good_model, pair_of, x_normal, z_normal
from tests.pairs import ModuleVAE, binary_rows, small_ppca
from tests.statistical import assert_estimates


def good_model_with_plate(x):
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        x_normal(x)


def batch_norm_guide(module, x):
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(module.out(module.norm(x)), 1.0).to_event(1))


def test_checking_changes_nothing():
    pair = nn.Module()
    pair.norm, pair.out = nn.BatchNorm1d(3), nn.Linear(3, 1)
    pair.model = good_model_with_plate
    pair.guide = lambda x: batch_norm_guide(pair, x)
    before = {k: v.clone() for k, v in pair.state_dict().items()}
    noise = torch.random.get_rng_state()
    pv.check(pv.Pair(pair.model, pair.guide), X)
    assert torch.equal(noise, torch.random.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in pair.state_dict().items())
    assert pair.norm.training


def test_programs_that_cannot_broadcast_run_particle_by_particle():
    """A decoder that folds with a fixed view fails under an outer plate; the numbers are right all the same."""
    ppca = small_ppca(dim=3, latent=2)

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], 2), 1.0).to_event(1))
            mean = z.view(x.shape[0], 2) @ ppca.loading.T + ppca.bias
            pyro.sample("x", dist.Normal(mean, ppca.scale).to_event(1), obs=x)

    x = ppca.sample(5, seed=2)
    pair = pv.Pair(model, ppca.guide)
    report = pv.check(pair, x)
    assert not report.layout.vectorized
    assert any("one after another" in note for note in report.notes)
    ll = pv.log_likelihood(pair, x, 7, progress=False)
    assert abs(ll.value - ppca.log_prob(x).numpy()).max() < 1e-10


def test_a_decoder_that_mixes_particles_and_rows_is_not_broadcast():
    """With K = N a matrix product along the wrong dimension broadcasts without an error."""

    class Mixing(nn.Module):
        def forward(self, z):
            return z - z.mean(0, keepdim=True) if z.dim() == 3 else z

    mixing = Mixing()

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(mixing(z), 1.0).to_event(1), obs=x)

    pair = pv.Pair(model, pair_of(good_model, lambda x: z_normal(x, size=3)).guide)
    report = pv.check(pair, X)
    assert not report.layout.vectorized
    assert "mixes" in report.notes[0]


def test_rows_must_not_be_mixed_by_the_model_and_are_remarked_in_the_guide():
    mixing_model = pair_of(lambda x: (z_normal(x), x_normal(x, x.mean(0))), z_normal)
    with pytest.raises(pv.PairError, match="other rows of the batch"):
        pv.check(mixing_model, X)
    mixing_guide = pair_of(good_model, lambda x: pyro.sample("z", dist.Normal((x - x.mean(0))[:, :2], 1.0).to_event(1)))
    assert any("mixes rows" in note for note in pv.check(mixing_guide, X).notes)
    assert not any("mixes rows" in note for note in pv.check(pair_of(good_model, z_normal), X).notes)


def dropout_of(x):
    return nn.functional.dropout(x, 0.5, training=True)


def test_noise_that_is_no_sample_site_is_remarked_in_the_guide():
    """Its weights are right given the noise: nobody mixes rows or particles."""
    guide = lambda x: pyro.sample("z", dist.Normal(dropout_of(x)[:, :2], 1.0).to_event(1))  # noqa: E731
    report = pv.check(pair_of(good_model, guide), X)
    assert not report.layout.vectorized
    assert "noise that is no sample site" in report.notes[0]
    assert not any("mixes" in note for note in report.notes)
    ll = pv.log_likelihood(pair_of(good_model, guide), X, 4000, progress=False)
    exact = dist.Normal(torch.zeros(3), 1.0).to_event(1).log_prob(X)  # the latent has no part in it
    assert_estimates(ll.value, ll.stderr, exact, effect=0.4)


def test_noise_that_is_no_sample_site_is_refused_in_the_model():
    noisy = pair_of(lambda x: x_normal(x, dropout_of(z_normal(x) + x[:, :2]).sum(-1, keepdim=True)), z_normal)
    with pytest.raises(pv.PairError, match=r"changing from run to run.*no sample site"):
        pv.check(noisy, X)


def test_a_row_that_no_program_takes_is_named():
    """torch shows the first numbers of the whole batch, which are all right."""
    x = X.clone()
    x[2] = 9.0
    picky = pair_of(lambda x: x_normal(x, torch.where(x > 8.0, torch.nan, z_normal(x).sum(-1, keepdim=True))), z_normal)
    with pytest.raises(
        pv.PairError, match=rf"failed on a batch of \({len(X)}, .* and on row 2 of it alone: .*found .*: nan"
    ):
        pv.check(picky, x)
    with pytest.raises(pv.PairError, match=rf"failed on a batch of \({len(X)}, \d\) float32: Expected parameter loc"):
        pv.check(picky, x[2:3].expand_as(x))
    assert bool((x[2] == 9.0).all())


def test_no_row_is_blamed_for_draws_or_for_a_fixed_size():
    def unlucky(x):
        z = z_normal(x)
        if bool((z.abs() > 1.5).any()):
            raise ValueError("too far")
        x_normal(x, z.sum(-1, keepdim=True))

    for times in range(10, 50):
        with pytest.raises(pv.PairError, match=r"failed on a batch of \(\d+, \d\) float32: too far"):
            pv.check(pair_of(unlucky, z_normal), X.repeat(times, 1))
    fixed = pair_of(lambda x: x_normal(x, z_normal(x).sum(-1, keepdim=True) + torch.zeros(7, 1)), z_normal)
    with pytest.raises(pv.PairError) as caught:
        pv.check(fixed, X.repeat(20, 1))
    assert "alone" not in str(caught.value)


def test_a_program_that_fails_for_rare_draws_says_so_and_blames_no_size():
    failed = []

    def body(x):
        x_normal(x, z_normal(x).sum(-1, keepdim=True))
        if len(x) < len(X) and not failed:
            failed.append(len(x))
            raise ValueError("invalid scale")

    with pytest.raises(pv.PairError, match=r"the model fails for some draws, and works for others: .*invalid scale; "):
        pv.check(pair_of(body, z_normal), X)


def test_a_plate_of_a_fixed_size_that_one_row_fills_is_no_rare_draw():
    fixed = pair_of(lambda x: x_normal(x, z_normal(x).sum(-1, keepdim=True)), z_normal, lambda x: pyro.plate("data", 2))
    with pytest.raises(pv.PairError, match="works on 2 rows but not on 1"):
        pv.check(fixed, X[:2])


def test_programs_that_fail_on_fewer_rows_say_so_whatever_the_size():
    x = torch.zeros(30, 3)
    fixed = pair_of(lambda x: (z_normal(x), x_normal(x, torch.zeros(30, 3))), z_normal)
    with pytest.raises(pv.PairError, match="works on 30 rows but not on 29"):
        pv.check(fixed, x)


def test_an_automatic_guide_is_told_to_be_an_encoder():
    pair = pv.Pair(good_model_of_two, AutoNormal(good_model_of_two))
    with pytest.raises(
        pv.PairError, match="AutoNormal keeps a value for each row of its first batch: write a guide"
    ) as caught:
        pv.check(pair, X)
    assert str(caught.value).count("AutoNormal keeps a value") == 1


def test_an_automatic_guide_of_other_rows_is_told_the_same_in_an_evaluation():
    guide = AutoNormal(good_model_of_two)
    with pyro.get_param_store().scope():
        guide(X)
    with pytest.raises(pv.PairError, match=r"rows of the batch, found 6; AutoNormal keeps a value for each row"):
        pv.log_likelihood(pv.Pair(good_model_of_two, guide), X[:5], 10, progress=False)


def test_auxiliary_sites_are_for_point_guides_only():
    """AutoNormal's sites are a change of variables; an auxiliary variable of one's own is a missing factor."""

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            z_normal(x)

    with pytest.raises(pv.PairError, match="'a'"):
        pv.check(pv.Pair(good_model_of_two, guide), X)


def good_model_of_two(x):
    with pyro.plate("data", x.shape[0]):
        good_model(x)


def test_as_pair_needs_no_wrapper():
    assert pv.check(as_pair(ModuleVAE()), binary_rows()).num_parameters > 0


def test_a_site_of_training_mode_alone_is_found_before_the_first_step():
    class Extra(ModuleVAE):
        def guide(self, x):
            super().guide(x)
            if self.training:
                with pyro.plate("data", x.shape[0]):
                    pyro.sample("extra", dist.Normal(torch.zeros(x.shape[0]), 0.1))

    with pytest.raises(pv.PairError, match="'extra': expected no latent that the model lacks"):
        pv.fit(Extra(), binary_rows(8), epochs=1, progress=False)
    pv.log_likelihood(Extra(), binary_rows(8), 10, progress=False)


def test_a_site_that_later_rows_lack_is_named():
    class Missing(ModuleVAE):
        def guide(self, x):
            if float(x.sum()) > 0:
                super().guide(x)

    x = torch.cat([torch.ones(256, 5), torch.zeros(20, 5)])
    with pytest.raises(pv.PairError, match="'z': expected in the guide as in the model"):
        pv.log_likelihood(Missing(), x, 10, progress=False)


def test_a_global_latent_of_mini_batches_needs_the_number_of_data():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("m", torch.tensor(0.0)), 0.1))

    x = torch.randn(20)
    with pytest.raises(pv.PairError, match=r"'mean': .* state the size of the data set"):
        pv.fit(pv.Pair(model, guide), x, batch_size=5, epochs=1, progress=False)
    assert pv.fit(pv.Pair(model, guide), x, batch_size=20, epochs=1, progress=False).steps == 1


@pytest.mark.parametrize(
    ("levels", "likelihood", "cautioned"),
    [
        (2, lambda loc: dist.Normal(loc, 1.0), True),
        (17, lambda loc: dist.Normal(loc, 1.0), True),
        (2, lambda loc: dist.Bernoulli(logits=loc), False),
        (17, lambda loc: dist.Poisson(loc.exp()), False),
        (None, lambda loc: dist.Normal(loc, 1.0), False),
    ],
    ids=["Normal, binary", "Normal, grey", "Bernoulli", "Poisson", "Normal, continuous"],
)
def test_a_density_of_data_of_few_levels_is_cautioned(levels, likelihood, cautioned, generator):
    x = torch.rand(128, 3, generator=generator)
    if levels is not None:
        x = (x * levels).floor()

    def observe(x):
        z_normal(x)
        pyro.sample("x", likelihood(x.new_zeros(3)).to_event(1), obs=x)

    pair = pair_of(observe, z_normal)
    report = pv.check(pair, x)
    assert any("gives a density to data of only" in note for note in report.notes) == cautioned
    assert kind_of_density(pair, (x,)) == (
        "probability" if likelihood(torch.zeros(())).support.is_discrete else "density"
    )


def test_fit_warns_once_of_a_density_of_data_of_few_levels():
    x = torch.ones(128, 3)
    vae = pv.VAE(
        pv.priors.StandardNormal(1), pv.decoders.Gaussian.mlp(1, [], 3), pv.encoders.DiagonalNormal.mlp(3, [], 1)
    )
    with pytest.warns(UserWarning, match="'x': Normal gives a density to data of only 1 levels") as found:
        pv.fit(vae, x, epochs=2, progress=False)
    assert len(found) == 1


@pytest.mark.parametrize("role", ["guide", "model"])
@pytest.mark.parametrize("training", [False, True])
def test_a_program_that_writes_to_its_data_is_refused_and_they_are_put_back(role: str, training: bool):
    """Each run would find other data, and the caller's would be lost."""

    class Writing(ModuleVAE):
        def model(self, x):
            if role == "model" and self.training == training:
                x *= 0.5
            super().model(x)

        def guide(self, x):
            if role == "guide" and self.training == training:
                x.data.mul_(0.5)
            super().guide(x)

    x = binary_rows(8)
    before = x.clone()
    message = rf"the {role} writes to argument 0, which is data: make a new tensor of it, such as x = x / 10"
    options = {"progress": False, "compile": False}
    uses = [lambda: pv.fit(Writing(), x, steps=1, **options)]
    uses += [] if training else [lambda: pv.check(Writing(), x), lambda: pv.log_likelihood(Writing(), x, 20, **options)]
    for use in uses:
        with pytest.raises(pv.PairError, match=message):
            use()
        assert torch.equal(x, before)
