"""How undecided a judge is: Selective Amnesia's pair of entropy and probability of the forgotten class, which SAFEMax reports."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from safemax import metric_keys as keys
from safemax.metrics.measurement import Measurement, MetricInfo

METRICS = {
    keys.ENTROPY: MetricInfo("H as the paper defines it, of the plain judge's answers", "nats", ""),
    keys.PROBABILITY: MetricInfo("mean probability of the forgotten classes, by the reject ensemble", "0..1", "lower"),
}


def measure(given: Measurement) -> dict[str, float]:
    """Return the means over the main sampler's images of the forgotten classes, each with its standard error."""
    images = given.forgotten
    metrics = _mean(keys.ENTROPY, entropy_of_probabilities(images.plain))
    return metrics | _mean(keys.PROBABILITY, forget_probability(images.reject, given.forget))


def _mean(key: str, values: Tensor) -> dict[str, float]:
    """Return a mean and its standard error, s / sqrt(n), which is 0 for a single value."""
    spread = values.std(correction=0).item() / math.sqrt(max(len(values) - 1, 1))
    return {key: values.mean().item(), key + keys.SE: spread}


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
