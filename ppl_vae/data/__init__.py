"""Data sets with a fixed split and checked bytes, generated ones, and bounded readers for arrays of one's own."""

from ppl_vae.data.factors import FactorImages, sprites
from ppl_vae.data.levels import binarize, dequantize, levels_log_prob, quantize
from ppl_vae.data.readers import array_names, load_array
from ppl_vae.data.sets import ImageData, Labels, is_there, load, split_rows

__all__ = [
    "FactorImages",
    "ImageData",
    "Labels",
    "array_names",
    "binarize",
    "dequantize",
    "is_there",
    "levels_log_prob",
    "load",
    "load_array",
    "quantize",
    "split_rows",
    "sprites",
]
