"""What the demonstration shows: tables, figures, and one page of all figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ppl_vae import figures, report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "SIDE", "Album", "file_name"]

SIDE, COLUMNS = 8, 10


class Album:
    """Collects tables and figures in the order in which they are shown."""

    def __init__(self, root: Path) -> None:
        from rich.console import Console

        self.root, self.console = root, Console()
        self.tables: dict[str, list[report.ModelRow]] = {}
        self.figures: dict[str, Figure] = {}

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def table(self, title: str, rows: list[report.ModelRow]) -> None:
        """Print a table, the best model first."""
        self.tables[title] = sorted(rows, key=lambda row: -(row.log_likelihood or 0.0))
        self.console.print(report.to_table(self.tables[title], title=title))

    def samples(self, caption: str, x: Tensor) -> None:
        """Draw digits (N, 64) as a grid."""
        self.figures[caption] = figures.image_grid(_images(x), COLUMNS)

    def reconstructions(self, caption: str, x: Tensor, again: Mapping[str, Tensor]) -> None:
        """Draw digits, and under each what the models make of it."""
        rows = {name: _images(value) for name, value in again.items()}
        self.figures[caption] = figures.reconstructions(_images(x), rows, title="")

    def write(self) -> Path:
        """Write the tables, the figures and the contact sheet; return the path of the sheet."""
        text = "\n".join(report.to_markdown(rows, title=title) for title, rows in self.tables.items())
        (self.root / "tables.md").write_text(text, encoding="utf-8")
        folder = self.root / "figures"
        folder.mkdir()
        for caption, figure in self.figures.items():
            figure.savefig(folder / f"{file_name(caption)}.png")
        sheet = self.root / "contact-sheet.png"
        figures.contact_sheet(self.figures, "Handwritten digits as the models see them").savefig(sheet)
        return sheet


def _images(x: Tensor) -> np.ndarray:
    return x.reshape(-1, SIDE, SIDE).numpy()


def file_name(caption: str) -> str:
    """Letters and digits of a caption, joined by hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in caption.lower()).split())
