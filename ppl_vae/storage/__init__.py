"""What a run leaves on disk, and nothing of training: durable files, checkpoints, a lock, names."""

from ppl_vae.storage.checkpoint import (
    Checkpoint,
    UnreadableError,
    check_storable,
    discard_after,
    newest,
    prune,
    read,
    step_folder,
    steps,
    write,
)
from ppl_vae.storage.files import remove_debris
from ppl_vae.storage.lock import EVALUATION_LOCK, LOCK, Hold, lent, locked
from ppl_vae.storage.names import as_name, check_name

__all__ = [
    "EVALUATION_LOCK",
    "LOCK",
    "Checkpoint",
    "Hold",
    "UnreadableError",
    "as_name",
    "check_name",
    "check_storable",
    "discard_after",
    "lent",
    "locked",
    "newest",
    "prune",
    "read",
    "remove_debris",
    "step_folder",
    "steps",
    "write",
]
