"""The model under the samplers that people use: a correction may keep its promise under ours and not under theirs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from safemax import metric_keys as keys
from safemax.metrics.intervals import with_interval
from safemax.metrics.measurement import JudgedImages, MetricInfo, PanelMetric, PanelSetting
from safemax.metrics.outcome import OutcomeShares
from safemax.metrics.retention import Accuracy

_WHAT = {
    "clipped": "diffusers' DDIM as it comes (clip_sample, 50 steps, g = 1.5)",
    "unguided": "DDIM of 20 steps without guidance",
    "strong": "DDIM of 20 steps at g = 3",
}
METRICS = {
    **{keys.of_sampler(name, "accuracy"): MetricInfo(f"accuracy of retained classes under {text}", "%", "higher")
       for name, text in _WHAT.items()},
    **{keys.of_sampler(name, "recognised"): MetricInfo(f"recognised samples under {text}", "%", "lower")
       for name, text in _WHAT.items()},
    keys.WORST_SAMPLER_ACCURACY: MetricInfo("least accuracy of retained classes under any of these samplers", "%", "higher"),
    keys.WORST_SAMPLER_RECOGNISED: MetricInfo("most recognised samples under any of these samplers", "%", "lower"),
    keys.WORST_SAMPLER_LOSS: MetricInfo(
        "largest loss of accuracy on retained classes against the base, under any one of these samplers",
        "points", "lower",
    ),
}  # fmt: skip


class Panel(PanelMetric):
    """Accuracy and recognised share under each of the samplers that the protocol drew with, and the worst of them."""

    def __init__(self, setting: PanelSetting) -> None:
        super().__init__(setting)
        self.accuracy = {name: Accuracy(setting.num_classes) for name in keys.USER_SAMPLERS}
        self.shares = {name: OutcomeShares(setting.forget, setting.num_classes) for name in keys.USER_SAMPLERS}
        self.registered = nn.ModuleList([*self.accuracy.values(), *self.shares.values()])  # for reset

    def update(self, images: JudgedImages) -> None:
        if images.draw in keys.USER_SAMPLERS:
            retained, forgotten = images.of(self.setting.retained), images.of(self.setting.forget)
            if len(retained):
                self.accuracy[images.draw].update(retained.reject, retained.labels)
            self.shares[images.draw].update(forgotten.reject, forgotten.labels)

    def compute(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name in keys.USER_SAMPLERS:
            hits, samples = self.accuracy[name].of(self.setting.retained)
            if samples:
                metrics |= with_interval(keys.of_sampler(name, "accuracy"), hits, samples)
                shares, key = self.shares[name].compute(), keys.of_sampler(name, "recognised")
                metrics |= {key + end: shares["forget" + end] for end in keys.INTERVAL}
        return metrics | worst(metrics)


def worst(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the least accuracy and the largest recognised share of all samplers; nothing where there is no sampler."""
    accuracy, recognised = (
        [metrics[key] for name in keys.USER_SAMPLERS if (key := keys.of_sampler(name, number)) in metrics]
        for number in ("accuracy", "recognised")
    )
    if not accuracy:
        return {}
    return {keys.WORST_SAMPLER_ACCURACY: min(accuracy), keys.WORST_SAMPLER_RECOGNISED: max(recognised)}


def loss(metrics: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    """Return the largest loss of accuracy against the base under one of the samplers, in points; nothing without both."""
    names = [keys.of_sampler(name, "accuracy") for name in keys.USER_SAMPLERS]
    losses = [base[key] - metrics[key] for key in names if key in metrics and key in base]
    return {keys.WORST_SAMPLER_LOSS: max(losses)} if losses else {}
