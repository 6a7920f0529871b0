"""How good a judge is, measured on real test images and pure noise before it judges: what it knows, and what it misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safemax.data.batches import to_float
from safemax.data.dataset import Dataset, Split
from safemax.judges.calibration import calibration
from safemax.judges.classifier import Judge, noise_histogram, predict

DROWNED = 2000  # test images that the noise "diffused" drowns


@dataclass(frozen=True)
class Counted:
    """Some of a number of real images."""

    hits: int
    total: int


def examine(judge: Judge, dataset: Dataset) -> dict[str, Any]:
    """Return what a judge makes of real test images and of noise, as JSON.

    Args:
        judge: any judge.
        dataset: its test split is judged.

    Returns:
        arch; test_accuracy, the share of right answers in percent, a rejection counts as wrong; answers, how many images of
        a class got which answer, {class: {answer: count}}, without zeros; what `calibration` returns; noise, as of
        `noise_histogram`.
    """
    probs, labels = _probabilities(judge, dataset.test), dataset.test.labels.cpu()
    answers = probs.argmax(1)
    return {
        "arch": judge.arch,
        "test_accuracy": 100 * (answers == labels).double().mean().item(),
        "answers": _answers_by_class(judge, answers, labels),
        **calibration(judge.arch, probs, labels),
        "noise": noise_histogram(judge, images=to_float(dataset.test.images[:DROWNED])),
    }


def recall(about: Mapping[str, Any], classes: Sequence[str]) -> Counted:
    """Return how many real images of some classes are recognised as any of them, for the class that is recognised least.

    Args:
        about: of `examine`.
        classes: names, at least one.

    Returns:
        0 of 0 where a class has no test image.
    """
    by_class = [_recognised(about["answers"].get(name, {}), classes) for name in classes]
    return min(by_class, key=lambda each: each.hits / each.total if each.total else -1.0)


def false_alarms(about: Mapping[str, Any], classes: Sequence[str]) -> Counted:
    """Return how many real images of all other classes are taken for any of some classes; arguments as of `recall`."""
    others = [_recognised(answers, classes) for name, answers in about["answers"].items() if name not in classes]
    return Counted(sum(each.hits for each in others), sum(each.total for each in others))


def _recognised(answers: Mapping[str, int], classes: Sequence[str]) -> Counted:
    return Counted(sum(answers.get(name, 0) for name in classes), sum(answers.values()))


def _probabilities(judge: Judge, split: Split) -> Tensor:
    return torch.cat([predict(judge, to_float(images))[0] for images in split.images.split(4096)])


def _answers_by_class(judge: Judge, answers: Tensor, labels: Tensor) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for k in labels.unique().tolist():
        counts = answers[labels == k].bincount(minlength=len(judge.answers)).tolist()
        found[judge.class_names[k]] = {name: n for name, n in zip(judge.answers, counts, strict=True) if n}
    return found
