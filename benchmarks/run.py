"""The benchmark: `python -m benchmarks.run [--cases fit-128 gmm] [--rounds 5] [--quick] [--output folder]`.

It wants a machine with nothing else to do: where threads share a core with another process, they wait for each other,
and times grow tenfold. No test asserts a time; here a person reads them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.evaluation import Memory, evaluation_case, peak_memory
from benchmarks.figure import to_figure
from benchmarks.mixture import mixture_case
from benchmarks.report import environment, memory_record, memory_text, to_record, to_text
from benchmarks.timing import Case, Measured, alternate
from benchmarks.training import Sizes, training_case

__all__ = ["main"]

CASES = ("fit-128", "fit-20", "evaluation", "gmm", "gmm-wide", "memory")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases, print tables, and leave `results.json` and `results.png`."""
    options = _parser().parse_args(arguments)
    console = Console()
    results: list[Measured] = []
    memory: Memory | None = None
    for name in options.cases:
        if name == "memory":
            memory = peak_memory(4, 50) if options.quick else peak_memory(200, 5000)
            console.print(memory_text(memory))
        else:
            results.append(alternate(_tiny_case(name) if options.quick else _case(name), options.rounds))
            console.print(to_text(results[-1]))
    output = options.output or (None if options.quick else Path(__file__).parent)
    if output is not None:
        _write(output, results, memory, options.quick)
        console.print(f"results.json and results.png are in {output}", soft_wrap=True)


def _case(name: str) -> Case:
    match name:
        case "fit-128":
            return training_case(name, 128, Sizes(num_data=12_800, few=25, many=200))
        case "fit-20":
            return training_case(name, 20, Sizes(num_data=12_800, few=50, many=500))
        case "evaluation":
            return evaluation_case(few=16, many=208, num_samples=5000)
        case "gmm":
            return mixture_case(name, num_data=200_000, dim=16, num_components=32, few=1, many=6)
        case _:
            return mixture_case(name, num_data=20_000, dim=64, num_components=16, few=2, many=12)


def _tiny_case(name: str) -> Case:
    match name:
        case "fit-128" | "fit-20":
            return training_case(name, int(name.removeprefix("fit-")), Sizes(num_data=300, few=2, many=4))
        case "evaluation":
            return evaluation_case(few=2, many=6, num_samples=50)
        case _:
            return mixture_case(name, num_data=400, dim=3, num_components=2, few=1, many=3)


def _write(folder: Path, results: Sequence[Measured], memory: Memory | None, quick: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "quick": quick,
        "environment": environment(),
        "cases": [to_record(measured) for measured in results],
        "memory": None if memory is None else memory_record(memory),
    }
    (folder / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    to_figure(results, memory).savefig(folder / "results.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="which cases (default: all)")
    parser.add_argument("--rounds", type=_positive, default=5, help="how often the sides alternate (default: 5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, the times mean nothing")
    parser.add_argument("--output", type=Path, help="folder of the results (default: benchmarks; none if quick)")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


if __name__ == "__main__":
    main()
