"""Nothing is made outside the folder of a run, whatever stands in its description or in the names it is given."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ppl_vae import storage
from ppl_vae.cli.work import free_directory
from ppl_vae.data import origins
from tests.commands import call, read, rewritten

NAMES = ["../x", "../../x/y", "/tmp/ppl-vae-outside/x", "a/../../x", "nul\0", "x" * 300, "~/x", "-x", "."]


def tree(root: Path, leave_out: Path) -> dict[str, bytes | None]:
    """Every name below a folder with its content, but those below another one."""
    paths = [path for path in root.rglob("*") if leave_out not in (path, *path.parents)]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with others above and beside it; nothing is downloaded."""
    folder = tmp_path / "one" / "two" / "inside"
    folder.mkdir(parents=True)
    (tmp_path / "one" / "beside").mkdir()
    (tmp_path / "one" / "beside" / "thesis.tex").write_text("years of work")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "one" / "beside"))
    monkeypatch.setenv("PPL_VAE_DATA", str(folder / "data"))

    def download(*_: object) -> None:
        raise AssertionError("nobody has asked for a download")

    monkeypatch.setattr(origins, "_download", download)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_a_description_names_is_never_made(name: str, run: Path, inside: Path, tmp_path: Path):
    shutil.copytree(run, inside / "run")
    spec = read(run / "run.json")["data"] | {"name": "mnist", "data_dir": name}
    rewritten(run / "run.json", inside / "run" / "run.json", data=spec, status="interrupted")
    before, own = tree(tmp_path, inside / "run"), tree(inside, inside / "nothing")
    for command in (["evaluate", "run"], ["resume", "run"], ["compare", "run", "--num-samples", "5"]):
        result = call(*command)
        assert result.exit_code == 1
        assert "run: expected the data of the run, mnist, in " in result.stderr
        assert "--data-dir" in result.stderr
    assert tree(tmp_path, inside / "run") == before
    assert tree(inside, inside / "nothing") == own
    assert not Path("/tmp/ppl-vae-outside").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_given_to_a_run_stays_in_its_folder(name: str, inside: Path, tmp_path: Path):
    before = tree(tmp_path, inside)
    for root in (free_directory(name, name), Path("runs") / storage.as_name(name)):
        storage.write(root / "checkpoints", 1, {}, {"name": name})
        assert storage.newest(root / "checkpoints").plain == {"name": name}
    assert tree(tmp_path, inside) == before
    assert not Path("/tmp/ppl-vae-outside").exists()


def test_figures_are_written_where_no_link_leads(run: Path, inside: Path, tmp_path: Path):
    shutil.copytree(run, inside / "run")
    figure, beside = inside / "run" / "figures" / "log-likelihood.png", tmp_path / "one" / "beside"
    figure.unlink()
    figure.symlink_to(beside / "thesis.tex")
    before = tree(tmp_path, inside)
    options = ["run", "--num-samples", "5", "--limit", "10"]
    assert call("evaluate", *options).exit_code == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert not figure.is_symlink()
    shutil.rmtree(figure.parent)
    figure.parent.symlink_to(beside)
    assert "figures: expected a folder of the run, found a link" in call("evaluate", *options).stderr
    assert tree(tmp_path, inside) == before


def test_data_that_are_there_are_read_from_where_the_description_says(run: Path, inside: Path):
    shutil.copytree(run, inside / "run")
    spec = read(run / "run.json")["data"] | {"data_dir": str(inside)}
    rewritten(run / "run.json", inside / "run" / "run.json", data=spec)
    assert call("evaluate", "run", "--num-samples", "5", "--limit", "10").exit_code == 0
