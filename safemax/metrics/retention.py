"""What was retained: accuracy, FID and KID of the retained classes, together, one by one, and of those next to the forgotten."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from safemax import metric_keys as keys
from safemax.judges.load import Reference
from safemax.metrics.frechet import distance_to
from safemax.metrics.intervals import standard_error, wilson
from safemax.metrics.kid import FEWEST, kid
from safemax.metrics.measurement import JudgedImages, Measurement, MetricInfo

NEIGHBOURS = 3
_KID = "squared MMD"
METRICS = {
    keys.ACCURACY: MetricInfo("samples of retained classes that the reject ensemble names correctly", "%", "higher"),
    keys.FID_JUDGE: MetricInfo(
        "Frechet distance to the real retained images, in the plain judge's features", "", "lower"
    ),
    keys.RETAIN_KID: MetricInfo("KID to the real retained images", _KID, "lower"),
    "neighbours/accuracy": MetricInfo("accuracy of the classes nearest to the forgotten", "%", "higher"),
    "neighbours/fid": MetricInfo("Frechet distance of the classes nearest to the forgotten", "", "lower"),
    "neighbours/kid": MetricInfo("KID of the classes nearest to the forgotten", _KID, "lower"),
    "retain_class/accuracy": MetricInfo("accuracy of one retained class", "%", "higher"),
    "retain_class/fid": MetricInfo("Frechet distance of one retained class; compare equal counts only", "", "lower"),
    "retain_class/kid": MetricInfo("KID of one retained class", _KID, "lower"),
}


def measure(given: Measurement) -> dict[str, float]:
    """Return accuracy (percent), FID and KID to the real images; those of few classes need FEWEST images of them.

    Retained are the classes of the reference that are not forgotten. The reject class is a wrong answer.
    """
    images, reference = given.main, given.reference
    retained = tuple(k for k in reference.labels.unique().tolist() if k not in given.forget)
    metrics = _together(images.of(retained), reference.of(retained))
    metrics |= _of_few(lambda kind: keys.NEIGHBOURS + kind, images, reference, neighbours(reference, given.forget))
    for k in retained:
        metrics |= _of_few(partial(keys.of_class, name=given.class_names[k]), images, reference, (k,))
    return metrics


def neighbours(reference: Reference, forget: tuple[int, ...], count: int = NEIGHBOURS) -> tuple[int, ...]:
    """Return the retained classes whose real images' mean features lie nearest to the forgotten ones', nearest first.

    They degrade first when a class is unlearned. A retained class is as near as its nearest forgotten one.

    Args:
        reference: features of real images of all classes.
        forget: the forgotten labels.
        count: how many to return at most.
    """
    known = reference.labels.unique().tolist()
    means = torch.stack([reference.of((k,)).double().mean(0) for k in known])
    forgotten = means[[known.index(k) for k in forget]]
    distance = dict(zip(known, torch.cdist(means, forgotten).amin(1).tolist(), strict=True))
    return tuple(sorted((k for k in known if k not in forget), key=lambda k: distance[k])[:count])


def _together(images: JudgedImages, real: Tensor) -> dict[str, float]:
    hits = int((images.answers == images.labels).sum())
    low, high = wilson(hits, len(images.labels))
    value, error = kid(images.features, real)
    fid = distance_to(real)
    return {
        keys.ACCURACY: 100 * hits / len(images.labels),
        keys.ACCURACY + keys.LOW: low,
        keys.ACCURACY + keys.HIGH: high,
        keys.FID_JUDGE: fid(images.features),
        keys.FID_JUDGE + keys.SE: standard_error(fid, images.features),
        keys.RETAIN_KID: value,
        keys.RETAIN_KID + keys.SE: error,
    }


def _of_few(
    key: Callable[[str], str], images: JudgedImages, reference: Reference, classes: tuple[int, ...]
) -> dict[str, float]:
    some, real = images.of(classes), reference.of(classes)
    accuracy = {key("accuracy"): 100 * (some.answers == some.labels).double().mean().item()}
    if len(some.labels) < FEWEST:
        return accuracy
    value, error = kid(some.features, real)
    return accuracy | {
        key("fid"): distance_to(real)(some.features),
        key("kid"): value,
        key("kid_se"): error,
    }
