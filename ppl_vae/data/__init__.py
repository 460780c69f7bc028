"""Data sets with a fixed split and checked bytes, and bounded readers for arrays of one's own."""

from ppl_vae.data.readers import load_array
from ppl_vae.data.sets import Dataset, Labels, binarize, load

__all__ = ["Dataset", "Labels", "binarize", "load", "load_array"]
