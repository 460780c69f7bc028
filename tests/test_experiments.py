"""Every experiment runs in its small form and leaves its record and figure; none is forgotten."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "experiments"
EXPERIMENTS = sorted(p.stem for p in FOLDER.glob("[!_]*.py"))


def meets_half_chi_square_over_k(numbers: dict[str, Any]) -> None:
    for row in numbers["rows"]:
        if row["s"] == 1.0:
            assert abs(row["gap"]) < 1e-10
        elif row["K"] > 1:
            assert abs(row["gap"] - row["law"]) < 6 * row["gap_stderr"] + row["law"] / row["K"]


LAWS = {"importance_sampling": meets_half_chi_square_over_k}
"""What small forms have to show as well."""

LONGER = {"beta_vae", "discrete_latents", "expressive_generator", "expressive_posterior", "latent_structure"}
"""Whose small forms take ten seconds and more."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONGER else name for name in EXPERIMENTS]
)
def test_the_small_form_runs(name: str, tmp_path: Path):
    module = importlib.import_module(f"experiments.{name}")
    assert module.STUDY.name == name
    outcome = module.STUDY.run(module.STUDY.small, tmp_path)
    assert (
        {f"{name}.json", f"{name}.png"}
        <= {p.name for p in tmp_path.iterdir()}
        <= {f"{name}.{ending}" for ending in ("json", "png", "npz")}
    )
    assert "Expected:" in module.__doc__
    if name in LAWS:
        LAWS[name](outcome.numbers)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_figure_is_that_of_the_committed_record(name: str, tmp_path: Path):
    """Numbers and pictures that are reported can be drawn without measuring again."""
    study = importlib.import_module(f"experiments.{name}").STUDY
    (row,) = re.findall(
        rf"^\| \[`{name}`\]\(#{name}\) .*$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    if not (FOLDER / "results" / f"{name}.json").exists():
        assert "not yet run" in row
        pytest.skip("its full form has not been run yet, as its row says")
    study.draw(study.read(FOLDER / "results")).savefig(tmp_path / "again.png")
    assert "not yet run" not in row
    assert f"results/{name}.png" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_committed_record_is_of_the_full_form(name: str):
    """What is reported was measured by the configuration that stands in the script now."""
    study = importlib.import_module(f"experiments.{name}").STUDY
    record = json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert record["config"] == json.loads(json.dumps(asdict(study.full)))


def test_the_table_has_every_experiment_and_no_other():
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[`(\w+)`\]", table, re.MULTILINE)) == EXPERIMENTS
