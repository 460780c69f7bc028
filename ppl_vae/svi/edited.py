"""Programs that are no longer those that a run has trained."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ppl_vae.errors import CheckpointError
from ppl_vae.pair import Pair
from ppl_vae.storage import newest
from ppl_vae.svi.code import CODE
from ppl_vae.svi.facts import differences, python_version
from ppl_vae.svi.programs import facts_of_programs
from ppl_vae.svi.saving import CHECKPOINTS

__all__ = ["edited_programs"]


def edited_programs(pair: Pair, root: Path) -> list[str]:
    """Names of what, of the code of a pair, is not as it was when a run began; none where no checkpoint tells.

    Args:
        pair: A new pair, which has not run.
        root: The run directory.
    """
    facts = {"programs": facts_of_programs(pair), "machine": {"python": python_version()}}
    with suppress(CheckpointError):
        known = newest(root / CHECKPOINTS).plain.get("facts")
        changes = differences(known, facts, "programs") if known else []
        return [change.name for change in changes if change.name.startswith(CODE)]
    return []
