"""What the demonstration shows: tables, figures, and one page of figures for each of its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ppl_vae import figures, report
from ppl_vae.evaluation import LogLikelihood
from ppl_vae.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

__all__ = ["COLUMNS", "SIDE", "Album", "Page", "file_name"]

SIDE, COLUMNS = 8, 10


class Album:
    """Collects pages in the order in which they are shown."""

    def __init__(self, root: Path) -> None:
        from rich.console import Console

        self.root, self.console = root, Console()
        self.pages: list[Page] = []

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def page(self, name: str, title: str, note: str) -> Page:
        """Begin a page: the name of its file, its title, and what its reader must know."""
        self.say(title.partition(":")[0])
        self.pages.append(Page(name, title, note, self.console))
        return self.pages[-1]

    def write(self) -> list[Path]:
        """Write the tables, the figures and the contact sheets; return the paths of the sheets."""
        text = "\n".join(report.to_markdown(page.rows, title=page.title) for page in self.pages)
        (self.root / "tables.md").write_text(text, encoding="utf-8")
        sheets = []
        for page in self.pages:
            folder = self.root / "figures" / page.name
            folder.mkdir(parents=True)
            for caption, draw in page.drawings.items():
                figures.save(draw(title=caption), folder / f"{file_name(caption)}.png")
            sheets.append(self.root / f"{page.name}.png")
            pictures = {
                caption: draw(title="") for caption, draw in page.drawings.items()
            }  # the sheet has the captions
            figures.contact_sheet(pictures, page.title, page.note).savefig(sheets[-1])
        return sheets


class Page:
    """One part of the demonstration: a table, and by their captions what draws figures, given a title."""

    def __init__(self, name: str, title: str, note: str, console: Console) -> None:
        self.name, self.title, self.note, self._console = name, title, note, console
        self.rows: list[report.ModelRow] = []
        self.drawings: dict[str, Callable[..., Figure]] = {}
        self.estimates: dict[str, LogLikelihood] = {}

    def table(self, rows: list[report.ModelRow]) -> None:
        """Print a table, the best model first."""
        self.rows = sorted(rows, key=lambda row: -(row.log_likelihood or 0.0))
        self._console.print(report.to_table(self.rows, title=self.title))

    def samples(self, caption: str, x: Tensor) -> None:
        """Draw digits (N, 64) as a grid."""
        self.drawings[caption] = partial(figures.image_grid, _images(x), COLUMNS)

    def reconstructions(self, caption: str, x: Tensor, again: Mapping[str, Tensor]) -> None:
        """Draw digits, and under each what the models make of it."""
        rows = {name: _images(value) for name, value in again.items()}
        self.drawings[caption] = partial(figures.reconstructions, _images(x), rows)

    def histograms(self) -> None:
        """Draw the distribution of log p(x) over the test data for each model that estimates it."""
        for name, found in self.estimates.items():
            caption = f"{name}: log p(x) of each test datum"
            self.drawings[caption] = partial(figures.log_likelihood_histogram, found.value, found.trusted)

    def curves(self, histories: Mapping[str, History], objectives: Mapping[str, str]) -> None:
        """Draw the training of each model, whose objective has a name in words."""
        for name, history in histories.items():
            objective = f"{objectives[name]}, training"
            self.drawings[f"Training of {name}"] = partial(figures.learning_curves, history, objective=objective)


def _images(x: Tensor) -> np.ndarray:
    return x.reshape(-1, SIDE, SIDE).numpy()


def file_name(caption: str) -> str:
    """Letters and digits of a caption, joined by hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in caption.lower()).split())
