"""The experiments of a checkout, found by their folder: the library imports none of them."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from ppl_vae.progress import is_watched

__all__ = ["Experiment", "app", "found"]

_FILE_WIDTH = 118
_CLAIM = re.compile(r"\bC\d+\b")
_MINUTES = re.compile(r"\b(?:\d+|half a)(?= minutes?\b)")

app = typer.Typer(no_args_is_help=True, help="List and run the experiments of a checkout: one for each claim.")


@dataclass(frozen=True)
class Experiment:
    """What the docstring of a script says of it."""

    name: str
    """Name of the script, without .py."""
    question: str
    """Its first sentences."""
    claims: tuple[str, ...]
    """The claims that it shows, such as C4."""
    minutes: str
    """What its full form takes: as measured in its record, else as the script expects; empty where neither tells."""

    @classmethod
    def read(cls, script: Path) -> Experiment:
        """Read a script without running it."""
        text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
        first = " ".join(text.split("\n\n")[0].split())
        claims = sorted(set(_CLAIM.findall(text)), key=lambda claim: int(claim[1:]))
        question = re.sub(r"\s*\(claims?[^)]*\)\.?", "", first)
        return cls(script.stem, question, tuple(claims), _measured(script) or _expected(text))


def found() -> dict[str, Experiment]:
    """Return the experiments of the checkout that is the working directory, by name.

    Raises:
        DataError: The working directory has none.
    """
    folder = Path.cwd() / "experiments"
    if not (folder / "common" / "study.py").is_file():
        from ppl_vae.errors import DataError

        raise DataError(
            f"expected the folder experiments of a checkout of ppl_vae in {Path.cwd()}, found none: change to the "
            "checkout; an installed library has no experiments"
        )
    return {script.stem: Experiment.read(script) for script in sorted(folder.glob("[!_]*.py"))}


@app.command("list")
def show() -> None:
    """Show the experiments: name, question, claims of the lecture, minutes of the full form."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("name", "question", "claims"):
        table.add_column(title, overflow="fold")
    table.add_column("minutes", justify="right")
    for name, experiment in found().items():
        table.add_row(name, experiment.question, ", ".join(experiment.claims), experiment.minutes)
    console = Console() if is_watched(sys.stdout) else Console(width=_FILE_WIDTH)
    console.print(table)


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of those that `ppl-vae experiment list` shows.")],
    small: Annotated[bool, typer.Option("--small", help="The form that the tests run, in seconds.")] = False,
    redraw: Annotated[bool, typer.Option("--redraw", help="Only draw the figure again, from the record.")] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Folder of record and figure; experiments/results if not given, or its folder small.", metavar="DIR"
        ),
    ] = None,
) -> None:
    """Run an experiment: NAME.json, NAME.png and, where it has pictures, NAME.npz."""
    known = found()
    if name not in known:
        raise typer.BadParameter(
            f"expected an experiment among {', '.join(known)}; found {name!r}{_nearest(name, known)}"
        )
    for path in _study(name).perform(small=small, redraw=redraw, folder=results):
        typer.echo(str(path))


def _study(name: str) -> Any:
    """The study of a script, which the user named: its code runs here."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(f"experiments.{name}").STUDY
    finally:
        sys.path.remove(str(Path.cwd()))


def _nearest(name: str, known: dict[str, Experiment]) -> str:
    near = get_close_matches(name, known, n=3)
    return f": did you mean {' or '.join(near)}?" if near else ""


def _measured(script: Path) -> str:
    record = script.parent / "results" / f"{script.stem}.json"
    try:
        return f"{json.loads(record.read_text(encoding='utf-8'))['minutes']:.1f}"
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged: who runs the experiment replaces it
        return ""


def _expected(text: str) -> str:
    told = _MINUTES.findall(text)
    return "" if not told else f"about {'1/2' if told[-1] == 'half a' else told[-1]}"
