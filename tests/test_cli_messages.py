"""Whatever goes wrong is one line that says what was expected, what was found, and what to do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ppl_vae as pv
from tests.commands import SMALL_VAE, call

ROOT = Path(__file__).resolve().parents[1]

SEEDED = [["fit", "vae"], ["evaluate", "RUN"], ["compare", "RUN"], ["sample", "RUN"]]
TOO_LARGE = [str(2**63), str(-(2**63)), "9" * 30, "-" + "9" * 30]

WRONG = [
    (["fit", "vae", "--data", "cifar"], 1, "expected a data set among digits"),
    (["fit", "vae", "--data", "absent.npy"], 1, "expected an existing regular file"),
    (["fit", "vae", "--data", "words.csv"], 1, "expected an existing regular file"),
    (["fit", "vee"], 1, "expected vae, gaussian-vae, scaled-vae, levels-vae, counts-vae, path/to/file.py:factory"),
    (["fit", "absent.py:f"], 1, "absent.py: expected a Python file"),
    (["fit", "no.such.module:f"], 1, "ModuleNotFoundError"),
    (["fit", "USERS:absent"], 1, "expected a function 'absent'"),
    (["fit", "USERS:number"], 1, "expected a function 'number'"),
    (["fit", "USERS:fails"], 1, r"RuntimeError: no such network \(.*users_pair.py, line \d+\)"),
    (["fit", "USERS:leaves"], 1, r"leaves\(\) failed: it ends Python by SystemExit\(3\) \(.*users_pair.py, line \d+\)"),
    (["fit", "vae", "--run-dir", "row.npy/run"], 1, "row.npy/run: cannot be made .*: choose another --run-dir$"),
    (["fit", "USERS:nothing"], 1, "expected nothing to return a pair"),
    (["fit", "USERS:many"], 1, "one for each array, .*found \\(a, b\\): give the others a default"),
    (["fit", "USERS:typo"], 1, "'zz?'"),
    (["fit", "USERS:own", "--latent-dim", "3"], 2, "--latent-dim and --hidden size a recipe"),
    (["fit", "vae", "--binarize", "none"], 1, "row 0"),
    (["fit", "vae", "--run-dir", "."], 1, "expected a new or empty directory"),
    (["fit", "vae", "--hidden", "a,b"], 2, "--hidden"),
    (["fit", "vae", "--epochs", "0"], 2, "--epochs"),
    (["fit", "vae", "--learning-rate", "-1"], 2, "--learning-rate"),
    (["fit", "vae", "--objective", "iwae", "--beta", "2"], 2, "with beta = 1"),
    (["fit", "vae", "--no-validation", "--patience", "2"], 2, "--no-validation"),
    (["fit", "vae", "--data", "row.npy"], 1, "at least 10 rows"),
    (["fit", "vae", "--data", "empty.npy"], 1, "^ppl-vae: empty.npy: expected at least one number"),
    (["fit", "vae", "--data", "column.npy"], 1, r"reshape a column to \(N, 1\)"),
    (["fit", "vae", "--data", "large.npy"], 1, r"row \d+: .*divide by"),
    (["fit", "vae", "--data", "holes.npy"], 1, "holes.npy: data, row 0: expected finite numbers, found NaN"),
    (["fit", "vae", "--data", "absent.npy", "--run-dir", "."], 1, "expected a new or empty directory"),
    (["fit", "vae", "--binarize", "none"], 1, "binarise it: --binarize dynamic$"),
    (["fit", "vae", "--data", "bytes.npy"], 1, r"bytes.npy, training data, row 0: .*found 255: .*255 for bytes"),
    (["fit", "gaussian-vae", "--data", "two.npz"], 1, "found train, test: add an array named validation$"),
    (["fit", "gaussian-vae", "--data", "two.npz", "--arrays", "train,q"], 1, "found 'q': name it in --arrays"),
    (
        ["fit", "vae", "--data", "large.npy", "--arrays", "x"],
        1,
        "large.npy: expected FILE.npz to .*: leave out --arrays$",
    ),
    (["fit", "vae", "--data", "."], 1, "a file of your own is FILE.npy or FILE.npz$"),
    (["fit", "gaussian-vae", "--data", "xy.npz"], 1, r"found x, y, without train.*--arrays x,y"),
    (["fit", "gaussian-vae", "--data", "xy.npz", "--arrays", "x,z"], 1, "one of its arrays, x, y, found 'z'"),
    (["fit", "gaussian-vae", "--data", "xy.npz", "--arrays", "x,y"], 1, "expected one array, found 2"),
    (["fit", "gaussian-vae", "--data", "uneven.npz", "--arrays", "x,y"], 1, r"equal length, found \[20, 19\]"),
    (["fit", "vae", "--arrays", "x,,y"], 2, "--arrays: expected names such as x,y"),
    (["fit", "vae", "--arrays", "x,y"], 1, "FILE.npz to take the arrays x, y from"),
    (["fit", "vae", "--dequantize", "17"], 2, "--dequantize makes densities"),
    (["fit", "gaussian-vae", "--dequantize", "16"], 1, "row 0: .*is it 16"),
    (["fit", "vae", "--quantize", "17"], 2, "--quantize makes levels"),
    (["fit", "levels-vae", "--quantize", "17", "--dequantize", "17"], 2, "--quantize makes levels"),
    (["fit", "levels-vae"], 1, "row 0: .*expects whole numbers .*grey images, --quantize LEVELS, or"),
    (["fit", "counts-vae"], 1, "row 0: .*expects whole numbers"),
    (["fit", "levels-vae", "--quantize", "17", "--data", "bytes.npy"], 1, "training data, row 0: .*found 255"),
    (["fit", "USERS:keyword"], 1, r"found \(size\): give the others a default"),
    (["fit", "USERS:deep"], 1, r"users_pair.py, line 6\d\)"),
    (["check", "USERS:wrong_size"], 1, r"guide failed on a batch of \(64, 64\).*users_pair.py, line 1\d\)"),
    (["fit", "USERS:shouts"], 1, r"first line tensor\(...\) last line \("),
    (["evaluate", "RUN", "--pair", "USERS:wrong_size"], 1, r"failed on the data of .*users_pair.py, line 1\d\)"),
    (["evaluate", "RUN", "--pair", "USERS:own"], 1, "do not fit the pair: expected (no )?programs"),
    (["fit", "vae", "--device", "cuda"], 1, "--device: expected a CUDA device .*--device cpu"),
    (["evaluate", "RUN", "--device", "cuda"], 1, "--device: expected a CUDA device .*--device cpu"),
    (["fit"], 2, r"Missing argument 'PAIR' \(see `ppl-vae fit --help`\)$"),
    (["experiment", "run"], 2, r"Missing argument 'NAME' \(see `ppl-vae experiment run --help`\)$"),
    (["evaluate", "absent"], 1, "run directory of `ppl-vae fit`"),
    (["evaluate", "damaged"], 1, "expected JSON"),
    (["evaluate", "other"], 1, "expected fields that end in their own SHA-256, found none"),
    (["compare", "absent"], 1, "run directory of `ppl-vae fit`"),
    (["sample", "RUN", "--out", "samples.gif"], 1, "png or .npy"),
    (["sample", "RUN", "--out", "no/such/folder/x.npy"], 1, "No such file"),
    (["fot", "vae"], 2, "No such command"),
    *(
        ([*c, "--seed", s], 2, f"'--seed': expected a whole .*, found {s} ")
        for c, s in zip(SEEDED, TOO_LARGE, strict=True)
    ),
    (["fit", "vae", "--epoks", "3"], 2, "No such option"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG, ids=lambda value: str(value)[:60])
def test_wrong_input_is_one_line(
    arguments: list[str],
    code: int,
    message: str,
    run: Path,
    users_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    np.save("row.npy", np.zeros((1, 64)))
    np.save("column.npy", np.zeros(64))
    np.save("empty.npy", np.zeros((0, 64)))
    np.save("large.npy", np.full((20, 4), 255.0))
    np.save("bytes.npy", np.full((20, 4), 255, np.uint8))
    x = np.ones((20, 4))
    np.savez("xy.npz", x=x, y=np.ones(20))
    np.savez("uneven.npz", x=x, y=np.ones(19))
    np.savez("two.npz", train=x, test=x)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    np.save("holes.npy", np.full((20, 4), np.nan))
    for name, text in {"damaged": "{", "other": '{"pair": "os:system"}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    places = {"USERS": str(users_file), "RUN": str(run)}
    filled = [re.sub("|".join(places), lambda match: places[match.group()], argument) for argument in arguments]
    before = {path.name for path in tmp_path.iterdir()}
    result = call(*filled)
    assert result.exit_code == code
    assert result.stdout == "" or "parameters" in result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("ppl-vae: ")
    assert re.search(message, result.stderr), result.stderr
    assert not isinstance(result.exception, pv.PplVaeError)
    assert {path.name for path in tmp_path.iterdir()} - before <= {"__pycache__"}


def test_ctrl_c_is_one_line_and_status_130(monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ppl_vae.cli.training.train", interrupt)
    result = call("fit", "vae")
    assert (result.exit_code, result.stderr) == (130, "ppl-vae: interrupted\n")


def test_debug_shows_where():
    result = call("--debug", "fit", "vae", "--data", "cifar")
    assert isinstance(result.exception, pv.DataError)


def test_an_unforeseen_error_is_one_line_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ppl_vae.cli.training.train", lambda *_: 1 / 0)
    result = call("fit", "vae")
    assert result.exit_code == 1
    assert result.stderr == "ppl-vae: ZeroDivisionError: division by zero (`ppl-vae --debug ...` shows where)\n"


# A module in whose import a signal comes, and whose code catches whatever the signal's handler raises.
STRUCK = """
import os, sys
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
class Struck:
    def find_spec(self, name, path=None, target=None):
        if name == NAME:
            try:
                os.kill(os.getpid(), NUMBER)
                sum(range(1000))
            except BaseException:
                sys.stderr.write("swallowed")
