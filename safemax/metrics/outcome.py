"""What became of the forgotten class: recognised, rejected as "none of these", or classified as another class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safemax import metric_keys as keys
from safemax.errors import InputError
from safemax.metrics.intervals import wilson
from safemax.metrics.measurement import Measurement, MetricInfo

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


def measure(given: Measurement) -> dict[str, float]:
    """Return the shares of the main sampler's images of the forgotten classes, and how far the plain judge's UA can be trusted."""
    images, forget = given.forgotten, given.forget
    by_ensemble = outcome(images.reject, forget, given.num_classes)
    by_plain = outcome(images.plain, forget, given.num_classes)
    shares = {keys.UA_REJECT: "ua", keys.RECOGNISED: "forget", keys.REJECTED: "reject", keys.OTHER: "other"}
    metrics = {key + end: by_ensemble[name + end] for key, name in shares.items() for end in keys.INTERVAL}
    metrics |= {keys.UA + end: by_plain["ua" + end] for end in keys.INTERVAL}
    return metrics | {keys.NOISE_ATTRACTED: given.judges.noise_attractor(forget)}


def outcome(probs: Tensor, forget: Sequence[int], num_classes: int) -> dict[str, float]:
    """Return how a judge classifies samples that were drawn for the forgotten classes.

    Args:
        probs: (N, K), or (N, K + 1) where the last column means "none of these"; in [0, 1].
        forget: the forgotten classes; a sample counts as recognised if any of them is the most probable answer.
        num_classes: K.

    Returns:
        Percent, 0 to 100, each with its 95 % Wilson interval as `_low` and `_high`: "forget" (lower is better), "reject" (none
        of these: noise), "other" (another class: substitution), which add up to 100; and "ua" = 100 - forget,
        unlearning accuracy (higher is better), the paper's where the judge has no reject class.

    Raises:
        InputError: no samples, a shape that does not fit K, or probabilities that are not finite.
    """
    if probs.ndim != 2 or len(probs) == 0 or probs.shape[1] - num_classes not in (0, 1):
        raise InputError(
            f"probs of shape {tuple(probs.shape)} do not fit {num_classes} classes, with or without a reject class"
        )
    if not probs.isfinite().all():
        raise InputError(f"probs of {int((~probs.isfinite()).any(dim=1).sum())} of {len(probs)} samples are not finite")
    n, answers = len(probs), probs.argmax(dim=1)
    forgotten = int(torch.isin(answers, torch.tensor(list(forget), device=answers.device)).sum())
    rejected = int((answers == num_classes).sum())
    counts = {"forget": forgotten, "reject": rejected, "other": n - forgotten - rejected, "ua": n - forgotten}
    return {key: value for name, k in counts.items() for key, value in _with_interval(name, k, n).items()}


def _with_interval(name: str, k: int, n: int) -> dict[str, float]:
    low, high = wilson(k, n)
    return {name: 100 * k / n, f"{name}_low": low, f"{name}_high": high}
