"""Refuse too few images, real ones or samples, before any work: the metrics would refuse them after it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from safemax.data.class_split import ClassSplit
from safemax.data.dataset import Dataset
from safemax.errors import InputError
from safemax.evaluation import panel_classes
from safemax.evaluation.protocol import Evaluation
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
        few.append(f"forget = {names} has {total}; precision needs {NEAREST + 1} of these classes together")
    if few:
        raise InputError(
            f"data = {dataset.name} has too few training images of a class; KID needs {FEWEST} of each: {', '.join(few[:5])}"
        )


def check_enough_samples(evaluation: Evaluation, classes: ClassSplit, class_names: Sequence[str]) -> None:
    """Raise InputError if a protocol draws too few samples of these classes, or none is retained.

    Args:
        evaluation: how many are drawn, and of which retained classes.
        classes: the forgotten classes share forget_samples and second_samples, of which each needs one; KID needs FEWEST of
            the forgotten classes together, and FEWEST of the retained ones that are drawn together.
        class_names: of the data, by label.
    """
    drawn = panel_classes.labels(evaluation.retain_classes, class_names, classes.forget)
    forget, retained = len(classes.forget), len({*drawn} & {*classes.retained})
    if not retained:
        raise InputError("forget leaves no drawn class to retain: all the others were forgotten earlier")
    of_forget, of_each = evaluation.counts
    for name, count, fewest, of in (
        ("forget_samples", of_forget, max(FEWEST, forget), f"{forget} classes to forget"),
        ("retain_samples", of_each, math.ceil(FEWEST / retained), f"{retained} retained classes"),
        ("second_samples", evaluation.second_samples, forget, f"{forget} classes to forget"),
    ):
        if count < fewest:
            usual = "" if name == "second_samples" else ", or 0 for the protocol's"
            raise InputError(f"{name} = {count} is not allowed with {_singular(of)}; {fewest} or more{usual}")


def _singular(text: str) -> str:
    return text.replace("classes", "class") if text.startswith("1 ") else text
