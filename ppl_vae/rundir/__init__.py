"""What a run leaves on disk: its description, configuration, history, parameters and evaluations."""

from ppl_vae.rundir.directory import (
    RunDirectory,
    as_plain,
    check_free,
    described,
    described_again,
    record_as_plain,
)
from ppl_vae.rundir.evaluations import (
    described_estimate,
    finite_or_none,
    is_of_evaluation,
    outdate_evaluation,
    read_arrays,
    read_evaluation,
    write_bounds,
    write_evaluation,
)
from ppl_vae.rundir.records import (
    RUN,
    Bounds,
    Evaluation,
    Kind,
    RunRecord,
    fingerprint,
    read_run,
    write_run,
)
from ppl_vae.rundir.specs import Binarization, DataSpec, EvaluationSpec, PairSpec, TrainingSpec

__all__ = [
    "RUN",
    "Binarization",
    "Bounds",
    "DataSpec",
    "Evaluation",
    "EvaluationSpec",
    "Kind",
    "PairSpec",
    "RunDirectory",
    "RunRecord",
    "TrainingSpec",
    "as_plain",
    "check_free",
    "described",
    "described_again",
    "described_estimate",
    "fingerprint",
    "finite_or_none",
    "is_of_evaluation",
    "outdate_evaluation",
    "read_arrays",
    "read_evaluation",
    "read_run",
    "record_as_plain",
    "write_bounds",
    "write_evaluation",
    "write_run",
]
