"""Refuse data with too few images of a class before any work: the metrics would refuse them after it."""

from __future__ import annotations

from collections.abc import Sequence

from safemax.data.dataset import Dataset
from safemax.errors import InputError
from safemax.metrics.kid import FEWEST
from safemax.metrics.precision_coverage import NEAREST


def check_enough_images(dataset: Dataset, forget: Sequence[int]) -> None:
    """Raise InputError if the training images are too few for the metrics.

    Args:
        dataset: the real images.
        forget: labels of the forgotten classes: precision and coverage need more than NEAREST images of them together,
            KID needs FEWEST images of each other class.
    """
    counts = dataset.train.labels.bincount(minlength=dataset.num_classes).tolist()
    few = [
        f"{name} has {count}"
        for k, (name, count) in enumerate(zip(dataset.class_names, counts, strict=True))
        if count < FEWEST and k not in forget
    ]
    total = sum(counts[k] for k in forget)
    if total <= NEAREST:
        names = ", ".join(dataset.class_names[k] for k in forget)
        few.append(f"forget = {names} has {total}, of which precision needs {NEAREST + 1}")
    if few:
        raise InputError(
            f"data = {dataset.name} has too few training images of a class; KID needs {FEWEST} of each: {', '.join(few[:5])}"
        )
