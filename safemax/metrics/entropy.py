"""How undecided a judge is: Selective Amnesia's pair of entropy and probability of the forgotten class, which SAFEMax reports."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safemax import metric_keys as keys
from safemax.metrics.intervals import MeanWithError
from safemax.metrics.measurement import MAIN, JudgedImages, MetricInfo, PanelMetric, PanelSetting

METRICS = {
    keys.ENTROPY: MetricInfo("H as the paper defines it, of the plain judge's answers", "nats", ""),
    keys.PROBABILITY: MetricInfo("mean probability of the forgotten classes, by the reject ensemble", "0..1", "lower"),
}


class AnswerEntropy(MeanWithError):
    """The mean entropy of a judge's answers, in nats, 0 to ln K."""

    def update(self, probs: Tensor) -> None:
        """Take probabilities (N, K)."""
        super().update(entropy_of_probabilities(probs))


class ForgetProbability(MeanWithError):
    """The mean probability that a judge gives to the forgotten classes together, 0 to 1; lower is better.

    Args:
        forget: the forgotten classes.
    """

    def __init__(self, forget: Sequence[int]) -> None:
        super().__init__()
        self.forget = tuple(forget)

    def update(self, probs: Tensor) -> None:
        """Take probabilities (N, K) or (N, K + 1) of samples of the forgotten classes."""
        super().update(forget_probability(probs, self.forget))


class Panel(PanelMetric):
    """The means over the main sampler's images of the forgotten classes, each with its standard error."""

    def __init__(self, setting: PanelSetting) -> None:
        super().__init__(setting)
        self.entropy, self.probability = AnswerEntropy(), ForgetProbability(setting.forget)

    def update(self, images: JudgedImages) -> None:
        if images.draw == MAIN:
            forgotten = images.of(self.setting.forget)
            self.entropy.update(forgotten.plain)
            self.probability.update(forgotten.reject)

    def compute(self) -> dict[str, float]:
        found = {keys.ENTROPY: self.entropy.compute(), keys.PROBABILITY: self.probability.compute()}
        means = {key: value["mean"].item() for key, value in found.items()}
        return means | {key + keys.SE: value["se"].item() for key, value in found.items()}


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of each row of logits, (N, K) to (N,) float64, in nats.

    0 means certain and ln K uniform; the paper takes higher as better forgetting, but it depends on the judge's calibration and
    does not tell noise from substitution. Through log_softmax, so that an underflowing probability gives 0, where the official
    code's log(softmax) gives nan.
    """
    log_probs = logits.double().log_softmax(dim=1)
    return torch.special.entr(log_probs.exp()).sum(dim=1)


def entropy_of_probabilities(probs: Tensor) -> Tensor:
    """Return `entropy` from probabilities, (N, K) to (N,) float64, in nats, 0 to ln K; 0 ln 0 is 0."""
    return torch.special.entr(probs.double()).sum(dim=1)


def forget_probability(probs: Tensor, forget: Sequence[int]) -> Tensor:
    """Return the probability that a judge gives to the forgotten classes together, (N,) float64, 0 to 1; lower is better.

    Args:
        probs: of samples of the forgotten classes, (N, K) or (N, K + 1).
        forget: the forgotten classes.
    """
    return probs[:, list(forget)].double().sum(dim=1)
