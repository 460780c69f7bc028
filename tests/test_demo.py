"""The demonstration, in a form that takes seconds."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.naive_bayes import BernoulliNB
from typer.testing import CliRunner

from ppl_vae import data
from ppl_vae.cli import app
from ppl_vae.demo import DemoSettings, run_demo
from ppl_vae.demo.album import Album
from ppl_vae.demo.run import _independent_pixels, _make_empty
from ppl_vae.errors import PplVaeError
from ppl_vae.threads import one_thread

RUNS = ("vae-elbo", "vae-iwae", "vae-one-scale", "vae-scales-s-z")
TINY = DemoSettings(epochs=1, num_samples=20, num_test=40, num_components=(2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "demo"
    run_demo(root, TINY)
    return root


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def rows(folder: Path) -> dict[str, list[str]]:
    lines = (folder / "tables.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row[1:] for row in cells if row[0] not in ("model", "---")}


def test_it_leaves_tables_figures_and_two_sheets(folder: Path):
    names = {path.name for path in folder.iterdir()}
    assert names == {"demo.json", "tables.md", "figures", "binary-digits.png", "grey-digits.png", *RUNS}
    assert [len(list((folder / "figures" / part).iterdir())) for part in ("binary-digits", "grey-digits")] == [7, 9]
    for part in ("binary-digits", "grey-digits"):
        width, height = struct.unpack_from(">II", (folder / f"{part}.png").read_bytes(), 16)
        assert 1.2 < width / height < 2.2


def test_a_figure_of_its_own_has_its_caption_as_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved = []
    monkeypatch.setattr("ppl_vae.figures.save", lambda figure, path: saved.append(figure))
    album = Album(tmp_path)
    page = album.page("digits", "Digits", "")
    page.samples("New digits", torch.zeros(10, 64))
    album.write()
    assert [figure.axes[0].get_title() for figure in saved] == ["New digits"]


def test_a_histogram_trusts_what_the_table_trusts(tmp_path: Path):
    """By the verdict: data with a small k-hat are untrusted where much of p(x) was unseen."""
    page = Album(tmp_path).page("digits", "Digits", "")
    page.estimates["VAE"] = SimpleNamespace(
        value=np.linspace(-3.0, -1.0, 40), khat=np.zeros(40), trusted=np.arange(40) >= 12
    )
    page.histograms()
    (draw,) = page.drawings.values()
    assert "untrusted, rather too low: 30.0%" in draw().axes[0].get_legend_handles_labels()[1]


def test_its_runs_can_be_evaluated_sampled_and_compared(folder: Path, tmp_path: Path):
    for name in RUNS:
        before = json.loads((folder / name / "evaluation.json").read_text())
        root = shutil.copytree(folder / name, tmp_path / name)
        call("evaluate", root, "--num-samples", "20", "--limit", "40")
        again = json.loads((root / "evaluation.json").read_text())
        assert again["data_sha256"] == before["data_sha256"]
        assert again["mean"] == pytest.approx(before["mean"], rel=1e-6)
    call("sample", folder / "vae-one-scale", "--out", tmp_path / "samples.png")
    result = json.loads(call("compare", folder / "vae-elbo", folder / "vae-iwae", "--format", "json"))
    assert {row["model"] for row in result["rows"]} == {"vae-elbo", "vae-iwae"}


def test_exact_models_say_so_and_have_every_sample_effective(folder: Path):
    table = rows(folder)
    for name in ("mixture of 2", "mixture of 3", "PPCA"):
        _, elbo, log_likelihood, num_samples, ess, untrusted, _ = table[name]
        assert log_likelihood == f"{elbo} exact"
        assert (num_samples, ess, untrusted) == ("20", "20", "0.0%")
    assert "≥" in table["VAE, ELBO"][2]  # 20 samples cannot tell


def test_each_table_says_which_data_and_unit(folder: Path):
    headings = [line for line in (folder / "tables.md").read_text().splitlines() if line.startswith("**")]
    assert [heading.split(":")[0] for heading in headings] == ["**Binary digits", "**Grey digits"]
    assert all("nats per datum" in heading for heading in headings)


def test_an_earlier_demo_is_replaced_and_anything_else_is_left_alone(tmp_path: Path):
    earlier = tmp_path / "demo"
    _make_empty(earlier, TINY)
    (earlier / "stale.txt").write_text("of the last time")
    _make_empty(earlier, TINY)
    assert [path.name for path in earlier.iterdir()] == ["demo.json"]
    assert json.loads((earlier / "demo.json").read_text())["num_test"] == 40
    other = tmp_path / "home"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(PplVaeError, match="expected a new directory or an earlier demo"):
        run_demo(other, TINY)
    assert (other / "thesis.tex").exists()


def test_threads_are_restored_whatever_happens():
    torch.set_num_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), one_thread():
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 2


def test_independent_pixels_agree_with_naive_bayes_of_one_class():
    binary = data.load("digits", binarize="fixed")
    # The same smoothing: half a pseudo-count for on and for off.
    judge = BernoulliNB(alpha=0.5).fit(binary.train.numpy(), np.zeros(len(binary.train)))
    expected = judge.predict_joint_log_proba(binary.test.numpy()).mean()
    row = _independent_pixels(binary.train, binary.test)
    assert row.log_likelihood == pytest.approx(expected, rel=1e-10)
    assert row.log_likelihood_stderr is None
