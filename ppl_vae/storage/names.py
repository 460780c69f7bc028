"""Names that become a part of a path."""

from __future__ import annotations

import re

from ppl_vae.errors import StorageError

__all__ = ["as_name", "check_name"]

_MAX_LENGTH = 100
_ALLOWED = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_MAX_LENGTH - 1}}}")


def check_name(name: str) -> str:
    """Returns a name of letters, digits, dots, dashes and underscores, which begins with a letter or a digit.

    Raises:
        StorageError: It is another one: a path, hidden, empty, or longer than 100 characters.

    Example:
        >>> check_name("mnist-beta4.2")
        'mnist-beta4.2'
        >>> check_name("../x")
        Traceback (most recent call last):
            ...
        ppl_vae.errors.StorageError: expected 1 to 100 letters, digits, '.', '-', '_', the first no sign, found '../x'
    """
    if not _ALLOWED.fullmatch(name):
        raise StorageError(
            f"expected 1 to {_MAX_LENGTH} letters, digits, '.', '-', '_', the first no sign, "
            f"found {name[: 2 * _MAX_LENGTH]!r}"
        )
    return name


def as_name(text: str) -> str:
    """Returns the nearest name to a text that `check_name` lets pass.

    Example:
        >>> as_name("my data (2)"), as_name("../x"), as_name("")
        ('my-data-2', 'x', 'unnamed')
    """
    kept = re.sub("[^A-Za-z0-9._-]+", "-", text).strip("._-")
    return check_name(kept[:_MAX_LENGTH] or "unnamed")
