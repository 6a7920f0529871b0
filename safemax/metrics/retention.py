"""What was retained: accuracy, FID and KID of the retained classes, together, one by one, and of those next to the forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassStatScores
from torchmetrics.wrappers.abstract import WrapperMetric

from safemax import metric_keys as keys
from safemax.judges.inception import Moments
from safemax.judges.reference import Reference
from safemax.metrics.features import joined
from safemax.metrics.frechet import FrechetDistance
from safemax.metrics.intervals import GROUPS, with_interval
from safemax.metrics.kid import FEWEST, KernelDistance
from safemax.metrics.measurement import MAIN, JudgedImages, MetricInfo, PanelMetric, PanelSetting

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


class Accuracy(MulticlassStatScores):
    """How many samples of each class a judge names correctly; an answer beyond the last class is a wrong one.

    Args:
        num_classes: K.
    """

    higher_is_better = True

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes + 1, average=None, validate_args=False)

    def hits(self) -> tuple[Tensor, Tensor]:
        """Return correct answers and samples of each class, (K,) int64 both."""
        with joined(self):
            scores = super().compute()
        return scores[:-1, 0], scores[:-1, 4]

    def of(self, classes: Sequence[int]) -> tuple[int, int]:
        """Return correct answers and samples of some classes together."""
        hits, samples = self.hits()
        return int(hits[list(classes)].sum()), int(samples[list(classes)].sum())

    def compute(self) -> dict[str, float]:  # type: ignore[override]  # percent, not scores
        """Return `accuracy` of all samples, in percent, with its 95 % interval as accuracy_low and accuracy_high."""
        hits, samples = self.hits()
        return with_interval("accuracy", int(hits.sum()), int(samples.sum()))


class Distances(WrapperMetric):
    """Frechet distance and KID of some classes' images to the real ones, in the plain judge's features.

    Args:
        reference: features of real images.
        classes: those that `update` takes of a batch.
        groups: of the Frechet distance's standard error; 1 has none.
    """

    def __init__(self, reference: Reference, classes: tuple[int, ...], *, groups: int = 1) -> None:
        super().__init__()
        self.classes, real = classes, reference.of(classes)
        self.frechet = FrechetDistance(real.shape[1], Moments.of(real), groups=groups)
        self.kernel = KernelDistance(real=real)

    def update(self, images: JudgedImages) -> None:
        """Take what a batch has of the classes."""
        own = images.of(self.classes)
        self.frechet.update(own.features, rows=own.rows)
        self.kernel.update(own.features, rows=own.rows)

    def compute(self) -> dict[str, float]:
        """Return fid, fid_se where there are groups, kid and kid_se."""
        fid, (kid, kid_se) = self.frechet.compute(), self.kernel.compute()
        errors = {"fid_se": fid["se"].item()} if "se" in fid else {}
        return {"fid": fid["fid"].item(), **errors, "kid": kid.item(), "kid_se": kid_se.item()}


class Panel(PanelMetric):
    """Accuracy (percent), FID and KID to the real images, of the main sampler's; those of few classes need FEWEST images."""

    def __init__(self, setting: PanelSetting) -> None:
        super().__init__(setting)
        nearest = neighbours(setting.reference, setting.forget)
        # what each group of classes is called, all retained ones first
        self.groups: list[tuple[Callable[[str], str], tuple[int, ...]]] = [
            (lambda kind: keys.NEIGHBOURS + kind, nearest),
            *((partial(keys.of_class, name=setting.class_names[k]), (k,)) for k in setting.retained),
        ]
        self.accuracy = Accuracy(setting.num_classes)
        self.together = Distances(setting.reference, setting.retained, groups=GROUPS)
        self.apart = [Distances(setting.reference, classes) for _, classes in self.groups]
        self.registered = nn.ModuleList(self.apart)  # for reset

    def update(self, images: JudgedImages) -> None:
        if images.draw != MAIN:
            return
        retained = images.of(self.setting.retained)
        if len(retained):
            self.accuracy.update(retained.reject, retained.labels)
            for distances in (self.together, *self.apart):
                distances.update(retained)

    def compute(self) -> dict[str, float]:
        shares = self.accuracy.compute()
        found = self.together.compute()
        metrics = {keys.ACCURACY + end: shares["accuracy" + end] for end in keys.INTERVAL}
        metrics |= {keys.FID_JUDGE: found["fid"], keys.FID_JUDGE + keys.SE: found["fid_se"]}
        metrics |= {keys.RETAIN_KID: found["kid"], keys.RETAIN_KID + keys.SE: found["kid_se"]}
        for (key, classes), distances in zip(self.groups, self.apart, strict=True):
            hits, samples = self.accuracy.of(classes)
            metrics[key("accuracy")] = 100 * hits / samples
            if samples >= FEWEST:
                found = distances.compute()
                metrics |= {key(kind): found[kind] for kind in ("fid", "kid", "kid_se")}
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
