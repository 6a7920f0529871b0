"""Forgetting under the second sampler: a class may be hidden from one way of sampling and not from another."""

from __future__ import annotations

from safemax import metric_keys as keys
from safemax.metrics.measurement import Measurement, MetricInfo
from safemax.metrics.outcome import outcome
from safemax.metrics.precision_coverage import nearness

METRICS = {
    keys.SECOND_UA_REJECT: MetricInfo("not recognised, under the second sampler", "%", "higher"),
    keys.SECOND_RECOGNISED: MetricInfo("recognised, under the second sampler", "%", "lower"),
    keys.SECOND_REJECT: MetricInfo('rejected as "none of these", under the second sampler', "%", ""),
    keys.SECOND_OTHER: MetricInfo("classified as another class, under the second sampler", "%", ""),
    keys.SECOND_PRECISION: MetricInfo("precision, under the second sampler", "0..1", "lower"),
}


def measure(given: Measurement) -> dict[str, float]:
    """Return the shares and the precision of the second sampler's images of the forgotten classes."""
    images = given.second_forgotten
    shares_by_name = outcome(images.reject, given.forget, given.num_classes)
    near = nearness(images, given.reference, given.forget)
    shares = {
        keys.SECOND_UA_REJECT: "ua",
        keys.SECOND_RECOGNISED: "forget",
        keys.SECOND_REJECT: "reject",
        keys.SECOND_OTHER: "other",
    }
    metrics = {key + end: shares_by_name[name + end] for key, name in shares.items() for end in keys.INTERVAL}
    return metrics | {keys.SECOND_PRECISION + end: near[f"precision{end}"] for end in keys.INTERVAL}
