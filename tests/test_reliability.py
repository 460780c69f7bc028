"""The page of promises names a test for every fault, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
FAULTS = re.findall(r"^\| (F\d+) .*\| (.*) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("fault", "named"), FAULTS)
def test_tests_of_a_fault_exist(fault: str, named: str):
    places = re.findall(r"`(\w+\.py)::(\w+)`", named)
    assert places
    for file, test in places:
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            f"{fault}: {file}::{test}"
        )


def test_every_fault_has_a_row():
    expected = [*range(1, 8), 9, 10, 11, 12, 14, 15, 16, 18, 19, 20, 22]
    assert [fault for fault, _ in FAULTS] == [f"F{number}" for number in expected]
