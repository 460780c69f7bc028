"""What all figures share: an off-screen canvas and colours that survive print."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from ppl_vae.errors import DataError

if TYPE_CHECKING:  # matplotlib takes most of a second to import, and training needs none of it
    from pathlib import Path
    from typing import IO

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BETWEEN", "DARK", "LIGHT", "MIDDLE", "check_given", "drawable", "new_figure", "quiet", "save"]

# Dark, light and middle: told apart in print without colour, and by eyes that see red and green alike.
DARK, LIGHT, MIDDLE = "#12355b", "#f4a259", "#557aa3"
_HALF = re.compile("[\ud800-\udfff]")  # of a character, as Python reads bytes that are none
BETWEEN = "#a9c1d9"  # a colour that no grey image has


def check_given(name: str, value: Any, kind: str, *attributes: str) -> None:
    """Refuses what lacks what a figure reads.

    Example:
        >>> check_given("ledger", 3, "what ledger has returned", "latents")
        Traceback (most recent call last):
            ...
        ppl_vae.errors.DataError: ledger: expected what ledger has returned, found int
    """
    if not all(hasattr(value, attribute) for attribute in attributes):
        raise DataError(f"{name}: expected {kind}, found {type(value).__name__}")


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure of its own, outside pyplot: no window, no list of open figures."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout=layout)


def save(figure: Figure, path: Path | IO[bytes]) -> None:
    """Write a figure without the blank margins that pictures of a fixed shape leave around them; a PNG in a stream.

    Bytes of the name of a file that are no UTF-8 are drawn as replacement characters.

    Raises:
        DataError: It is no figure.
    """
    from matplotlib.text import Text

    check_given("figure", figure, "a figure of matplotlib", "findobj", "savefig")
    for text in figure.findobj(lambda artist: isinstance(artist, Text) and bool(_HALF.search(artist.get_text()))):
        text.set_text(drawable(text.get_text()))  # type: ignore[attr-defined]
    figure.savefig(path, bbox_inches="tight", pad_inches=0.05)


def drawable(text: str) -> str:
    """A text without halves of characters, which no font has."""
    return _HALF.sub("\ufffd", text)


def quiet(axes: Axes) -> None:
    """Take away what carries no information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
