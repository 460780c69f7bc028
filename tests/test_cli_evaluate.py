"""The methods of `ppl-vae evaluate`, and runs that `ppl-vae compare` evaluates itself."""

from __future__ import annotations

import ast
import json
import re
import shutil
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer

import ppl_vae as pv
from ppl_vae.cli import comparison
from ppl_vae.cli.inputs import random_rows
from ppl_vae.cli.reopening import reopen
from ppl_vae.cli.shell import _OPTIONS, _in_options
from ppl_vae.cli.specs import check_served
from ppl_vae.rundir import read_arrays, read_evaluation, write_evaluation
from tests.commands import SMALL_VAE, TINY, call, read, succeed

pytestmark = pytest.mark.usefixtures("blank_pictures")

SHORT = ["--chains", "3", "--temperatures", "4", "--leapfrog", "2", "--limit", "6"]


def arrays(root: Path, name: str = "evaluation") -> dict[str, np.ndarray]:
    return dict(np.load(root / f"{name}.npz", allow_pickle=False))


# Methods


def test_exact_is_the_evidence_and_keeps_the_estimate_before(copy: Path):
    text = succeed("evaluate", copy, "--method", "exact", "--limit", "6")
    pair, splits = reopen(copy, None, None)
    expected = pv.log_evidence(pair, random_rows(splits.test, 6), progress=False)
    np.testing.assert_allclose(arrays(copy)["value"], expected, rtol=1e-9)
    found = read_evaluation(copy)
    assert (found.method, found.num_samples, found.mean_stderr, found.elbo, found.ess) == (
        "exact",
        None,
        0.0,
        None,
        None,
    )
    assert f"log p(x) = {expected.mean():.4f} nats per datum, exact (6 data)" in text
    assert (copy / "evaluation-K20-N30-seed0.json").is_file()
    assert " exact " in succeed("compare", copy)
    assert succeed("evaluate", copy, "--num-samples", "5", "--limit", "6").endswith(
        "evaluation-exact-N6-seed0.json: the evaluation before this one"
    )


@pytest.mark.parametrize("name", ["parameters.safetensors", "run.json"])
def test_parameters_or_a_description_of_another_run_are_refused(name: str, copy: Path, tmp_path: Path):
    """Of the same form, so that nothing else tells them apart."""
    other = tmp_path / "other"
    succeed("fit", *SMALL_VAE, "--epochs", "1", "--eval-samples", "0", "--seed", "1", "--run-dir", other)
    shutil.copy(other / name, copy / name)
    for command in (["evaluate", copy, "--limit", "6"], ["sample", copy, "--out", tmp_path / "x.npy"]):
        result = call(*command)
        assert result.exit_code == 1
        assert f"{copy}: expected the parameters that its fit has left, found others" in result.stderr
        assert result.stderr.endswith("bring the file back, or fit again\n")
    succeed("evaluate", other, "--limit", "6", "--num-samples", "5")


def test_annealing_takes_its_options(copy: Path):
    text = succeed(
        "evaluate", copy, "--method", "ais", *SHORT, "--start", "prior", "--spacing", "linear", "--seed", "3"
    )
    pair, splits = reopen(copy, None, None)
    how = pv.Annealing(3, 4, 2, "linear", "prior")
    expected = pv.annealed_importance_sampling(pair, random_rows(splits.test, 6), how, 3, progress=False)
    np.testing.assert_allclose(arrays(copy)["value"], expected.value, rtol=1e-6)
    np.testing.assert_array_equal(arrays(copy)["trusted"], expected.trusted)
    found = read_evaluation(copy)
    assert (found.method, found.num_samples, found.num_data, found.seed) == ("ais", 3, 6, 3)
    assert found.settings == "3 chains of 4 temperatures (linear) from the prior, 2 leapfrog steps"
    assert found.settings in text
    assert (copy / "figures" / "log-likelihood.png").is_file()


def test_bounds_are_of_simulated_data_and_stand_beside_the_evaluation(copy: Path):
    before = read(copy / "evaluation.json")
    text = succeed("evaluate", copy, "--method", "bdmc", *SHORT, "--start", "prior")  # far enough to leave a gap
    assert re.search(r"-\S+ <= log p\(x\) <= -\S+ nats per datum in mean over 6 simulated data; gap", text)
    assert read(copy / "evaluation.json") == before
    found, kept = read(copy / "bounds.json"), arrays(copy, "bounds")
    assert found["gap"] == pytest.approx((kept["upper"] - kept["lower"]).mean())
    assert found["num_data"] == len(kept["lower"]) == 6


