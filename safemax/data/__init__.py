"""Images and labels: data sets by name or path, and seeded batches of forget and retain rows."""

from safemax.data.batches import Batch, Batches, Rows, derive_seed, reseed, to_float, to_uint8
from safemax.data.class_names import parse_classes
from safemax.data.dataset import Dataset, Split
from safemax.data.sources import load

__all__ = [
    "Batch",
    "Batches",
    "Dataset",
    "Rows",
    "Split",
    "load",
    "derive_seed",
    "parse_classes",
    "reseed",
    "to_float",
    "to_uint8",
]
