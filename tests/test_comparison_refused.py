"""What does not compare is refused by name, before anything is evaluated."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from tests.pairs import ModuleVAE, binary_rows, small_ppca


def compare(pairs, x, k=50, **options):
    return pv.compare(pairs, x, k, progress=False, **options)


def normal(width):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, width), 1.0).to_event(1), obs=x[:, :width])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, 1.0))

    return pv.Pair(model, guide)


WRONG = [
    ({}, pv.PairError, "expected a dictionary, name -> pair, of at least one, found {}"),
    ([ModuleVAE()], pv.PairError, "expected a dictionary"),
    ({"a": ModuleVAE(), 1: ModuleVAE()}, pv.PairError, "pairs: expected names that are texts, found 1"),
    ({"a": normal(5), "b": normal(3)}, pv.PairError, r"log p of 5 numbers \('a'\) and log p of 3 numbers \('b'\)"),
    ({"a": ModuleVAE(), "b": small_ppca(7)}, pv.PairError, "^pair 'b': "),
    ({"a": normal(5), "b": ModuleVAE()}, pv.PairError, r"found density \('a'\) and probability \('b'\)"),
    ({"a": object()}, pv.PairError, "^pair 'a': "),
]


@pytest.mark.parametrize(("pairs", "error", "message"), WRONG)
def test_what_does_not_compare_is_refused_by_name(pairs, error, message):
    with pytest.raises(error, match=message):
        compare(pairs, binary_rows(4), 5)


def scored(site: str, twice: bool = False) -> pv.Pair:
    """p(x given y), or p(y given x): as many numbers of a datum."""

    def model(x, y):
        given, value = (y, x) if site == "x" else (x, y)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample(site, dist.Normal(z + given, 1.0), obs=2 * value if twice else value.reshape(-1))

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    return pv.Pair(model, guide)


def test_pairs_that_score_different_arguments_are_refused():
    x, y = torch.arange(3.0), torch.ones(3)
    message = r"same observed part.*log p of argument 0 \('a'\) and log p of argument 1 \('b'\)"
    with pytest.raises(pv.PairError, match=message):
        compare({"a": scored("x"), "b": scored("y")}, (x, y), 5)
    for other in (scored("x"), scored("x", twice=True)):  # what is made of an argument cannot be told
        assert compare({"a": scored("x"), "b": other}, (x, y), 5).ranks
    assert compare({"a": scored("x"), "b": scored("y")}, (x, x), 5).ranks


def test_what_does_not_compare_is_refused_before_anything_is_evaluated(monkeypatch):
    """Hours of evaluation ended in a refusal."""
    monkeypatch.setattr(
        "ppl_vae.evaluation.comparison.log_likelihood", lambda *args, **options: pytest.fail("evaluated")
    )
    x, y = torch.arange(4.0), torch.ones(4)
    for pairs, data in (
        ({"a": scored("x"), "b": scored("y")}, (x, y)),
        ({"a": normal(5), "b": ModuleVAE()}, binary_rows(4)),
        ({"a": normal(5), "b": normal(3)}, binary_rows(4)),
    ):
        with pytest.raises(pv.PairError, match="expected pairs with the same"):
            compare(pairs, data, 5)
