"""Seeded errors in the library, each of which the tests must catch: `make mutants`."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".toml")
TIMEOUT = 300
# Processes forked from one that has done the slow imports: a mutant costs a second or two instead of six.
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTS = [
    "torch._inductor",
    "pyro.infer",
    "pytest",
    "rich.console",
    "scipy.stats",
    "sklearn.mixture",
    "sklearn.decomposition",
]


class Mutant(NamedTuple):
    """One error: a text of the library and what it becomes."""

    name: str
    file: str
    """Path under ppl_vae/."""
    old: str
    """Text that occurs exactly once in the file."""
    new: str
    tests: tuple[str, ...]
    """Files or node ids under tests/, at least one of which must fail."""


class Verdict(NamedTuple):
    """What became of a mutant."""

    outcome: str
    """`killed` by a test, `survived`, or `broken`: the tests did not run to an answer."""
    seconds: float
    detail: str
    """The test that failed, or the end of the output."""


def load() -> list[Mutant]:
    """Reads the table."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return [Mutant(name, m["file"], m["old"], m["new"], tuple(m["tests"])) for name, m in table.items()]


def mutated(mutant: Mutant, package: Path = ROOT / "ppl_vae") -> str:
    """The source text with the error in it.

    Raises:
        ValueError: If the old text does not occur exactly once.
    """
    source = (package / mutant.file).read_text(encoding="utf-8")
    if (count := source.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: expected its old text once in {mutant.file}, found it {count} times")
    text = source.replace(mutant.old, mutant.new)
    compile(text, mutant.file, "exec")
    return text


def judge(base: Path, mutant: Mutant | None, tests: Sequence[str]) -> Verdict:
    """Runs tests on a copy of the library in `base`, with the error in it unless `mutant` is None.

    Wants a process of its own, in which neither the library nor a test has been imported.
    """
    start = time.monotonic()
    with TemporaryDirectory(prefix="mutant-") as name:
        folder = shutil.copytree(base, Path(name), dirs_exist_ok=True)
        if mutant is not None:
            (folder / "ppl_vae" / mutant.file).write_text(mutated(mutant, base / "ppl_vae"), encoding="utf-8")
        code, output = _run_tests(folder, tests)
    seconds = time.monotonic() - start
    failed = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - |$)", output, re.MULTILINE)
    if code == pytest.ExitCode.TESTS_FAILED and failed:
        return Verdict("killed", seconds, failed.group(1))
    if code == pytest.ExitCode.OK:
        return Verdict("survived", seconds, "")
    return Verdict("broken", seconds, output[-2000:])


def _run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Exit code and output of pytest on a copy, with nothing of the checkout in reach."""
    sys.path[:] = [str(folder), *(p for p in sys.path if Path(p).resolve() not in (ROOT, ROOT / "tests"))]
    sys.dont_write_bytecode = True
    options = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    with chdir(folder), redirect_stdout(StringIO()) as output, redirect_stderr(output):
        code = pytest.main([*options, *(f"tests/{test}" for test in tests)])
    return int(code), output.getvalue()


def try_all(mutants: Sequence[Mutant], jobs: int) -> bool:
    """Judges the mutants, `jobs` at a time, on one copy of the checkout; returns whether each one was killed.

    The tests first pass on the library as it is: otherwise a failure would say nothing.
    """
    start, width = time.monotonic(), max(len(m.name) for m in mutants)
    outcomes = []
    with TemporaryDirectory(prefix="mutants-") as name, PROCESSES.Pool(jobs, maxtasksperchild=1) as pool:
        base = _copy_of_checkout(Path(name))
        for mutant in mutants:
            mutated(mutant, base / "ppl_vae")
        untouched = pool.apply(judge, (base, None, sorted({test for m in mutants for test in m.tests})))
        if untouched.outcome != "survived":
            print(f"the tests fail on the library as it is: {untouched.detail}")
            return False
        pending = [pool.apply_async(judge, (base, m, m.tests)) for m in mutants]
        for mutant, result in zip(mutants, pending, strict=True):
            outcome, seconds, detail = result.get(TIMEOUT)
            outcomes.append(outcome)
            print(f"{outcome:<8} {seconds:5.1f} s  {mutant.name:<{width}}  {detail}", flush=True)
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("killed", "survived", "broken"))
    print(f"{len(mutants)} mutants in {time.monotonic() - start:.0f} s: {counts}")
    return outcomes.count("killed") == len(mutants)


def _copy_of_checkout(folder: Path) -> Path:
    for part in ("ppl_vae", "tests", "experiments"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code is 0 if the tests catch every mutant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="try this mutant; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    parser.add_argument("--list", action="store_true", help="list the mutants and try none")
    options = parser.parse_args(arguments)
    mutants = [m for m in load() if not options.only or m.name in options.only]
    if unknown := set(options.only or ()) - {m.name for m in mutants}:
        parser.error(f"no mutant is named {', '.join(sorted(unknown))}; --list shows the names")
    if options.list:
        print(*(f"{m.file:<26} {m.name}" for m in mutants), sep="\n")
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    PROCESSES.set_forkserver_preload(IMPORTS)
    try:
        return 0 if try_all(mutants, options.jobs) else 1
    except ValueError as error:
        print(error)
    except multiprocessing.TimeoutError:
        print(f"the next mutant gives no answer within {TIMEOUT} s")
    return 1


if __name__ == "__main__":
    sys.exit(main())
