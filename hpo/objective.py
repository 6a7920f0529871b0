"""The scores that a search minimises, made of a trial's metrics and the base's."""

from __future__ import annotations

from collections.abc import Mapping

from safemax import metric_keys as keys

QUALITIES = {"fid": keys.FID_JUDGE, "kid": keys.RETAIN_KID}
# A smaller probability says more about the tails of the judges' softmax than about the images. Without a floor the front fills
# with trials that differ in the tenth digit after the point, and each of them is measured again.
FLOOR = 1e-6
_LEAST_UNIT = 1e-9  # where the base is the real images


def scores(metrics: Mapping[str, float], base: Mapping[str, float], quality: str) -> dict[str, float]:
    """Return the scores of a trial; for each, lower is better.

    Args:
        metrics: of the trial (safemax.evaluation.measure).
        base: metrics of the model to correct, by the same evaluation.
        quality: fid or kid.

    Returns:
        forgetting: probability of the forgotten classes under the judges with a reject class, in [FLOOR, 1].
        quality: FID or KID of the retained classes minus the base's.
        joint: (100 - UA_reject) / 100 + max(0, FID / FID_base - 1), the terms joint_forgetting and joint_quality. With KID
            the second is max(0, KID - KID_base) / `unit`: the base's KID may be 0 or below.
        accuracy_drop: retained accuracy lost, in points; the constraint.
        minutes: of preparing the method and unlearning.
    """
    key = QUALITIES[quality]
    unforgotten = (100 - metrics[keys.UA_REJECT]) / 100
    damage = max(0.0, metrics[key] - base[key]) / unit(base, quality)
    return {
        "forgetting": max(metrics[keys.PROBABILITY], FLOOR),
        "quality": metrics[key] - base[key],
        "joint": unforgotten + damage,
        "joint_forgetting": unforgotten,
        "joint_quality": damage,
        "accuracy_drop": base[keys.ACCURACY] - metrics[keys.ACCURACY],
        "minutes": metrics.get(keys.SETUP_MINUTES, 0.0) + metrics.get(keys.RUNTIME_MINUTES, 0.0),
    }


def unit(base: Mapping[str, float], quality: str) -> float:
    """Return what counts as one unit of quality lost: the base's own distance from real images, and at least its error.

    KID is unbiased, so a good base's may be 0 or below; a loss within its standard error does not count.
    """
    key = QUALITIES[quality]
    return max(base[key], base.get(f"{key}_se", 0.0), _LEAST_UNIT)
