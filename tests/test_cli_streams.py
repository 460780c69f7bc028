"""Standard output and error that are closed, or full: work goes on, or its error names the stream and what is saved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppl_vae.cli import pictures
from ppl_vae.errors import StorageError
from ppl_vae.rundir import read_run
from tests.commands import SMALL_VAE, call

ROOT = Path(__file__).resolve().parents[1]
FIT = ["fit", *SMALL_VAE, "--epochs", "1", "--eval-samples", "0", "--compile", "no"]


EACH_FORM = """
import sys
from ppl_vae.cli import run
root = sys.argv[1]
for form in ("table", "markdown"):
    sys.argv = ["ppl-vae", "compare", root, "--format", form]
    try:
        run()
    except SystemExit as end:
        assert not end.code
    print("END", flush=True)
"""


def started(shell: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with redirections of its shell."""
    return python(shell, "-m", "ppl_vae", *arguments, **environment)


def python(shell: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The interpreter, with redirections of its shell."""
    return subprocess.run(
        ["sh", "-c", f'"$0" "$@" {shell}', sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
    )


def test_a_closed_standard_error_stops_no_fit(tmp_path: Path):
    assert started("2>&-", *FIT, "--run-dir", tmp_path / "run").returncode == 0
    assert read_run(tmp_path / "run").status == "finished"


def test_a_directory_whose_name_is_no_text_is_named_and_drawn(tmp_path: Path):
    root = Path(os.fsdecode(os.fsencode(tmp_path / "run") + b"\xff"))
    done = started("", *FIT, "--run-dir", root, PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert os.fsdecode(root.name) in done.stdout
    assert (root / "figures" / "learning-curves.png").is_file()


@pytest.mark.parametrize("command", [["check", "vae"], ["--version"]], ids=" ".join)
def test_a_closed_standard_output_is_no_terminal(command: list[str]):
    done = started(">&-", *command)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_comparison_that_nobody_could_read_is_an_error(tmp_path: Path):
    done = started(">&-", "compare", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("ppl-vae: standard output: expected a place to print the comparison in")


STREAMS = [
    ({"PYTHONIOENCODING": "ascii"}, "utf-8", "≥"),
    ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "utf-8", "≥"),
    ({"PYTHONIOENCODING": "latin-1"}, "latin-1", ">="),
]


@pytest.mark.parametrize(("environment", "encoding", "sign"), STREAMS, ids=["ascii", "C", "latin-1"])
def test_signs_that_a_stream_lacks_stop_no_command(run: Path, environment: dict[str, str], encoding: str, sign: str):
    done = python("", "-c", EACH_FORM, run, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    *forms, rest = os.fsencode(done.stdout).decode(encoding).split("END\n")
    assert (len(forms), rest) == (2, "")
    assert all(f"{sign} " in form for form in forms)


@pytest.mark.parametrize("command", [["experiment", "list"], ["--version"], ["--help"]], ids=" ".join)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_standard_output_is_named(command: list[str]):
    done = started(">/dev/full", *command)
    assert (done.returncode, done.stderr) == (1, "ppl-vae: standard output: No space left on device\n")


def test_a_disk_that_is_full_when_figures_are_drawn_says_that_the_training_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise StorageError("curves.png: cannot be written: No space left on device")

    monkeypatch.setattr(pictures, "replace", refuse)
    result = call(*FIT, "--run-dir", tmp_path / "run")
    assert result.exit_code == 1
    assert f"{tmp_path / 'run'}: training is finished and saved; `ppl-vae evaluate " in result.stderr
    assert read_run(tmp_path / "run").status == "finished"
