"""How far a model is from the gold standard, one retrained without the class: in what it draws, and how that is classified."""

from __future__ import annotations

from scipy.special import rel_entr
from torch import Tensor

from safemax import metric_keys as keys
from safemax.metrics.kid import KernelDistance
from safemax.metrics.measurement import GOLD, MAIN, JudgedImages, MetricInfo, PanelMetric, PanelSetting
from safemax.metrics.outcome import OutcomeShares

METRICS = {
    keys.GOLD_KID_FORGET: MetricInfo(
        "KID to the retrained model's samples of the forgotten classes", "squared MMD", ""
    ),
    keys.GOLD_KID_RETAIN: MetricInfo(
        "KID to the retrained model's samples of the retained classes", "squared MMD", "lower"
    ),
    keys.GOLD_ANSWERS_JS: MetricInfo(
        "divergence from the retrained model's answers on the forgotten classes", "nats", ""
    ),
}


class Panel(PanelMetric):
    """The gap between the main sampler's images and those of the gold model, row by row of the same labels, where there is one.

    For a class that it never saw, a gold model answers to an untrained embedding: mostly with another class. A model that
    draws noise for the forgotten class is therefore far from it; the retained classes should be near. The divergence is between
    the two histograms of answers to the forgotten classes.
    """

    def __init__(self, setting: PanelSetting) -> None:
        super().__init__(setting)
        self.forgotten, self.retained = KernelDistance(), KernelDistance()
        self.answers, self.gold_answers = (OutcomeShares(setting.forget, setting.num_classes) for _ in range(2))

    def update(self, images: JudgedImages) -> None:
        if images.draw not in (MAIN, GOLD):
            return
        is_gold = images.draw == GOLD
        forgotten, retained = images.of(self.setting.forget), images.without(self.setting.forget)
        for metric, part in ((self.forgotten, forgotten), (self.retained, retained)):
            metric.update(part.features, real=is_gold, rows=part.rows)
        (self.gold_answers if is_gold else self.answers).update(forgotten.reject, forgotten.labels)

    def compute(self) -> dict[str, float]:
        if not self.forgotten.real_features:
            return {}
        metrics: dict[str, float] = {}
        for key, metric in ((keys.GOLD_KID_FORGET, self.forgotten), (keys.GOLD_KID_RETAIN, self.retained)):
            value, error = metric.compute()
            metrics |= {key: value.item(), key + keys.SE: error.item()}
        js = jensen_shannon(_histogram(self.answers), _histogram(self.gold_answers))
        return metrics | {keys.GOLD_ANSWERS_JS: js}


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Return the Jensen-Shannon divergence of two distributions (K,), in nats, 0 where equal to ln 2 where disjoint."""
    first, second = p.cpu().numpy(), q.cpu().numpy()
    middle = (first + second) / 2
    return max(0.0, float((rel_entr(first, middle) + rel_entr(second, middle)).sum() / 2))


def _histogram(shares: OutcomeShares) -> Tensor:
    answers = shares.answers().double()
    return answers / answers.sum()