@pytest.mark.parametrize("method", ["is", "ais"])
def test_an_estimate_stands_against_the_exact_answer(method: str, copy: Path):
    options = SHORT if method == "ais" else ["--num-samples", "300", "--limit", "6"]
    text = succeed("evaluate", copy, "--method", method, *options, "--against-exact")
    assert re.search(r"against the exact log p\(x\): off by [+-]0\.\d+ ± 0\.\d+ nats per datum", text)


def test_long_chains_are_for_a_hundred_data_unless_told_otherwise(copy: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = []

    def stop(pair, batch, *_, **__):
        sizes.append(len(batch[0]))
        raise pv.EstimateError("enough")

    for name in ("annealed_importance_sampling", "bidirectional_monte_carlo", "log_likelihood"):
        monkeypatch.setattr(f"ppl_vae.cli.evaluating.{name}", stop)
    for method in ("ais", "bdmc", "is"):
        assert "enough" in call("evaluate", copy, "--method", method).stderr
    assert sizes == [100, 100, 360]


def test_precision_and_escalation_are_those_of_the_library(copy: Path):
    how = ["--num-samples", "60", "--limit", "6", "--target-stderr", "0.5", "--escalate", "--seed", "2"]
    text = succeed("evaluate", copy, *how)
    pair, splits = reopen(copy, None, None)
    x = random_rows(splits.test, 6)
    ll = pv.log_likelihood(pair, x, 60, 2, target_stderr=0.5, progress=False)
    expected = pv.escalate(ll, pair, x, seed=2, progress=False)
    np.testing.assert_allclose(arrays(copy)["value"], expected.value, rtol=1e-6)
    assert "refined proposal" in text
    assert read_evaluation(copy).settings.endswith("to a standard error of 0.5, untrusted data escalated")


WRONG = [
    (["evaluate", "RUN", "--method", "ais", "--escalate"], "--escalate is of --method is, found ais, which takes"),
    (
        ["evaluate", "RUN", "--method", "exact", "--target-stderr", "1"],
        "--target-stderr is of --method is, found exact",
    ),
    (["evaluate", "RUN", "--target-stderr", "-1"], "--target-stderr: expected a positive number, found -1"),
    (["evaluate", "RUN", "--chains", "3"], "--chains is of --method ais and bdmc, found is, which takes --num-samples"),
    (
        ["evaluate", "RUN", "--method", "exact", "--start", "prior"],
        "--start is of --method ais and bdmc, found exact, which takes none of these options",
    ),
    (
        ["evaluate", "RUN", "--method", "ais", "--num-samples", "5"],
        "--num-samples is of --method is, .*takes --against-exact, --chains",
    ),
    (
        ["evaluate", "RUN", "--method", "bdmc", "--against-exact"],
        "--against-exact is of --method is and ais, found bdmc",
    ),
    (["evaluate", "RUN", "--method", "elbo"], "'elbo' is not one of 'is', 'ais', 'bdmc', 'exact'"),
    (["compare", "RUN", "--limit", "5"], "--limit and --pair are for evaluating anew: add --num-samples K"),
    (["compare", "RUN", "--level", "2"], "--level: expected a probability"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_choices_are_one_line(arguments: list[str], message: str, run: Path):
    result = call(*[run if a == "RUN" else a for a in arguments])
    assert result.exit_code == 2
    assert re.search(message, result.stderr)
    assert len(result.stderr.splitlines()) == 1


def test_a_method_takes_its_own_options_alone():
    check_served("ais", {"--escalate": None, "--chains": 3, "--against-exact": True})
    with pytest.raises(typer.BadParameter, match="of --method is, found ais, which takes --against-exact, --chains"):
        check_served("ais", {"--escalate": True})


def test_what_the_library_advises_is_said_in_options():
    ppca = pv.PPCA(np.ones((4, 3)) + np.eye(4, 3), np.zeros(4), 1.0)
    with pytest.raises(pv.PairError) as error:
        pv.log_evidence(ppca, ppca.sample(2), progress=False)
    assert _in_options(str(error.value)).endswith("found 3: use --method ais")


THEIRS = [
    "log_evidence.npy: expected an existing regular file, found none",
    "runs/start='prior'/x: cannot be made",
    "use log_likelihood/x.npy: expected a file",
    "x-log_evidence, x.log_evidence: expected one array",
    "expected the name of one of its arrays, log_evidence, found 'log_evidence'",
    "expected a file, found 'pass key'",
]


@pytest.mark.parametrize("message", THEIRS)
def test_the_users_own_words_are_never_translated(message: str):
    assert _in_options(message) == message


def test_what_is_translated_is_what_the_library_says():
    library = Path(pv.__file__).parent
    sources = [path for path in library.rglob("*.py") if path.parent.name != "cli"]
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    said = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [advice for advice in _OPTIONS if not any(advice in text for text in said)] == []


# Comparison


def test_runs_evaluated_anew_have_the_same_data_and_noise(run: Path, copy: Path, tmp_path: Path):
    before = read(run / "evaluation.json")
    figure = tmp_path / "comparison.png"
    options = ["--num-samples", "30", "--limit", "25", "--format", "json", "--figure", figure]
    result = call("compare", run, copy, *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (difference,) = found["differences"]
    assert (difference["mean"], difference["stderr"], difference["p_value"]) == (0.0, 0.0, 1.0)
    assert found["ranks"] == {"first": [1, 2], "copy": [1, 2]}
    assert [row["num_samples"] for row in found["rows"]] == [30, 30]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert read(run / "evaluation.json") == before


def test_a_figure_that_cannot_be_drawn_is_refused_before_the_evaluations(
    run: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(comparison, "compare", lambda *_, **__: pytest.fail("evaluated"))
    anew = ["--num-samples", "30", "--limit", "25"]
    for options in ([], anew):
        said = call("compare", run, copy, *options, "--figure", tmp_path / "x.txt").stderr
        assert "x.txt: expected a name that ends in .png, found '.txt'" in said
    numbers = count()  # no two runs have the same data
    monkeypatch.setattr(comparison, "fingerprint", lambda *_: next(numbers))
    said = call("compare", run, copy, *anew, "--figure", tmp_path / "x.png").stderr
    assert "x.png: expected one table, found 2: compare runs of the same data" in said


def test_ranks_come_with_records_too(run: Path, copy: Path):
    shutil.copy(run / "evaluation.json", copy)
    text = succeed("compare", run, copy)
    assert "1 to 2" in text
    assert "mostly untrusted, not placed, for lower bounds cannot rank each other" in text


def test_records_of_sums_are_exact(copy: Path):
    names = ("value", "stderr", "trusted")
    found = SimpleNamespace(**dict(zip(names, read_arrays(copy, names), strict=True)))
    found.exact = np.ones_like(found.value, dtype=bool)
    write_evaluation(copy, read_evaluation(copy), found)
    assert " exact " in succeed("compare", copy)


def test_damaged_arrays_are_a_line(copy: Path):
    (copy / "evaluation.npz").write_bytes(b"PK")
    result = call("compare", copy)
    assert result.exit_code == 1
    assert (
        "expected the arrays value, stderr, trusted, exact, rounded, rounding of evaluation.json, found damage"
        in result.stderr
    )


def test_code_of_the_users_own_runs_in_a_comparison_only_by_name(users_file: Path, run: Path, tmp_path: Path):
    name, root = f"{users_file}:own", tmp_path / "own"
    succeed("fit", name, "--binarize", "dynamic", *TINY, "--run-dir", root)
    assert "--pair" in call("compare", root, "--num-samples", "5").stderr
    assert "own" in succeed("compare", root, "--num-samples", "5", "--limit", "20", "--pair", name)


def test_runs_of_one_name_are_told_by_their_paths(run: Path, tmp_path: Path):
    other = shutil.copytree(run, tmp_path / run.name)
    found = json.loads(call("compare", run, other, "--format", "json").stdout)
    assert set(found["ranks"]) == {str(run), str(other)}
    assert f"found {run} twice" in call("compare", run, run).stderr
