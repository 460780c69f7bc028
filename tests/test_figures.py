"""Figures draw what they are given, off screen, and refuse what they cannot draw."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import ppl_vae as pv
from ppl_vae import figures
from ppl_vae.errors import DataError
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE

STEPS = np.arange(1, 301)


def history(count: int = 300, **changes: np.ndarray) -> dict[str, np.ndarray]:
    step = STEPS[:count]
    distortion, rate = 20 + 30 / step, 10 - 9 / step
    columns = {"step": step, "distortion": distortion, "rate": rate, "elbo": -distortion - rate}
    return columns | {"objective": columns["elbo"]} | changes


def pixels(figure: Figure, tmp_path: Path) -> bytes:
    figure.savefig(tmp_path / "figure.png")
    return (tmp_path / "figure.png").read_bytes()


def labels(axes: Axes) -> set[str]:
    return {line.get_label() for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_learning_curves_show_each_column_at_its_steps():
    bound, distortion, rate = figures.learning_curves(history(100)).axes
    for axes, name in ((bound, "elbo"), (distortion, "distortion"), (rate, "rate")):
        np.testing.assert_allclose(axes.get_lines()[0].get_xydata(), np.c_[STEPS[:100], history(100)[name]])


def test_learning_curves_take_records_and_columns(tmp_path: Path):
    columns = history(5, validation_elbo=np.array([np.nan, -40, np.nan, -35, np.nan]))
    records = [SimpleNamespace(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    records[0].validation_elbo = None
    from_records = pixels(figures.learning_curves(records), tmp_path)
    assert from_records == pixels(figures.learning_curves(columns), tmp_path)


def test_objective_and_validation_appear_only_where_they_say_something():
    assert labels(figures.learning_curves(history()).axes[0]) == {"ELBO, training"}
    beta = history(objective=history()["elbo"] / 2, validation_elbo=history()["elbo"] - 1)
    assert labels(figures.learning_curves(beta).axes[0]) == {"ELBO, training", "objective trained", "ELBO, validation"}


def test_an_objective_that_tells_no_elbo_is_drawn_alone():
    silent = np.full(STEPS.shape, np.nan)
    figure = figures.learning_curves(history(elbo=silent, distortion=silent, rate=silent))
    bound, distortion, rate = figure.axes
    assert labels(bound) == {"objective trained"}
    assert [axes.texts[0].get_text() for axes in (distortion, rate)] == ["not told by this objective"] * 2


def test_a_running_mean_keeps_a_line():
    drawn = figures.learning_curves(history(rate=0.5 * STEPS + 3.0)).axes[2].get_lines()[-1].get_xydata()
    assert len(drawn) < len(STEPS)
    np.testing.assert_allclose(drawn[:, 1], 0.5 * drawn[:, 0] + 3.0, rtol=1e-10)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([], "missing .*'step'"),
        ({"step": [1]}, "missing .*'rate'"),
        ({name: [] for name in ("step", "objective", "elbo", "distortion", "rate")}, "one positive length"),
        (history(5, rate=np.ones(4)), "one positive length"),
    ],
)
def test_learning_curves_refuse_a_broken_history(broken: object, message: str):
    with pytest.raises(DataError, match=message):
        figures.learning_curves(broken)


def test_image_grid_puts_every_pixel_in_its_place():
    images = np.random.default_rng(0).random((5, 4, 3))
    canvas = figures.image_grid(images, columns=2).axes[0].get_images()[0].get_array()
    assert canvas.shape == (3 * 5 - 1, 2 * 4 - 1, 3)
    for index, image in enumerate(images):
        top, left = index // 2 * 5, index % 2 * 4
        np.testing.assert_array_equal(canvas[top : top + 4, left : left + 3, 1], image)
    assert (canvas[10:, 3:] == 1).all()  # the last row has one image: paper beside it


def test_image_grid_takes_channels_and_a_range():
    images = np.random.default_rng(0).random((4, 3, 5, 5))
    colour = figures.image_grid(images, columns=4).axes[0].get_images()[0].get_array()
    np.testing.assert_array_equal(colour[:, :5], np.moveaxis(images[0], 0, -1))
    single = figures.image_grid(16 * images[:, :1], columns=4, value_range=(0, 16)).axes[0].get_images()[0].get_array()
    np.testing.assert_allclose(single[:, :5, 2], images[0, 0], rtol=1e-12)


@pytest.mark.parametrize("shape", [(4, 64), (4, 2, 8, 8), (0, 8, 8), (8,)])
def test_image_grid_refuses_other_shapes(shape: tuple[int, ...]):
    with pytest.raises(DataError, match="found"):
        figures.image_grid(np.zeros(shape))


def test_image_grid_takes_a_tensor_with_gradient():
    figures.image_grid(torch.zeros(2, 1, 4, 4, requires_grad=True) * 2)


@pytest.mark.parametrize("columns", [0, 2.5])
def test_image_grid_has_a_column(columns):
    with pytest.raises(ValueError, match="columns"):
        figures.image_grid(np.zeros((2, 4, 4)), columns)


def test_reconstructions_label_their_rows():
    original, other = np.zeros((6, 8, 8)), np.ones((6, 8, 8))
    axes = figures.reconstructions(original, {"VAE": other}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["original", "VAE"]
    canvas = axes.get_images()[0].get_array()
    assert not canvas[:8, :8].any()
    assert canvas[9:17, :8].all()


def test_reconstructions_refuse_a_row_of_another_size():
    with pytest.raises(DataError, match=r"row 'VAE': expected images \(6, 8, 8\)"):
        figures.reconstructions(np.zeros((6, 8, 8)), {"VAE": np.zeros((5, 8, 8))})


def test_histogram_counts_every_datum_and_marks_the_doubtful():
    values = np.linspace(-30.0, -10.0, 200)
    axes = figures.log_likelihood_histogram(values, np.arange(200) >= 30).axes[0]
    _, legend = axes.get_legend_handles_labels()
    counts = [sum(bar.get_height() for bar in group) for group in axes.containers]
    assert counts == [170, 30]
    assert set(legend) == {"mean ≥ −20.00 nats", "trusted: 85.0%", "untrusted, rather too low: 15.0%"}


@pytest.mark.parametrize(("untrusted", "mean"), [(0, "mean −20.00 nats"), (1, "mean ≥ −20.00 nats")])
def test_histogram_of_untrusted_data_has_a_lower_bound(untrusted: int, mean: str):
    axes = figures.log_likelihood_histogram(np.linspace(-30.0, -10.0, 100), np.arange(100) >= untrusted).axes[0]
    assert mean in axes.get_legend_handles_labels()[1]


def test_histogram_of_an_exact_model_says_so():
    _, legend = figures.log_likelihood_histogram(np.linspace(-3, -1, 50)).axes[0].get_legend_handles_labels()
    assert "exact" in legend


@pytest.mark.parametrize(
    ("values", "trusted", "message"),
    [
        ([-1.0, np.nan], None, "finite"),
        ([[-1.0]], None, "finite"),
        ([-1.0, -2.0], [True], r"trusted: expected one truth value per datum, \(2,\)"),
    ],
)
def test_histogram_refuses(values: list[float], trusted: list[bool] | None, message: str):
    with pytest.raises(DataError, match=message):
        figures.log_likelihood_histogram(values, trusted)


def test_a_saved_grid_has_no_blank_strip(tmp_path: Path):
    from matplotlib.image import imread

    figures.save(figures.image_grid(np.zeros((60, 8, 8)), 10, "Samples"), tmp_path / "grid.png")
    blank = (imread(tmp_path / "grid.png")[..., :3] > 0.98).all((1, 2))
    assert blank[:2].all()
    assert not blank[-12:].all()


def test_the_trained_objective_has_the_name_given():
    bound = figures.learning_curves(history(objective=-STEPS), objective="IWAE bound").axes[0]
    assert "IWAE bound" in labels(bound)


def test_contact_sheet_takes_figures_and_files(tmp_path: Path):
    grid = figures.image_grid(np.random.default_rng(0).random((4, 8, 8)), columns=4)
    grid.savefig(tmp_path / "grid.png")
    page = figures.contact_sheet({"from memory": grid, "from disk": tmp_path / "grid.png"}, title="Digits")
    memory, disk = page.axes
    assert (memory.get_title(loc="left"), disk.get_title(loc="left")) == ("from memory", "from disk")
    np.testing.assert_allclose(memory.get_images()[0].get_array() / 255, disk.get_images()[0].get_array(), atol=1 / 255)


def test_contact_sheet_keeps_proportions_and_order():
    wide, tall = np.zeros((12, 8, 8)), np.zeros((12, 8, 8))
    pictures = {"a": figures.image_grid(wide, columns=12), "b": figures.image_grid(tall, columns=3)}
    page = figures.contact_sheet(pictures | {"c": pictures["b"]})
    width, height = page.get_size_inches()
    boxes = [axes.get_position() for axes in page.axes]
    for axes, box in zip(page.axes, boxes, strict=True):
        pixels = axes.get_images()[0].get_array().shape
        assert box.width * width / (box.height * height) == pytest.approx(pixels[1] / pixels[0], rel=1e-6)
        assert 0 <= box.x0 <= box.x1 <= 1
        assert 0 <= box.y0 <= box.y1 <= 1
    assert [axes.get_title(loc="left") for axes in page.axes] == ["a", "b", "c"]
    assert all(after.x0 > before.x1 or after.y1 < before.y0 for before, after in pairwise(boxes))


@pytest.mark.parametrize("count", [6, 12, 24])
def test_contact_sheet_has_the_shape_of_a_screen(count: int):
    grid = figures.image_grid(np.zeros((40, 8, 8)), columns=10)
    curves = figures.learning_curves(history())
    pictures = {str(i): curves if i % 4 == 0 else grid for i in range(count)}
    width, height = figures.contact_sheet(pictures, "Title", "A note.").get_size_inches()
    assert 1.2 < width / height < 2.2


def test_contact_sheet_shows_title_and_note():
    page = figures.contact_sheet({"a": figures.image_grid(np.zeros((4, 8, 8)))}, "Digits", "Draws are noisy.")
    assert page.get_suptitle() == "Digits"
    assert [text.get_text() for text in page.texts if text.get_text() != "Digits"] == ["Draws are noisy."]


def test_contact_sheet_refuses_nothing():
    with pytest.raises(DataError, match="at least one picture"):
        figures.contact_sheet({})


def test_early_steps_do_not_flatten_the_curve():
    far = history()
    far["elbo"] = np.where(STEPS < 5, -1e4, far["elbo"])
    low, high = figures.learning_curves(far).axes[0].get_ylim()
    assert low > -100
    assert high > far["elbo"].max()


def test_colours_differ_without_colour():
    grey = sorted(np.dot((0.2126, 0.7152, 0.0722), to_rgb(c)) for c in (DARK, MIDDLE, LIGHT))
    assert np.diff(grey).min() > 0.15


def test_figures_leave_pyplot_alone():
    code = "import sys, numpy; from ppl_vae.figures import image_grid; image_grid(numpy.ones((1, 2, 2)));"
    subprocess.run([sys.executable, "-c", code + "assert 'matplotlib.pyplot' not in sys.modules"], check=True)


# Comparison


def compared() -> pv.Comparison:
    rng = np.random.default_rng(0)
    hard = rng.normal(-90, 10, 200)
    sure, doubtful = np.ones(200, dtype=bool), np.zeros(200, dtype=bool)
    made = {
        "flow guide": (hard + 1.5 + 0.5 * rng.normal(size=200), 0.1, sure),
        "full covariance": (hard + 1.45 + 0.5 * rng.normal(size=200), 0.1, sure),
        "diagonal": (hard + 0.5 * rng.normal(size=200), 0.3, sure),
        "two layers": (hard - 0.8 + 2 * rng.normal(size=200), 1.0, doubtful),
    }
    return pv.Comparison(
        {
            n: SimpleNamespace(value=v, stderr=np.full(200, s), trusted=t, is_exact=False)
            for n, (v, s, t) in made.items()
        }
    )


@pytest.mark.parametrize("untrusted", [0, 1, 3])
def test_every_lower_bound_has_an_arrow(untrusted: int):
    """As `≥` is written from the first untrusted datum on."""
    one = SimpleNamespace(
        value=np.arange(4.0), stderr=np.full(4, 0.1), trusted=np.arange(4) >= untrusted, is_exact=False
    )
    figure = figures.rank_intervals(pv.Comparison({"one": one}))
    arrows = [text for text in figure.axes[0].texts if text.arrow_patch is not None]
    (legend,) = figure.legends
    assert len(arrows) == (untrusted > 0) == ("lower bound" in [text.get_text() for text in legend.get_texts()])
    assert (figure.axes[0].texts[-1].get_text()[0] == "≥") == (untrusted > 0)


def test_no_error_is_not_exact():
    """Equal weights of an exact guide have no error, and are an estimate all the same."""
    for is_exact in (False, True):
        one = SimpleNamespace(value=np.ones(2), stderr=np.zeros(2), trusted=np.ones(2, dtype=bool), is_exact=is_exact)
        (axes,) = figures.rank_intervals(pv.Comparison({"one": one})).axes
        assert axes.texts[-1].get_text() == ("1.00 exact" if is_exact else "1.00 ± 0.00")


def test_a_comparison_shows_how_far_each_is_behind_and_how_sure_that_is(tmp_path: Path):
    found = compared()
    figure = figures.rank_intervals(found, "Test digits")
    (axes,) = figure.axes
    ranks = ["1 to 3", "1 to 3", "3 to 4", "1 to 4"]
    expected = [f"{rank}  {name}" for rank, name in zip(ranks, found.names, strict=True)]
    assert [text.get_text() for text in axes.get_yticklabels()] == expected
    assert "flow guide: nats per datum, mean of 200 data" in axes.get_xlabel()
    places = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() in ("o", "D")]
    behind = [0.0, *(-found.behind(name).mean for name in found.names[1:])]
    np.testing.assert_allclose(places, behind)
    filled = [line.get_markerfacecolor() for line in axes.get_lines() if line.get_marker() == "o"]
    assert [colour == "white" for colour in filled] == [found.behind(n).p_value > 0.05 for n in found.names[1:]]
    assert any("≥" in text.get_text() for text in axes.texts)
    assert pixels(figure, tmp_path)
