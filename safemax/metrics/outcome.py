"""What became of the forgotten class: recognised, rejected as "none of these", or classified as another class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassStatScores

from safemax import metric_keys as keys
from safemax.errors import InputError
from safemax.metrics.features import joined, of_this_process
from safemax.metrics.intervals import with_interval
from safemax.metrics.measurement import MAIN, JudgedImages, MetricInfo, PanelMetric, PanelSetting

METRICS = {
    keys.UA_REJECT: MetricInfo(
        "samples of the forgotten classes that the reject ensemble does not recognise", "%", "higher"
    ),
    keys.RECOGNISED: MetricInfo("samples that the reject ensemble classifies as a forgotten class", "%", "lower"),
    keys.REJECTED: MetricInfo('samples that it rejects as "none of these": noise', "%", ""),
    keys.OTHER: MetricInfo("samples that it classifies as another class: substitution", "%", ""),
    keys.UA: MetricInfo("UA as the paper defines it, by a judge without a reject class", "%", "higher"),
    keys.NOISE_ATTRACTED: MetricInfo("pure noise that the plain judge classifies as a forgotten class", "%", "lower"),
}


class OutcomeShares(MulticlassStatScores):
    """How a judge classifies samples that were drawn for the forgotten classes.

    Args:
        forget: the forgotten classes; a sample counts as recognised if any of them is the most probable answer.
        num_classes: K.
        reject: whether the judge has a last answer, K, for "none of these".
    """

    def __init__(self, forget: Sequence[int], num_classes: int, *, reject: bool = True) -> None:
        super().__init__(num_classes + reject, average=None)
        self.forget, self.classes = list(forget), num_classes

    def update(self, probs: Tensor, labels: Tensor) -> None:
        """Take a batch.

        Args:
            probs: (N, K), or (N, K + 1) where the judge can reject; in [0, 1].
            labels: the class that each sample was drawn for, (N,).

        Raises:
            InputError: a shape that does not fit, or probabilities that are not finite.
        """
        if probs.ndim != 2 or probs.shape[1] != self.num_classes:
            raise InputError(f"probs of shape {tuple(probs.shape)} do not fit {self.num_classes} answers")
        if not probs.isfinite().all():
            bad = int((~probs.isfinite()).any(dim=1).sum())
            raise InputError(f"probs of {bad} of {len(probs)} samples are not finite")
        if len(probs):
            super().update(probs, labels)

    def answers(self) -> Tensor:
        """Return how often each answer was the most probable one, (K,) or (K + 1,) int64."""
        with joined(self):
            scores = super().compute()
        return scores[:, 0] + scores[:, 1]  # rightly and wrongly

    def compute(self) -> dict[str, float]:  # type: ignore[override]  # numbers, not scores
        """Return the shares.

        Returns:
            Percent, 0 to 100, each with its 95 % Wilson interval as `_low` and `_high`: "forget" (lower is better), "reject"
            (none of these: noise), "other" (another class: substitution), which add up to 100; and "ua" = 100 - forget,
            unlearning accuracy (higher is better), the paper's where the judge has no reject class.

        Raises:
            InputError: no samples.
        """
        answers = self.answers()
        n, forgotten = int(answers.sum()), int(answers[self.forget].sum())
        if n == 0:
            raise InputError("no samples of the forgotten classes")
        rejected = int(answers[self.classes :].sum())
        counts = {"forget": forgotten, "reject": rejected, "other": n - forgotten - rejected, "ua": n - forgotten}
        return {key: value for name, k in counts.items() for key, value in with_interval(name, k, n).items()}

    def plot(self, val: dict[str, float] | None = None, ax: Any = None) -> Any:
        """Draw the three shares as bars with their intervals; returns figure and axes."""
        shares = self.compute() if val is None else val
        names = {"forget": "recognised", "reject": "rejected", "other": "another class"}
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(4, 2), layout="constrained").subplots()
        values = [shares[name] for name in names]
        low, high = ([abs(shares[name + end] - shares[name]) for name in names] for end in keys.INTERVAL[1:])
        ax.barh(list(names.values()), values, xerr=[low, high], color=["tab:red", "tab:gray", "tab:blue"])
        ax.set(xlim=(0, 100), xlabel="% of the samples")
        ax.invert_yaxis()
        return ax.get_figure(), ax


class Panel(PanelMetric):
    """The shares of the main sampler's images of the forgotten classes, and how far the plain judge's UA can be trusted."""

    def __init__(self, setting: PanelSetting) -> None:
        super().__init__(setting)
        self.by_ensemble = OutcomeShares(setting.forget, setting.num_classes)
        self.by_plain = OutcomeShares(setting.forget, setting.num_classes, reject=False)

    def update(self, images: JudgedImages) -> None:
        if images.draw == MAIN:
            forgotten = images.of(self.setting.forget)
            self.by_ensemble.update(forgotten.reject, forgotten.labels)
            self.by_plain.update(forgotten.plain, forgotten.labels)

    def compute(self) -> dict[str, float]:
        by_ensemble, by_plain = self.by_ensemble.compute(), self.by_plain.compute()
        shares = {keys.UA_REJECT: "ua", keys.RECOGNISED: "forget", keys.REJECTED: "reject", keys.OTHER: "other"}
        metrics = {key + end: by_ensemble[name + end] for key, name in shares.items() for end in keys.INTERVAL}
        metrics |= {keys.UA + end: by_plain["ua" + end] for end in keys.INTERVAL}
        return metrics | {keys.NOISE_ATTRACTED: self.setting.judges.noise_attractor(self.setting.forget)}


def outcome(probs: Tensor, forget: Sequence[int], num_classes: int) -> dict[str, float]:
    """Return OutcomeShares of all samples at once.

    Args:
        probs: (N, K), or (N, K + 1) where the last column means "none of these"; in [0, 1].
        forget: the forgotten classes.
        num_classes: K.

    Raises:
        InputError: no samples, a shape that does not fit K, or probabilities that are not finite.
    """
    has_reject = probs.ndim == 2 and probs.shape[1] == num_classes + 1
    shares = of_this_process(OutcomeShares(forget, num_classes, reject=has_reject))
    shares.update(probs, torch.full((len(probs),), forget[0], device=probs.device))
    return shares.compute()
