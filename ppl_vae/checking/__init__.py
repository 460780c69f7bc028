"""The checker of pairs: finds every mismatch of model and guide, and the layout of a pair that has none."""

from ppl_vae.checking.checker import (
    check,
    check_draws,
    check_for_pyro,
    check_form,
    check_in_training,
    check_observations,
    check_rows,
)
from ppl_vae.checking.density import kind_of_density
from ppl_vae.checking.kinds import first_run, in_kind_of, settled
from ppl_vae.checking.report import CheckReport, SiteReport

__all__ = [
    "CheckReport",
    "SiteReport",
    "check",
    "check_draws",
    "check_for_pyro",
    "check_form",
    "check_in_training",
    "check_observations",
    "check_rows",
    "first_run",
    "in_kind_of",
    "kind_of_density",
    "settled",
]
