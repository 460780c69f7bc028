"""What latent codes know: functions of arrays of codes, and of the labels or factors of the data."""

from ppl_vae.latents.classes import ClusterAgreement, cluster_agreement, linear_probe, neighbour_accuracy
from ppl_vae.latents.disentanglement import DCI, dci, mig, mutual_information, sap
from ppl_vae.latents.units import active_units

__all__ = [
    "DCI",
    "ClusterAgreement",
    "active_units",
    "cluster_agreement",
    "dci",
    "linear_probe",
    "mig",
    "mutual_information",
    "neighbour_accuracy",
    "sap",
]
