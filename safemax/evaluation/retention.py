"""What was kept: accuracy, FID and KID of the retained classes, together, one by one, and of those next to the forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from safemax.judges.load import Reference
from safemax.metrics.frechet import distance_to
from safemax.metrics.jackknife import standard_error
from safemax.metrics.kid import FEWEST, kid
from safemax.metrics.outcome import wilson

NEIGHBOURS = 3


@dataclass(frozen=True)
class RetainedSamples:
    """Samples of the retained classes as a judge saw them.

    Args:
        labels: what each was asked to be, (N,).
        answers: what the judge took it for, (N,); the reject class is an error.
        features: (N, D), of the network whose features `reference` holds.
    """

    labels: Tensor
    answers: Tensor
    features: Tensor

    def of(self, classes: tuple[int, ...]) -> RetainedSamples:
        """Return the samples of some classes."""
        rows = torch.isin(self.labels, torch.tensor(classes))
        return RetainedSamples(self.labels[rows], self.answers[rows], self.features[rows])


def retention(
    kept: RetainedSamples, reference: Reference, forget: tuple[int, ...], class_names: tuple[str, ...]
) -> dict[str, float]:
    """Return accuracy (percent), FID and KID to the real images, by key: retain/, neighbours/ and retain_class/.

    Retained are the classes of `reference` that are not forgotten. FID and KID of a few classes need FEWEST images of them.
    """
    retained = tuple(k for k in reference.labels.unique().tolist() if k not in forget)
    metrics = _together(kept.of(retained), reference.of(retained))
    metrics |= _simple("neighbours/{}", kept, reference, neighbours(reference, forget))
    for k in retained:
        metrics |= _simple(f"retain_class/{{}}_{class_names[k]}", kept, reference, (k,))
    return metrics


def neighbours(reference: Reference, forget: tuple[int, ...], count: int = NEIGHBOURS) -> tuple[int, ...]:
    """Return the retained classes whose real images' mean features lie nearest to the forgotten ones', nearest first.

    They lose first when a class is unlearned. A retained class is as near as its nearest forgotten one.
    """
    known = reference.labels.unique().tolist()
    means = torch.stack([reference.of((k,)).double().mean(0) for k in known])
    forgotten = means[[known.index(k) for k in forget]]
    distance = dict(zip(known, torch.cdist(means, forgotten).amin(1).tolist(), strict=True))
    return tuple(sorted((k for k in known if k not in forget), key=lambda k: distance[k])[:count])


def _together(kept: RetainedSamples, real: Tensor) -> dict[str, float]:
    hits = int((kept.answers == kept.labels).sum())
    low, high = wilson(hits, len(kept.labels))
    value, error = kid(kept.features, real)
    fid = distance_to(real)
    return {
        "retain/accuracy": 100 * hits / len(kept.labels),
        "retain/accuracy_low": low,
        "retain/accuracy_high": high,
        "retain/fid_judge": fid(kept.features),
        "retain/fid_judge_se": standard_error(fid, kept.features),
        "retain/kid": value,
        "retain/kid_se": error,
    }


def _simple(key: str, kept: RetainedSamples, reference: Reference, classes: tuple[int, ...]) -> dict[str, float]:
    some, real = kept.of(classes), reference.of(classes)
    accuracy = {key.format("accuracy"): 100 * (some.answers == some.labels).double().mean().item()}
    if len(some.labels) < FEWEST:
        return accuracy
    value, error = kid(some.features, real)
    return accuracy | {
        key.format("fid"): distance_to(real)(some.features),
        key.format("kid"): value,
        key.format("kid_se"): error,
    }
