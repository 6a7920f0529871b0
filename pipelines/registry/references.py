"""The models that a version is compared with: the base at the start of its chain, and the champion of the day."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipelines.registry.evidence_fields import Evidence, forgotten_by_it, mapping, texts


@dataclass(frozen=True)
class Reference:
    """The model that a version is compared with.

    Args:
        name: base or champion.
        metrics: its metrics, empty where `absent` says why there are none.
        absent: the reason, as the table shows it.
        required: whether the comparison is refused where the metrics are absent.
    """

    name: str
    metrics: Evidence = field(default_factory=dict)
    absent: str = ""
    required: bool = True


def base_of(evidence: Evidence) -> Reference:
    """Return the model at the start of the chain: the corrected one, unless that was a correction itself."""
    chained = "root_metrics" in evidence or set(texts(evidence, "forgotten") or []) - set(forgotten_by_it(evidence))
    metrics = mapping(evidence, "root_metrics" if chained else "base_metrics")
    return Reference("base", metrics) if metrics else Reference("base", absent="not measured")


def champion_of(champion: Evidence | None, mine: Evidence) -> Reference:
    """Return the champion; its metrics are comparable if classes, judges, samplers, seeds and counts are the same."""
    if champion is None:
        return Reference("champion", absent="no champion", required=False)
    digest = champion.get("model_digest")
    if digest and digest == mine.get("parent_digest"):  # this version started from it, and measured it too
        metrics = mapping(mine, "base_metrics")
        return Reference("champion", metrics) if metrics else Reference("champion", absent="not measured")
    metrics = mapping(champion, "metrics")
    if metrics and _measurement(champion) == _measurement(mine):
        return Reference("champion", metrics)
    return Reference("champion", absent="measured otherwise")


def _measurement(evidence: Evidence) -> dict[str, Any]:
    parameters = mapping(evidence, "parameters")
    return {
        "forgotten": evidence.get("forgotten"),
        "judges": evidence.get("judges_digest"),
        **{key: value for key, value in parameters.items() if _is_measurement(key)},
    }


def _is_measurement(key: str) -> bool:
    # No gate compares numbers of those samples.
    return key.startswith(("data.", "eval.")) and key != "eval.user_samples"
