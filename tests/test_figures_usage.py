"""Figures of latents and ranks: what is drawn is what was given."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae import figures
from ppl_vae.errors import DataError
from ppl_vae.figures import bound_in_parts, latent_curves, learning_curves, rank_plots
from tests.statistical import assert_close


def ledger(distortion, rate, kl, information=None):
    return SimpleNamespace(
        distortion=SimpleNamespace(mean=distortion),
        rate=SimpleNamespace(mean=rate),
        latents=tuple(SimpleNamespace(name=name, kl=np.array([values, values])) for name, values in kl.items()),
        surgery=None if information is None else SimpleNamespace(mutual_information=information),
    )


def history(kl, steps):
    records = [SimpleNamespace(step=step) for step in steps]
    return type("History", (list,), {"kl": lambda self, site: np.asarray({"z": kl}[site])})(records)


def calibration(ranks, num_draws, departures=()):
    named = tuple(SimpleNamespace(quantity=name) for name in departures)
    return SimpleNamespace(ranks=ranks, num_draws=num_draws, departures=lambda: named)


def test_the_bar_is_the_sum_of_its_parts():
    figure = bound_in_parts(ledger(80.0, 20.0, {"z": [5.0, 15.0, 0.0], "y": [0.1]}, 18.0))
    bar, z, y = figure.axes
    assert_close([patch.get_height() for patch in bar.patches], [80.0, 18.0, 2.0])
    assert_close([patch.get_y() for patch in bar.patches], [0.0, 80.0, 98.0])
    assert_close([patch.get_height() for patch in z.patches], [15.0, 5.0, 0.0])
    assert y.get_title() == "latent 'y': 1 of 1 scalars used"
    assert len(bound_in_parts(ledger(80.0, 20.0, {"z": [20.0]})).axes[0].patches) == 2


def test_latents_are_drawn_through_training():
    kl = np.array([[0.5, 0.2], [1.0, 0.001], [1.5, 0.002]])
    curves, number = latent_curves(history(kl, [10, 20, 30])).axes
    drawn = [line for line in curves.get_lines() if len(line.get_xdata())]
    assert_close([line.get_ydata() for line in drawn], kl.T)
    assert drawn[0].get_linestyle() != drawn[1].get_linestyle()
    assert_close(number.get_lines()[0].get_ydata(), [2, 1, 1])
    assert list(drawn[0].get_xdata()) == [10, 20, 30]


def test_learning_curves_split_the_bound_of_the_validation_data_too():
    columns = {"step": [1, 2], "objective": [-9, -8], "elbo": [-9, -8], "distortion": [8, 6], "rate": [1, 2]}
    held_out = {"validation_elbo": [-10, -9], "validation_distortion": [8.5, 7], "validation_rate": [1.5, 2]}
    _, distortion, rate = learning_curves(columns | held_out).axes
    assert_close(distortion.get_lines()[1].get_ydata(), [8.5, 7])
    assert_close(rate.get_lines()[1].get_ydata(), [1.5, 2])
    assert [text.get_text() for text in rate.get_legend().get_texts()] == ["training", "validation"]


def test_histograms_hold_every_simulation_and_the_worst_come_first():
    rng = np.random.default_rng(0)
    even, odd = np.arange(400) % 20, rng.integers(0, 10, 400)
    figure = rank_plots(calibration({"z": np.stack([even, odd], 1), "log p": even[:, None]}, 19, ["z[1]"]))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["z[1]: departs", "z[0]", "log p", "all 3 quantities, 400 simulations"]
    assert_close([patch.get_height() for patch in figure.axes[1].patches[:20]], np.full(20, 20.0))
    assert sum(patch.get_height() for patch in figure.axes[0].patches[:20]) == 400
    departing = figure.axes[3].get_lines()[1].get_ydata()
    assert max(departing) == pytest.approx(0.5, abs=0.05)


def test_bins_of_unequal_ranks_have_their_share():
    """32 ranks in 20 bins: a bin of two ranks is twice as high."""
    figure = rank_plots(calibration({"z": (np.arange(320) % 32)[:, None]}, 31))
    heights = {patch.get_height() for patch in figure.axes[0].patches[:20]}
    assert heights == {10, 20}


def test_broken_input_is_refused():
    with pytest.raises(DataError, match=r"ranks in 0\.\.9"):
        rank_plots(calibration({"z": np.array([[10]])}, 9))
    with pytest.raises(DataError, match="found none"):
        bound_in_parts(ledger(1.0, 1.0, {}))
    with pytest.raises(DataError, match="kl: expected an array of 2 dimensions"):
        latent_curves(history([1.0, np.nan], [1, 2]))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (figures.bound_against_samples, "curve: expected what k_curve has returned, found LogLikelihood"),
        (figures.bound_in_parts, "ledger: expected what ledger has returned, found LogLikelihood"),
        (figures.contact_sheet, "pictures: expected captions with the picture of each, found LogLikelihood"),
        (lambda ll: figures.contact_sheet({"a": ll}), "pictures: expected figures and the Paths of PNG files, found"),
        (figures.gap_bars, "gaps: expected names with what gap_decomposition has returned for each, found LogLik"),
        (lambda ll: figures.gap_bars({"a": ll}), r"gaps\['a'\]: expected what gap_decomposition has returned, found"),
        (figures.image_grid, "images: expected an array of real numbers"),
        (figures.latent_curves, "history: expected Fit.history, found LogLikelihood"),
        (figures.learning_curves, "history: expected Fit.history, or columns by name, found LogLikelihood"),
        (figures.log_likelihood_histogram, "values: expected an array of real numbers"),
        (figures.rank_intervals, "found: expected what compare has returned, found LogLikelihood"),
        (figures.rank_plots, "calibration: expected what calibrate has returned, found LogLikelihood"),
        (lambda ll: figures.reconstructions(np.zeros((1, 2, 2)), ll), "rows: expected labels with the images of each"),
        (lambda ll: figures.save(ll, "nowhere.png"), "figure: expected a figure of matplotlib, found LogLikelihood"),
        (lambda ll: figures.show_rows(None, ll), "rows: expected labels with the images of each row, found LogLik"),
    ],
)
def test_another_result_is_refused_in_words(draw, message):
    ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
    with pytest.raises(DataError, match=message):
        draw(pv.log_likelihood(ppca, torch.zeros(2, 2), 10, progress=False))


def test_columns_without_names_are_no_history():
    with pytest.raises(DataError, match="expected a history with columns"):
        learning_curves(np.zeros((2, 5)))
