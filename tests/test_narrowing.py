"""A pair computes in the type of its parameters from the first call on, if that keeps what varies in the data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.arrays import as_rows
from ppl_vae.narrowing import check_narrowing
from tests.statistical import assert_close

X = np.array([0.13, 0.49, -0.77, 0.31, 2.2, -1.4])
FAR = 1e7


def offset_pair(offset=0.0, dtype=torch.float32):
    """x ~ N(offset + z, 1/2), with a guide whose only parameter is made when it first runs."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x - offset)

    def guide(x):
        width = pyro.param("width", torch.tensor(0.5, dtype=dtype), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * (x - offset), width))

    return pv.Pair(model, guide)


def estimate(pair, x):
    return pv.log_likelihood(pair, x, 50, progress=False).value


def evidence(pair, x):
    return pv.log_evidence(pair, x, progress=False)


def compared(pair, x):
    return pv.compare({"one": pair}, x, 50, progress=False).estimates["one"].value


def trained(pair, x):
    return pv.fit(pair, x, steps=2, progress=False, compile=False).history[-1].elbo


@pytest.mark.parametrize("ask", [estimate, evidence, compared])
def test_the_first_call_computes_in_the_type_of_the_later_ones(ask):
    pair = offset_pair()
    first = ask(pair, X)
    assert pair.dtype == torch.float32
    assert np.array_equal(first, ask(pair, X))


def test_the_first_fit_computes_in_the_type_of_the_later_ones():
    made = offset_pair()
    pv.check(made, X)
    assert trained(offset_pair(), X) == trained(made, X)


@pytest.mark.parametrize("ask", [estimate, evidence, compared, trained])
def test_data_that_the_type_of_the_parameters_cannot_tell_apart_are_refused(ask):
    with pytest.raises(pv.DataError, match=r"data: .*torch.float32.*mean 1e\+07.*subtract the mean.*pair.double"):
        ask(offset_pair(FAR), FAR + X)


def test_a_batch_that_loses_what_varies_in_it_is_a_caution():
    """All data may vary more: every hundredth of sorted seconds since 1970 was refused, and all of them were not."""
    (caution,) = pv.check(offset_pair(FAR), FAR + X).cautions
    assert "subtract the mean" in caution


SORTED = 1.7e9 + np.sort(np.random.default_rng(0).uniform(0, 1e6, 2000))


def test_a_part_of_sorted_data_is_taken_where_all_are():
    def scaled_pair():
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
                pyro.sample("x", dist.Normal(1.7e9 + 1e6 * z, 1e6), obs=x)

        return pv.Pair(model, offset_pair(1.7e9).guide)

    for part in (SORTED[-40:], SORTED[:40]):
        fit = pv.fit(scaled_pair(), SORTED, steps=1, validation=part, progress=False, compile=False)
        assert np.isfinite(fit.history[-1].elbo)
    assert compared(scaled_pair(), SORTED).shape == SORTED.shape


def test_held_out_data_are_refused_as_such():
    with pytest.raises(pv.DataError, match=r"validation data: data: .*subtract the mean"):
        pv.fit(offset_pair(), X, steps=1, validation=FAR + X, progress=False)


@pytest.mark.parametrize(("pair", "data"), [(lambda: offset_pair(FAR).double(), FAR + X), (offset_pair, X)])
def test_the_mends_that_the_message_names(pair, data):
    made = pair()
    if data is not X:
        made.prepare(torch.as_tensor(data))
        made.double()
    expected = np.asarray(torch.distributions.Normal(0.0, 1.25**0.5).log_prob(torch.as_tensor(X)))
    assert_close(evidence(made, data), expected, torch.float32, scale=1.0)


def test_what_is_left_for_escalation_may_be_more_alike_than_all():
    pair, x = offset_pair(3e3), 3e3 + np.concatenate([X, 1e-3 * X])
    found = pv.log_likelihood(pair, x, 50, progress=False)
    found = replace(found, khat=np.where(np.arange(12) < 6, -np.inf, 0.9))
    assert pv.escalate(found, pair, x, progress=False).method.tolist()[:6] == ["guide"] * 6


@pytest.mark.parametrize(
    "data",
    [
        lambda: np.full((6, 1), 0.1),
        lambda: np.where(np.arange(6) % 2, 1 / 3, np.nextafter(1 / 3, 1)),
        lambda: 1e6 + np.arange(6.0),
        lambda: 2e3 + X,
        lambda: (FAR + X)[:4],
        lambda: (FAR + X).astype(np.float32),
        lambda: np.arange(6) + (1 << 40),
    ],
    ids=[
        "the same in all rows",
        "the same but for rounding",
        "whole numbers",
        "a small offset",
        "four rows",
        "single already",
        "integers",
    ],
)
def test_what_may_be_rounded(data):
    check_narrowing(as_rows(data()).with_dtype(torch.float32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: np.stack([X, FAR + X], -1), "number 1 of a datum"),
        (lambda: (X, FAR + X), r"data\[1\]: "),
    ],
)
def test_what_may_not_is_named(data, message):
    with pytest.raises(pv.DataError, match=message):
        check_narrowing(as_rows(data()).with_dtype(torch.float32))


def checked(pair, x):
    return pv.check(pair, x)


@pytest.mark.parametrize("made", [False, True], ids=["type unknown", "type known"])
@pytest.mark.parametrize("ask", [estimate, evidence, compared, trained, checked])
@pytest.mark.parametrize(
    ("data", "found"),
    [
        (np.where(np.arange(6) == 4, 1e39, X), r"row 4: .*found 1e\+39"),
        (-1e200 * np.abs(X), r"row 0: .*found -1.3e\+199"),
        (np.array([0.0, 1e300]), r"row 1: .*found 1e\+300"),
    ],
    ids=["one", "all", "few rows"],
)
def test_numbers_too_large_for_the_type_of_the_parameters_are_named_before_a_program_runs(data, found, ask, made):
    pair = offset_pair()
    if made:
        pv.check(pair, X)
    with pytest.raises(pv.DataError, match=rf"data, {found}; rescale the data.*pair\.double\(\)"):
        ask(pair, data)


def test_numbers_too_large_are_named_in_held_out_data_files_and_pairs_of_arrays(tmp_path):
    np.save(tmp_path / "x.npy", np.where(np.arange(5000) == 4321, 1e39, 0.0))
    file = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    with pytest.raises(pv.DataError, match=r"^data, row 4321: .*torch.float32"):
        as_rows(file).with_dtype(torch.float32)
    with pytest.raises(pv.DataError, match=r"^data\[1\], row 3: .*torch.float16.*found 70000"):
        as_rows((X, np.where(np.arange(6) == 3, 7e4, 1.0))).with_dtype(torch.float16)
    with pytest.raises(pv.DataError, match=r"^validation data: data, row 4321"):
        pv.fit(offset_pair(), X, steps=1, validation=file, progress=False)


def test_rows_of_a_file_are_looked_through_block_by_block(tmp_path, monkeypatch):
    x = np.concatenate([FAR + np.zeros(50), FAR + np.repeat(X, 50)])
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr("ppl_vae.narrowing._BLOCK", 16)
    with pytest.raises(pv.DataError, match=rf"mean 1e\+07 and spread {x.std():.3g}, moved by up to 0.49"):
        check_narrowing(as_rows(np.load(tmp_path / "x.npy", mmap_mode="r")).with_dtype(torch.float32))
