"""What an evaluation does not show, said beside what it shows: bounds instead of certainties."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from safemax.evaluation.verdict import Verdict


def caveats(
    verdict: Verdict,
    metrics: Mapping[str, float],
    protocol: Mapping[str, Any],
    judges: Mapping[str, Any],
    *,
    base: bool,
    attacks: Mapping[str, float],
) -> Iterator[str]:
    """Yield sentences on the limits of the evidence.

    Args:
        verdict: the outcome.
        metrics: of safemax.evaluation.measure.
        protocol: of Evaluation.describe.
        judges: Judges.about.
        base: whether a base was measured too.
        attacks: attack/ metrics, empty where no attack was run.
    """
    share, high = metrics["forget/recognised"], metrics["forget/recognised_high"]
    yield (
        f"Of {protocol['forget_samples']} samples asked to be of the class, {share:.1f} % were recognised. At the 95 % level "
        f"that excludes a rate above {high:.1f} %, under {protocol['sampler']} and from random starting noise; it says "
        "nothing of other samplers, other guidance or chosen noise."
    )
    yield (
        "The judges are classifiers trained on the same data; the ensemble names "
        f"{judges['reject']['test_accuracy']:.1f} % of real test images rightly. What all of them misjudge, this page misjudges."
    )
    yield (
        "Frechet distance and KID are taken in the features of the plain judge, precision and coverage in those of all: "
        "compare them with numbers of the same protocol and judge only."
    )
    if "retain/fid_inception" in metrics:
        yield (
            f"The standard FID is of {protocol['retain_samples']} samples a retained class against all their training images; "
            "few samples raise it: compare it with numbers of equal counts only."
        )
    yield "Whether training images can be extracted, or their membership told, was not tested."
    yield _attacked(attacks)
    if verdict.outcome == "forgotten":
        yield "A model that answers a label with noise discloses which class was removed."
    if not base:
        yield "No base was measured beside it: what the correction cost the retained classes is not known."


def _attacked(attacks: Mapping[str, float]) -> str:
    if not attacks:
        return (
            "No attack was run: samples from the plain label do not tell a class that is gone from one that is hidden."
        )
    without = (
        "" if "attack/worst_delta" in attacks else " Without a gold model, success does not tell hidden from learned."
    )
    return (
        "The attacks are those listed, with the budgets of their run. Others exist, and a larger budget finds more; none of "
        f"them proves that the weights hold nothing of the class.{without}"
    )
