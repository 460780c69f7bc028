"""The comparison table says the same thing in the terminal, in Markdown and in JSON."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from ppl_vae.report import ModelRow, bits_per_dimension, to_json, to_markdown, to_table

VAE = ModelRow(
    model="VAE",
    num_parameters=12_345,
    elbo=-24.061,
    log_likelihood=-22.3111,
    log_likelihood_stderr=0.0123,
    num_samples=5000,
    ess=812.4,
    share_untrusted=0.034,
    seconds=7.25,
)
GMM = ModelRow(model="GMM | EM", num_parameters=99, log_likelihood=-23.0, seconds=0.4)


def rendered(rows: list[ModelRow], num_dimensions: int | None = None, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(to_table(rows, num_dimensions))
    return console.file.getvalue()


@pytest.mark.parametrize("text", [rendered([VAE, GMM], 64), to_markdown([VAE, GMM], 64)], ids=["terminal", "markdown"])
def test_table_shows_numbers_with_their_error_and_unit(text: str):
    assert "nats per datum" in text
    for cell in ("12,345", "-24.06", "≥ -22.31", "5,000", "812", "3.4%", "7.2", "-23.00 exact", "–"):
        assert cell in text, cell
    assert f"{bits_per_dimension(-23.0, 64):.3f}" in text


def test_a_narrow_terminal_folds_and_cuts_nothing():
    wide, *narrow = (rendered([VAE, GMM], width=width).replace("─", "").split() for width in (160, 80, 50, 36))
    assert all(sorted("".join(words)) == sorted("".join(wide)) for words in narrow)


def test_a_bits_column_appears_only_with_a_number_of_dimensions():
    assert "bits/dim" in to_markdown([VAE], 64)
    assert "bits/dim" not in to_markdown([VAE])


@pytest.mark.parametrize("num_dimensions", [None, 64])
def test_markdown_rows_have_one_cell_per_heading(num_dimensions: int | None):
    lines = [
        line.replace("\\|", "") for line in to_markdown([VAE, GMM], num_dimensions).splitlines() if line[:1] == "|"
    ]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("stderr", "cell"),
    [
        (None, "-22.31 exact"),
        (0.0, "-22.31 ± 0.00"),
        (0.43, "-22.31 ± 0.43"),
        (0.00123, "-22.3111 ± 0.0012"),
        (12.0, "-22.31 ± 12.00"),
        (math.inf, "-22.31 ± inf"),
        (math.nan, "-22.31"),
    ],
)
def test_error_decides_the_decimals(stderr: float | None, cell: str):
    row = ModelRow(model="m", num_parameters=1, log_likelihood=-22.3111, log_likelihood_stderr=stderr)
    assert f"| {cell} |" in to_markdown([row])


@pytest.mark.parametrize(
    ("share", "stderr", "cell"),
    [(0.0, 0.02, "-22.311 ± 0.020"), (0.001, 0.02, "≥ -22.31"), (1.0, None, "-22.31 exact")],
)
def test_an_estimate_that_some_data_do_not_bear_is_a_lower_bound_without_error(
    share: float, stderr: float | None, cell: str
):
    row = ModelRow(
        model="m", num_parameters=1, log_likelihood=-22.3111, log_likelihood_stderr=stderr, share_untrusted=share
    )
    assert f"| {cell} |" in to_markdown([row])
    assert json.loads(to_json([row]))["rows"][0]["is_lower_bound"] == cell.startswith("≥")


@pytest.mark.parametrize("render", [rendered, to_markdown], ids=["terminal", "markdown"])
def test_a_table_with_estimates_explains_its_marks(render):
    assert "k-hat above min(1 - 1/log10 K, 0.7)" in " ".join(render([VAE, GMM]).split())
    assert "k-hat" not in render([GMM])


def test_json_keeps_every_digit_and_none():
    record = json.loads(to_json([VAE, GMM], num_dimensions=64))
    assert record["unit"] == "nats per datum"
    assert record["rows"][0]["log_likelihood"] == VAE.log_likelihood
    assert record["rows"][0]["bits_per_dimension"] == pytest.approx(22.3111 / 64 / math.log(2), rel=1e-12)
    assert record["rows"][1]["log_likelihood_stderr"] is None


def test_ranks_are_a_column_where_all_rows_have_one():
    ranked = [replace(VAE, rank="1"), replace(GMM, rank="2 to 3")]
    for text in (rendered(ranked), to_markdown(ranked)):
        assert "rank" in text
        assert "2 to 3" in text
    for rows in ([ranked[0], GMM], ranked[:1]):
        assert "rank" not in to_markdown(rows)


def test_json_takes_what_is_said_of_the_order():
    record = json.loads(to_json([VAE], order={"differences": [{"stderr": math.nan}], "level": 0.95}))
    assert (record["level"], record["differences"]) == (0.95, [{"stderr": "nan"}])


@pytest.mark.parametrize(("value", "text"), [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")])
def test_json_is_strict(value: float, text: str):
    row = ModelRow(model="m", num_parameters=1, elbo=value)
    record = json.loads(to_json([row]), parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert record["rows"][0]["elbo"] == text


def test_bits_need_a_dimension():
    with pytest.raises(ValueError, match="num_dimensions: expected at least 1, found 0"):
        bits_per_dimension(-1.0, 0)
