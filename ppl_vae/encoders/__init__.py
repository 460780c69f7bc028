"""Encoders: modules whose forward maps x (N, *event) to the distribution q(z given x), batch shape (N,)."""

from ppl_vae.encoders.flow import InverseAutoregressive, MaskedAutoregressive, NeuralSpline
from ppl_vae.encoders.normal import DiagonalNormal, FullCovarianceNormal, LowRankNormal

__all__ = [
    "DiagonalNormal",
    "FullCovarianceNormal",
    "InverseAutoregressive",
    "LowRankNormal",
    "MaskedAutoregressive",
    "NeuralSpline",
]
