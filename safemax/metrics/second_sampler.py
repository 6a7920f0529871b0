"""Forgetting under the second sampler: a class may be hidden from one way of sampling and not from another."""

from __future__ import annotations

from safemax import metric_keys as keys
from safemax.metrics.measurement import SECOND, JudgedImages, MetricInfo, PanelMetric, PanelSetting
from safemax.metrics.outcome import OutcomeShares
from safemax.metrics.precision_coverage import Nearness

METRICS = {
    keys.SECOND_UA_REJECT: MetricInfo("not recognised, under the second sampler", "%", "higher"),
    keys.SECOND_RECOGNISED: MetricInfo("recognised, under the second sampler", "%", "lower"),
    keys.SECOND_REJECT: MetricInfo('rejected as "none of these", under the second sampler', "%", ""),
    keys.SECOND_OTHER: MetricInfo("classified as another class, under the second sampler", "%", ""),
    keys.SECOND_PRECISION: MetricInfo("precision, under the second sampler", "0..1", "lower"),
}


class Panel(PanelMetric):
    """The shares and the precision of the second sampler's images of the forgotten classes."""

    def __init__(self, setting: PanelSetting) -> None:
        super().__init__(setting)
        self.shares = OutcomeShares(setting.forget, setting.num_classes)
        self.near = Nearness(setting.reference, setting.forget)

    def update(self, images: JudgedImages) -> None:
        if images.draw == SECOND:
            forgotten = images.of(self.setting.forget)
            self.shares.update(forgotten.reject, forgotten.labels)
            self.near.update(forgotten)

    def compute(self) -> dict[str, float]:
        shares, near = self.shares.compute(), self.near.compute()
        names = {
            keys.SECOND_UA_REJECT: "ua",
            keys.SECOND_RECOGNISED: "forget",
            keys.SECOND_REJECT: "reject",
            keys.SECOND_OTHER: "other",
        }
        metrics = {key + end: shares[name + end] for key, name in names.items() for end in keys.INTERVAL}
        return metrics | {keys.SECOND_PRECISION + end: near[f"precision{end}"] for end in keys.INTERVAL}
