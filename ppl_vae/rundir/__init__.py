"""What a run leaves on disk: its description, configuration, history, parameters and evaluations."""

from ppl_vae.rundir.directory import RunDirectory, check_free, described, plain
from ppl_vae.rundir.evaluations import read_evaluation, write_evaluation
from ppl_vae.rundir.records import (
    RUN,
    Binarization,
    DataSpec,
    Evaluation,
    PairSpec,
    RunRecord,
    fingerprint,
    read_run,
    write_run,
)

__all__ = [
    "RUN",
    "Binarization",
    "DataSpec",
    "Evaluation",
    "PairSpec",
    "RunDirectory",
    "RunRecord",
    "check_free",
    "described",
    "fingerprint",
    "plain",
    "read_evaluation",
    "read_run",
    "write_evaluation",
    "write_run",
]
