"""The checker: every mismatch of model and guide is an error that names the site, what was expected and found."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DiscreteVAE, HierarchicalVAE, ModuleVAE, binary_rows, closure_pair, small_ppca
from statistical import assert_estimates
from torch import nn

import ppl_vae as pv
from ppl_vae.checking import kind_of_density
from ppl_vae.pair import as_pair

X = torch.linspace(-1, 1, 18).reshape(6, 3)


def pair_of(model_body, guide_body, plate=lambda x: pyro.plate("data", x.shape[0])):
    """A pair whose programs run the bodies inside the data plate."""

    def model(x):
        with plate(x):
            model_body(x)

    def guide(x):
        with plate(x):
            guide_body(x)

    return pv.Pair(model, guide)


def z_normal(x, name="z", size=2):
    return pyro.sample(name, dist.Normal(x.new_zeros(size), 1.0).to_event(1))


def x_normal(x, loc=0.0):
    return pyro.sample("x", dist.Normal(x.new_zeros(3) + loc, 1.0).to_event(1), obs=x)


def good_model(x):
    z_normal(x)
    x_normal(x)


MISMATCHES = {
    "missing site": (good_model, lambda x: None, r"'z': expected in the guide.*add pyro.sample"),
    "typo": (good_model, lambda x: z_normal(x, "zz"), r"'z'.*rename 'zz'"),
    "typo in capitals": (good_model, lambda x: z_normal(x, "Z"), r"'z'.*rename 'Z'"),
    "a scale that is not positive": (
        good_model,
        lambda x: pyro.poutine.scale(lambda: z_normal(x), scale=torch.linspace(-1.0, 1.0, 6))(),
        r"the guide failed.*scale > 0 but got -1.0000, -0.6000, -0.2000 and more\. Consider",
    ),
    "a parameter outside its constraint": (
        good_model,
        lambda x: pyro.sample("z", dist.Normal(x.new_zeros(6, 2), -x.new_ones(6, 2)).to_event(1)),
        r"found invalid values: -1, -1, -1 and more$",
    ),
    "extra site": (
        good_model,
        lambda x: (z_normal(x), z_normal(x, "w")),
        r"'w': expected no latent that the model lacks",
    ),
    "observed in the guide": (good_model, lambda x: (z_normal(x), x_normal(x)), r"'x'.*observed site in the guide"),
    "guide samples an observed site": (good_model, lambda x: (z_normal(x), z_normal(x, "x", 3)), r"'x'.*observed"),
    "two sites of one name": (lambda x: (good_model(x), z_normal(x)), z_normal, r"'z'.*found two"),
    "nothing observed": (z_normal, z_normal, r"at least one observed site"),
    "event shape": (good_model, lambda x: z_normal(x, size=4), r"'z': expected event shape \(2,\).*\(4,\)"),
    "event dim forgotten": (
        good_model,
        lambda x: pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0)),
        r"Shape mismatch inside plate.*to_event",
    ),
    "rows not in the parameters' shape": (
        lambda x: (z_normal(x), pyro.sample("x", dist.Normal(x.new_zeros(6, 6, 3), 1.0).to_event(1), obs=x)),
        z_normal,
        r"'x'.*dimension -2.*to_event",
    ),
    "observations broadcast": (
        lambda x: (z_normal(x), pyro.sample("x", dist.Normal(x.new_zeros(3), 1.0).to_event(1), obs=x[:1])),
        z_normal,
        r"'x'.*expected observations of shape \(6, 3\).*\(1, 3\)",
    ),
    "support not covered": (
        good_model,
        lambda x: pyro.sample("z", dist.LogNormal(x.new_zeros(2), 1.0).to_event(1)),
        r"'z'.*covers the model's support real, found LogNormal on greaterThan",
    ),
    "uniform guide on a normal latent": (
        good_model,
        lambda x: pyro.sample("z", dist.Uniform(-3 + x.new_zeros(2), 3.0).to_event(1)),
        r"'z'.*covers the model's support",
    ),
    "too few categories": (
        lambda x: (pyro.sample("z", dist.Categorical(torch.ones(4) / 4)), x_normal(x)),
        lambda x: pyro.sample("z", dist.Categorical(torch.ones(3) / 3)),
        r"'z'.*covers",
    ),
    "discrete against continuous": (
        lambda x: (pyro.sample("z", dist.Bernoulli(0.3)), x_normal(x)),
        lambda x: pyro.sample("z", dist.Beta(1.0, 1.0)),
        r"'z'.*one is discrete",
    ),
    "zero density inside the support": (
        lambda x: (pyro.sample("z", dist.Uniform(0.0, 4.0)), x_normal(x)),
        lambda x: pyro.sample("z", dist.Uniform(0.0, 1.0)),
        r"'z'.*covers",
    ),
    "point guide": (
        good_model,
        lambda x: pyro.sample("z", dist.Delta(x.new_zeros(len(x), 2)).to_event(1)),
        r"'z'.*density 0",
    ),
    "draws outside": (
        lambda x: (pyro.sample("z", dist.LogNormal(x.new_zeros(2), 1.0).to_event(1)), x_normal(x)),
        z_normal,
        r"'z': expected draws inside.*ELBO is minus infinity",
    ),
}


@pytest.mark.parametrize(("model", "guide", "message"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_mismatches_are_errors_everywhere(model, guide, message):
    for use in (lambda p: pv.check(p, X), lambda p: pv.fit(p, X, epochs=1, progress=False)):
        with pytest.raises(pv.PairError, match=f"(?s){message}"):
            use(pair_of(model, guide))
    if "draws inside" not in message:
        with pytest.raises(pv.PairError, match=f"(?s){message}"):
            pv.log_likelihood(pair_of(model, guide), X, 20, progress=False)


@pytest.mark.parametrize(
    ("plate", "message"),
    [
        (lambda x: pyro.plate("rows", x.shape[0]), r'plate named "data".*rows'),
        (lambda x: pyro.plate("data", 5), r"expected plate \"data\" to have the 6 rows|Shape mismatch"),
        (lambda x: pyro.plate("data", 6), r"works on 6 rows but not on 5"),
    ],
)
def test_plates_must_fit_the_data(plate, message):
    guide = lambda x: pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))  # noqa: E731
    with pytest.raises(pv.PairError, match=message):
        pv.check(pair_of(good_model, guide, plate), X)


def test_sequential_plates_are_refused():
    def model(x):
        for i in pyro.plate("data", x.shape[0]):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i, 0])

    def guide(x):
        for i in pyro.plate("data", x.shape[0]):
            pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))

    with pytest.raises(pv.PairError, match="vectorised plates"):
        pv.check(pv.Pair(model, guide), X)


def test_a_failing_program_is_named():
    with pytest.raises(pv.PairError, match=r"the guide failed on a batch of \(6, 3\) float32: boom"):
        pv.check(pair_of(good_model, lambda x: (_ for _ in ()).throw(RuntimeError("boom"))), X)


def test_wrong_dtype_has_a_mend():
    with pytest.raises(pv.PairError, match="convert the data"):
        pv.check(closure_pair(), torch.zeros(4, 3, dtype=torch.uint8))


def test_data_outside_the_support_name_the_row():
    x = binary_rows(10)
    x[7, 2] = 0.25
    for use in (
        lambda: pv.check(ModuleVAE(), x),
        lambda: pv.fit(ModuleVAE(), x, epochs=1, batch_size=4, progress=False),
        lambda: pv.log_likelihood(ModuleVAE(), x, 10, progress=False),
    ):
        with pytest.raises(pv.DataError, match=r"'x', row 7.*boolean.*Bernoulli.*0.25.*binarise"):
            use()


def test_rows_are_found_behind_a_transformation_of_the_data():
    """The site observes 1 - x, not an argument as it is: the model itself is run on every block."""

    def model(x):
        z_normal(x)
        pyro.sample("x", dist.Bernoulli(torch.full((5,), 0.5)).to_event(1), obs=1 - x)

    x = binary_rows(3000)
    x[2500, 0] = 0.5
    with pytest.raises(pv.DataError, match="row 2500"):
        pv.fit(pair_of(model, z_normal), x, epochs=1, progress=False)


def test_the_report_describes_the_pair():
    report = pv.check(ModuleVAE(full_covariance=True), binary_rows())
    z, x = report.sites
    assert (z.kind, z.model, z.guide, z.event_shape, z.gradient, z.kl) == (
        "latent",
        "Normal",
        "MultivariateNormal",
        (2,),
        "pathwise",
        "analytic",
    )
    assert (x.kind, x.model, x.support, x.plates) == ("observed", "Bernoulli", "boolean", ("data[6]",))
    assert report.num_parameters == sum(p.numel() for p in ModuleVAE(full_covariance=True).parameters())
    text = str(report)
    assert "MultivariateNormal" in text
    assert "encoder" in text


def test_a_closed_form_is_used_only_where_it_may_be():
    """The guide draws z1 before its parent z2: a closed form at z1 given that z2 would be biased, one at z2 is not."""
    layout = pv.check(HierarchicalVAE(), binary_rows()).layout
    assert layout.analytic == {"z2"}
    assert pv.check(DiscreteVAE(), binary_rows()).layout.cardinalities == {"z": 3}


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


def good_model_with_plate(x):
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        x_normal(x)


def batch_norm_guide(module, x):
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(module.out(module.norm(x)), 1.0).to_event(1))


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


def test_programs_that_fail_on_fewer_rows_say_so_whatever_the_size():
    x = torch.zeros(30, 3)
    fixed = pair_of(lambda x: (z_normal(x), x_normal(x, torch.zeros(30, 3))), z_normal)
    with pytest.raises(pv.PairError, match="works on 30 rows but not on 29"):
        pv.check(fixed, x)


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
