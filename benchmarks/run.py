"""The benchmark: `python -m benchmarks.run [--cases fit-128 gmm] [--rounds 5] [--device cuda] [--quick]`.

It wants a machine with nothing else to do: where threads share a core with another process, they wait for each other,
and times grow tenfold. No test asserts a time; here a person reads them.

A run of some cases replaces those in `results.json` and leaves the others as they are, each with its own date and
environment; the figure is drawn from the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from benchmarks.cases import CASES
from benchmarks.figure import to_figure
from benchmarks.report import to_text
from benchmarks.results import Record, merged, read_records, to_record, write_records
from benchmarks.setting import Setting
from benchmarks.timing import Unavailable, alternate
from ppl_vae.device import choose_device

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases, print tables, and leave `results.json` and `results.png`."""
    options = _parser().parse_args(arguments)
    console = Console()
    output = options.output or (None if options.quick else Path(__file__).parent)
    for name in options.cases:
        try:
            record = _measure(name, options)
        except Unavailable as why:
            console.print(f"{name} is skipped: {why}\n", soft_wrap=True)
            continue
        console.print(to_text(record))
        if output is not None:  # at once: a later case may be interrupted
            _keep(output, record)
    if output is not None:
        console.print(f"results.json and results.png are in {output}", soft_wrap=True)


def _measure(name: str, options: argparse.Namespace) -> Record:
    with ExitStack() as stack:
        setting = Setting(options.quick, choose_device(options.device), stack)
        return to_record(alternate(CASES[name](name, setting), options.rounds, warm_up=not options.quick), setting)


def _keep(folder: Path, record: Record) -> None:
    path = folder / "results.json"
    records = merged(read_records(path), [record])
    write_records(path, records)
    to_figure(records).savefig(folder / "results.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="which cases (default: all)")
    parser.add_argument("--rounds", type=_positive, default=5, help="how often the sides alternate (default: 5)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where torch runs (default: cpu)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, the times mean nothing")
    parser.add_argument("--output", type=Path, help="folder of the results (default: benchmarks; none if quick)")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


if __name__ == "__main__":
    main()
