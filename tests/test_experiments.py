"""Every experiment runs in its small form and leaves its record and figure; none is forgotten."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

EXPERIMENTS = sorted(p.stem for p in (Path(__file__).parents[1] / "experiments").glob("[!_]*.py"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_small_form_runs(name: str, tmp_path: Path):
    module = importlib.import_module(f"experiments.{name}")
    module.run(module.SMALL, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {f"{name}.json", f"{name}.png"}
    readme = (Path(__file__).parents[1] / "experiments" / "README.md").read_text(encoding="utf-8")
    assert f"`{name}`" in readme
    assert "Expected:" in module.__doc__


def test_importance_sampling_meets_its_law(tmp_path: Path):
    from experiments.importance_sampling import SMALL, run

    for row in run(SMALL, tmp_path):
        if row["s"] == 1.0:
            assert abs(row["gap"]) < 1e-10
        elif row["K"] > 1:
            assert abs(row["gap"] - row["law"]) < 6 * row["gap_stderr"] + row["law"] / row["K"]
