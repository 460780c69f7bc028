"""`ppl-vae experiment`: the experiments of the working directory are listed and run; what is not there is said so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ppl_vae.cli.experiments import Experiment
from tests.commands import call, read, succeed

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(ROOT.glob("experiments/[!_]*.py"))
SCRIPT = '''"""What is it? (claims C11, C4).

Expected: nothing.

Run: python -m experiments.fake [--small]; about 3 minutes on two cores.
"""
from experiments.common.study import Findings, Study
from matplotlib.figure import Figure

def measure(config):
    BODY
    return Findings({"config": config.size})

STUDY = Study("fake", measure, lambda found: Figure(), full=FULL, small=SMALL)
'''


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("checkout")
def test_the_list_names_every_experiment_with_its_claims():
    text = succeed("experiment", "list")
    assert all(f" {script.stem} " in text for script in SCRIPTS)
    assert "How fast does the importance-sampled" in text
    assert re.search(r"\bC4, C5\b", text)


def test_a_script_is_read_without_running_it(tmp_path: Path):
    (tmp_path / "fake.py").write_text(SCRIPT)
    assert Experiment.read(tmp_path / "fake.py") == Experiment("fake", "What is it?", ("C4", "C11"), "about 3")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "fake.json").write_text('{"minutes": 2.53}')
    assert Experiment.read(tmp_path / "fake.py").minutes == "2.5"
    (tmp_path / "results" / "fake.json").write_text('{"minutes": 2.')
    assert Experiment.read(tmp_path / "fake.py").minutes == "about 3"


def test_every_script_says_its_claims_and_its_minutes():
    read_ones = [Experiment.read(script) for script in SCRIPTS]
    assert [e.name for e in read_ones if not (e.claims and e.minutes and e.question)] == []


def test_every_claim_has_an_experiment():
    claims = {claim for script in SCRIPTS for claim in Experiment.read(script).claims}
    assert [f"C{number}" for number in range(1, 21) if f"C{number}" not in claims] == []


@pytest.mark.usefixtures("checkout")
def test_the_small_form_runs_and_draws_again(tmp_path: Path):
    text = succeed("experiment", "run", "gmm_exact", "--small", "--results", tmp_path)
    assert text.split() == [str(tmp_path / f"gmm_exact.{ending}") for ending in ("json", "png")]
    (tmp_path / "gmm_exact.png").unlink()
    before = read(tmp_path / "gmm_exact.json")
    succeed("experiment", "run", "gmm_exact", "--redraw", "--results", tmp_path)
    assert read(tmp_path / "gmm_exact.json") == before
    assert (tmp_path / "gmm_exact.png").exists()


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize(
    ("ending", "content", "found"),
    [
        ("json", '{"numbers": {"rows": [', "JSONDecodeError: Expecting value"),
        ("json", '{"minutes": 1}', "KeyError: 'numbers'"),
        ("json", '{"numbers": {}}', "KeyError: "),
        ("json", '{"numbers": []}', "TypeError: "),
        ("npz", "", "EOFError: No data left in file"),
        ("npz", "PK\3\4 cut", "BadZipFile: File is not a zip file"),
        (None, "", "KeyError: "),
    ],
)
def test_a_damaged_record_is_named_and_its_mend(ending: str | None, content: str, found: str, tmp_path: Path):
    for kind in ("json", "npz"):
        (tmp_path / f"likelihoods.{kind}").write_bytes(
            (ROOT / "experiments/results" / f"likelihoods.{kind}").read_bytes()
        )
    if ending is None:
        (tmp_path / "likelihoods.npz").unlink()
    else:
        (tmp_path / f"likelihoods.{ending}").write_text(content)
    result = call("experiment", "run", "likelihoods", "--redraw", "--results", tmp_path)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert f"likelihoods.{ending or 'json'}" in result.stderr
    assert f"found {found}" in result.stderr
    assert result.stderr.endswith(": run it without --redraw\n")


@pytest.mark.usefixtures("checkout")
def test_the_small_form_never_replaces_what_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("experiments.common.study.RESULTS", tmp_path)
    succeed("experiment", "run", "gmm_exact", "--small")
    assert {path.name for path in tmp_path.iterdir()} == {"small"}


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "importance_samplin"], 2, "found 'importance_samplin': did you mean importance_sampling?"),
        (["run", "zzz"], 2, "found 'zzz' (see"),
        (
            ["run", "importance_sampling", "--redraw", "--results", "nowhere"],
            1,
            "importance_sampling.json: No such file",
        ),
        (["rum", "importance_sampling"], 2, "No such command"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], code: int, message: str):
    result = call("experiment", *arguments)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (code, "", 1)
    assert result.stderr.startswith("ppl-vae: ")
    assert message in result.stderr


@pytest.mark.parametrize("arguments", [["list"], ["run", "importance_sampling"]])
def test_outside_a_checkout_one_line_says_so(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = call("experiment", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"ppl-vae: expected the folder experiments of a checkout of ppl_vae in {tmp_path}")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [("raise KeyboardInterrupt", 130, "ppl-vae: interrupted\n"), ("1 / 0", 1, "ppl-vae: ZeroDivisionError: ")],
)
def test_ctrl_c_and_errors_of_an_experiment_are_one_line(body: str, code: int, message: str, tmp_path: Path):
    """In a process of its own: the folder is another one than that of this checkout."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").touch()
    (tmp_path / "experiments" / "common").symlink_to(ROOT / "experiments" / "common")
    (tmp_path / "experiments" / "fake.py").write_text(
        SCRIPT.replace("BODY", body).replace("SMALL", "1").replace("FULL", "1")
    )
    done = subprocess.run(
        [sys.executable, "-m", "ppl_vae", "experiment", "run", "fake", "--results", tmp_path],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