sys.meta_path.insert(0, Struck())
"""
STARTED = """
from ppl_vae.cli import run
sys.argv = ["ppl-vae", "fit", "vae", "--data", "none"]
run()
"""
WORKING = """
from ppl_vae.cli.leaving import end, leaving_words, on_signals
with on_signals(end), leaving_words(lambda: "what stands"):
    import colorsys
"""


def struck(code: str, module: str, number: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """What becomes of a process to which a signal comes while it imports a module."""
    return subprocess.run(
        [sys.executable, "-c", STRUCK.replace("NAME", repr(module)).replace("NUMBER", repr(int(number))) + code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_does_not_wait_for_torch():
    """Its import takes two seconds."""
    code = "import sys; from ppl_vae.cli import app; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


SIGNALS = [(signal.SIGINT, 130, "ppl-vae: interrupted\n"), (signal.SIGTERM, 143, "ppl-vae: terminated\n")]


@pytest.mark.parametrize("module", ["typer", "ppl_vae.cli.options", "numpy", "torch"])
@pytest.mark.parametrize(("number", "code", "said"), SIGNALS)
def test_a_signal_during_an_import_ends_the_command(number: int, code: int, said: str, module: str, tmp_path: Path):
    """F4: whoever would swallow an exception: the modules of Python and the C code of NumPy and torch do."""
    done = struck(STARTED, module, number, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


@pytest.mark.parametrize(("number", "code", "said"), SIGNALS)
def test_a_signal_during_an_import_amid_work_says_what_stands(number: int, code: int, said: str, tmp_path: Path):
    done = struck(WORKING, "colorsys", number, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "what stands\n", said)


def test_an_error_outside_the_users_code_is_not_blamed_on_the_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ppl_vae.cli.training.schedules", None)
    monkeypatch.setattr("ppl_vae.cli.pairs._ROOT", ROOT)  # this file is none of the user's
    result = call("fit", *SMALL_VAE, "--schedule", "cosine", "--run-dir", tmp_path / "run")
    assert result.stderr.startswith("ppl-vae: AttributeError: ")
    assert not (tmp_path / "run").exists()


def test_a_long_message_is_cut(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise pv.DataError("x" * 5000)

    monkeypatch.setattr("ppl_vae.cli.training.train", fail)
    assert len(call("fit", "vae").stderr) < 700


def test_a_loss_that_is_not_finite_names_the_option(tmp_path: Path):
    options = ["--learning-rate", "1e30", "--run-dir", tmp_path / "run", "--epochs", "2"]
    result = call("fit", "gaussian-vae", "--latent-dim", "2", "--hidden", "4", *options)
    assert result.exit_code == 1
    assert "--learning-rate" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_command_has_one_name_however_it_is_started():
    done = subprocess.run(
        [sys.executable, "-m", "ppl_vae", "--help"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: ppl-vae [OPTIONS] COMMAND" in done.stdout
