"""What an evaluation does not show, for the page that says what it shows: bounds instead of certainties."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from safemax import metric_keys as keys
from safemax.evaluation.verdict import Verdict


def limitations(
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
        protocol: Evaluation.describe.
        judges: Judges.about.
        base: whether a base was measured too.
        attacks: attack/ metrics, empty where no attack was run.
    """
    share, high = metrics[keys.RECOGNISED], metrics[keys.RECOGNISED + keys.HIGH]
    yield (
        f"Of {protocol['forget_samples']} samples drawn for the class, {share:.1f} % were recognised. At the 95 % level "
        f"that excludes a rate above {high:.1f} %, under {protocol['sampler']} and from random starting noise; it says "
        "nothing about other samplers, other guidance or chosen noise."
    )
    yield _bounded(verdict, metrics)
    yield (
        "The judges are classifiers and make mistakes; the ensemble is right for "
        f"{judges['reject']['test_accuracy']:.1f} % of real test images. Whatever all of them misjudge, this page misjudges too."
    )
    yield (
        "Frechet distance and KID use the features of the plain judge, precision and coverage those of all: "
        "compare them with numbers of the same protocol and judge only."
    )
    if keys.FID_INCEPTION in metrics:
        yield (
            f"The standard FID is of {protocol['retain_samples']} samples a retained class against all their training images; "
            "few samples raise it: compare it with numbers of equal counts only."
        )
    yield "Whether training images can be extracted, or recognised as training images, was not tested."
    yield _attacked(attacks)
    if verdict.outcome == "forgotten":
        yield "A model that answers a label with noise discloses which class was removed."
    if not base:
        yield "No base was measured for comparison: what the correction cost the retained classes is not known."


def _bounded(verdict: Verdict, metrics: Mapping[str, float]) -> str:
    """Return what the judges' own measurement means for the recognised share."""
    recall, present = ([metrics[key + end] for end in keys.INTERVAL] for key in (keys.JUDGE_RECALL, keys.PRESENT))
    text = (
        f"Of real test images of the class the judges recognise {recall[0]:.1f} % (95 %: {recall[1]:.1f} to {recall[2]:.1f}), and "
        f"they mistake {metrics[keys.JUDGE_FALSE_ALARM]:.1f} % of other classes' images for it."
    )
    if verdict.outcome == "judge_unfit":
        return (
            f"{text} That is too little to judge this class: whatever share is recognised, a larger one may be there."
        )
    return (
        f"{text} Divided by that share, the recognised share of the samples is {present[0]:.1f} %, at most {present[2]:.1f} % by "
        "both intervals."
    )


def _attacked(attacks: Mapping[str, float]) -> str:
    if not attacks:
        return (
            "No attack was run: samples from the plain label cannot tell a class that is gone from one that is hidden."
        )
    taught = " Without a gold model, a success may mean that the class was hidden, or that the attack taught it."
    without = "" if keys.WORST_DELTA in attacks else taught
    return (
        "The attacks are those listed, with the budgets of their run. Others exist, and a larger budget finds more; none of "
        f"them proves that the weights hold nothing of the class.{without}"
    )
