"""Mutants do not rot: every one still applies, and the tests that must catch it exist. `make mutants` runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mutants import ROOT, Mutant, load, main, mutated

MUTANTS = load()


def test_every_mutant_applies_and_has_its_tests():
    assert {mutant.name: found for mutant in MUTANTS if (found := rotten(mutant))} == {}


def rotten(mutant: Mutant) -> str:
    """What keeps a mutant from being run; empty if nothing does."""
    try:
        if mutated(mutant) == (ROOT / "ppl_vae" / mutant.file).read_text(encoding="utf-8"):
            return "it changes nothing"
    except ValueError as error:
        return str(error)
    for test in mutant.tests:
        file, _, node = test.partition("::")
        source = (Path(__file__).parent / file).read_text(encoding="utf-8")
        if node and f"\ndef {node.split('[')[0]}(" not in source:
            return f"there is no {test}"
    return ""


def test_a_mutant_that_has_rotted_is_named():
    good = MUTANTS[0]
    assert rotten(good) == ""
    assert "found it 0 times" in rotten(good._replace(old="no such text"))
    assert rotten(good._replace(new=good.old)) == "it changes nothing"
    assert (
        rotten(good._replace(tests=("test_mutants.py::test_nothing",))) == "there is no test_mutants.py::test_nothing"
    )


@pytest.mark.parametrize("old", ["no such text", "import"])
def test_a_mutant_that_does_not_apply_is_an_error(old: str):
    with pytest.raises(ValueError, match=r"rotten: expected its old text once in terms.py, found it \d+ times"):
        mutated(Mutant("rotten", "terms.py", old, "", ()))


def test_mutants_of_what_writes_and_reads_runs_are_many():
    assert sum(m.file.startswith(("storage/", "rundir/")) for m in MUTANTS) >= 30


def test_mutants_are_many_and_listed(capsys: pytest.CaptureFixture[str]):
    assert len(MUTANTS) >= 35
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^{re.escape(m.file)} +{re.escape(m.name)}$", listed, re.MULTILINE) for m in MUTANTS)
