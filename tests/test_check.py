"""The checker: every mismatch of model and guide is an error that names the site, what was expected and found."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from tests.bodies import X, good_model, pair_of, x_normal, z_normal
from tests.pairs import DiscreteVAE, HierarchicalVAE, ModuleVAE, binary_rows, closure_pair

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
    "factor in the guide": (
        good_model,
        lambda x: (z_normal(x), pyro.factor("f", x.sum(1), has_rsample=False)),
        r"'f': expected no factor in the guide, found pyro.factor\(...\).*move it to the model",
    ),
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


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((6, 2), r"takes rows of 3 numbers, found 2: give data of the shape that the programs take, or make them"),
        ((6,), r"takes rows of 3 numbers, found 6: give data of the shape .* \(reshape a column to \(N, 1\)\)"),
    ],
)
def test_data_of_another_width_have_a_mend(rows, message):
    layer = torch.nn.Linear(3, 2)
    pair = pair_of(good_model, lambda x: pyro.sample("z", dist.Normal(layer(x), 1.0).to_event(1)))
    with pytest.raises(pv.PairError, match=message):
        pv.check(pair, torch.zeros(rows))


@pytest.mark.parametrize(
    ("fails", "mend"),
    [
        (
            lambda x: torch.zeros(6, 5) @ torch.zeros(4, 2),
            "; a layer takes rows of 4 numbers, found 5: make it for those",
        ),
        (lambda x: torch.zeros(6, 5) + torch.zeros(6, 4), ""),
        (lambda x: x + torch.zeros(6, 4), "; give data of the shape that the programs take, or make them for these"),
    ],
)
def test_sizes_within_a_program_are_not_put_down_to_the_data(fails, mend):
    with pytest.raises(pv.PairError, match=r"failed on a batch of \(6, 3\)") as caught:
        pv.check(pair_of(good_model, fails), X)
    assert str(caught.value) == f"the guide failed on a batch of (6, 3) float32: {caught.value.__cause__}{mend}"


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.half])
def test_a_type_that_nothing_can_be_drawn_in_has_a_mend(dtype):
    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(2.0 + x, 2.0))

    with pytest.raises(pv.PairError, match=r"not implemented for .*; convert the data to a type.* x\.float\(\)"):
        pv.check(pv.Pair(model, guide), torch.ones(2, dtype=dtype))


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
