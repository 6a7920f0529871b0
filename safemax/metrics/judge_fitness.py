"""How far the judges can be trusted with the forgotten classes: what they recognise of real images, and what that bounds."""

from __future__ import annotations

from safemax import metric_keys as keys
from safemax.judges.classifier import REJECT
from safemax.judges.fitness import Counted, false_alarms, recall
from safemax.metrics.intervals import wilson
from safemax.metrics.measurement import MAIN, JudgedImages, MetricInfo, PanelMetric, PanelSetting
from safemax.metrics.outcome import OutcomeShares

METRICS = {
    keys.JUDGE_RECALL: MetricInfo(
        "real test images of the forgotten class that the reject ensemble recognises; of several, the class with the least",
        "%", "higher",
    ),
    keys.JUDGE_FALSE_ALARM: MetricInfo(
        "real test images of other classes that the reject ensemble classifies as a forgotten class", "%", "lower"
    ),
    keys.JUDGE_ACCURACY: MetricInfo("real test images that the reject ensemble classifies correctly", "%", "higher"),
    keys.JUDGE_CALIBRATION: MetricInfo(
        "expected calibration error of the reject ensemble on real test images, 15 bins", "0..1", "lower"
    ),
    keys.JUDGE_NOISE: MetricInfo(
        "pure noise that the reject ensemble rejects, of the kind that it rejects least", "%", "higher"
    ),
    keys.PRESENT: MetricInfo(
        "samples that show a forgotten class, at most: the recognised share divided by the judges' recall", "%", "lower"
    ),
}  # fmt: skip


class Panel(PanelMetric):
    """What the ensemble makes of real test images and noise, and the recognised share corrected for its recall."""

    def __init__(self, setting: PanelSetting) -> None:
        super().__init__(setting)
        self.shares = OutcomeShares(setting.forget, setting.num_classes)

    def update(self, images: JudgedImages) -> None:
        if images.draw == MAIN:
            forgotten = images.of(self.setting.forget)
            self.shares.update(forgotten.reject, forgotten.labels)

    def compute(self) -> dict[str, float]:
        about = self.setting.judges.about.get("reject", {})
        if "answers" not in about:
            return {}
        names = [self.setting.class_names[k] for k in self.setting.forget]
        metrics = _with_interval(keys.JUDGE_RECALL, recall(about, names))
        metrics |= _with_interval(keys.JUDGE_FALSE_ALARM, false_alarms(about, names))
        metrics |= {keys.JUDGE_ACCURACY: about["test_accuracy"], keys.JUDGE_CALIBRATION: about["calibration_error"]}
        metrics |= {keys.JUDGE_NOISE: min(law.get(REJECT, 0.0) for law in about["noise"].values())}
        shares, (low, high) = self.shares.compute(), (metrics[keys.JUDGE_RECALL + end] for end in (keys.LOW, keys.HIGH))
        return metrics | {
            keys.PRESENT: present(shares["forget"], metrics[keys.JUDGE_RECALL]),
            keys.PRESENT + keys.LOW: present(shares["forget_low"], high),
            keys.PRESENT + keys.HIGH: present(shares["forget_high"], low),
        }


def present(recognised: float, recall: float) -> float:
    """Return the share of samples that show a class, in percent, by judges that recognise only a part of its real images.

    A judge of recall r recognises r times the share that is there, and 0 says nothing where r is 0. Ends of two 95 %
    intervals, the lower of one with the upper of the other, give an interval that both of them meet with 90 % at least.

    Args:
        recognised: samples recognised, percent.
        recall: real images of the class recognised, percent.
    """
    return min(100.0, 100 * recognised / recall) if recall > 0 else 100.0


def _with_interval(key: str, share: Counted) -> dict[str, float]:
    """Return a share with its interval; of no images 0, from 0 to 100."""
    low, high = wilson(share.hits, share.total) if share.total else (0.0, 100.0)
    return {key: 100 * share.hits / max(share.total, 1), key + keys.LOW: low, key + keys.HIGH: high}
