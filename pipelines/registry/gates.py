"""The gates before an alias: pure functions from a version's evidence to a table of value, threshold and verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from pipelines.registry.thresholds import GateThresholds
from safemax import metric_keys as keys
from safemax.attacks import available
from safemax.evaluation.verdict import verdict

PASS, FAIL, MISSING, OFF = "pass", "FAIL", "MISSING", "off"
_HEX = 12  # digits of a digest in the table
# Of the main sampler the upper end of the interval; the second sampler has fewer samples, so its share counts as it is.
_RECOGNISED = {"recognised_high": "", "second_recognised": ", second sampler"}

Evidence = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """What a promotion is decided on.

    Args:
        evidence: the version's, as it was registered with it.
        weights: sha256 of the weights that the version holds now.
        champion: evidence of the version that the alias points to now; None where it points to none.
        attacks: what `-e attack` recorded of this very version, `metrics` and `about`; None if it was not attacked.
    """

    evidence: Evidence
    weights: str
    champion: Evidence | None = None
    attacks: Evidence | None = None


@dataclass(frozen=True)
class Gate:
    """One gate as it was applied; `verdict` is pass, FAIL, MISSING (no evidence, which refuses too) or off."""

    name: str
    value: str
    threshold: str
    verdict: str


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
    metrics: Mapping[str, float] = field(default_factory=dict)
    absent: str = ""
    required: bool = True


def judge(case: Case, limits: GateThresholds) -> list[Gate]:
    """Return every gate, applied; `refusals` says whether the version may pass."""
    base, champion = _base(case.evidence), _champion(case)
    return [
        _measured_on_these_weights(case),
        _outcome(case, limits),
        _recognised_by_base(base, limits),
        *_recognised(case, limits),
        _forgets_enough(case),
        *_retained(base, case, limits),
        _worst_class(base, case, limits),
        *_retained(champion, case, limits),
        *_attacked(case, limits),
    ]


def refusals(gates: list[Gate]) -> list[str]:
    """Return the names of the gates that refuse, none if all pass."""
    return [gate.name for gate in gates if gate.verdict in (FAIL, MISSING)]


def table(gates: list[Gate]) -> pd.DataFrame:
    """Return the gates as a table: gate, value, threshold, verdict."""
    rows = [(gate.value, gate.threshold, gate.verdict) for gate in gates]
    names = pd.Index([gate.name for gate in gates], name="gate")
    return pd.DataFrame(rows, columns=["value", "threshold", "verdict"], index=names)


def _measured_on_these_weights(case: Case) -> Gate:
    stated = case.evidence.get("model_digest")
    result = MISSING if stated is None else PASS if stated == case.weights else FAIL
    return Gate("measured on these weights", str(stated)[:_HEX], f"= {case.weights[:_HEX]}", result)


def _outcome(case: Case, limits: GateThresholds) -> Gate:
    allowed = limits.verdict
    threshold = "any" if allowed is None else " or ".join(allowed)
    try:
        judged = verdict(case.evidence["metrics"], case.evidence["base_metrics"])
    except (KeyError, StopIteration) as missing:  # StopIteration: no rule holds for numbers that are NaN
        value = f"unknown without {' '.join(map(str, missing.args)) or 'numbers'}"
        return Gate("verdict", value, threshold, OFF if allowed is None else MISSING)
    result = OFF if allowed is None else PASS if judged.outcome in allowed else FAIL
    return Gate("verdict", ", ".join([judged.outcome, *judged.flags]), threshold, result)


def _recognised_by_base(base: Reference, limits: GateThresholds) -> Gate:
    """Return the gate on what there was to forget: a base that never drew the class proves no method."""
    name, limit, value = "recognised, base", limits.base_recognised, base.metrics.get(keys.RECOGNISED)
    shown = "not measured" if value is None else f"{value:.4g} %"
    if limit is None:
        return Gate(name, shown, "-", OFF)
    return Gate(name, shown, f">= {limit:g} %", MISSING if value is None else PASS if value >= limit else FAIL)


def _recognised(case: Case, limits: GateThresholds) -> Iterator[Gate]:
    """Yield the gates of the classes that this correction forgot, then those of each class forgotten earlier."""
    own, metrics = _own(case.evidence), case.evidence.get("metrics", {})
    shares = {key: metrics[f"forget/{key}"] for key in _RECOGNISED if f"forget/{key}" in metrics}
    yield from _recognised_by_sampler(",".join(own) or "?", shares, limits)
    earlier = case.evidence.get("earlier", {})
    for name in case.evidence.get("forgotten", []):
        if name not in own:
            yield from _recognised_by_sampler(f"{name} (earlier)", earlier.get(name, {}), limits)


def _recognised_by_sampler(name: str, shares: Mapping[str, float], limits: GateThresholds) -> Iterator[Gate]:
    for key, sampler in _RECOGNISED.items():
        yield _at_most(f"recognised, {name}{sampler}", shares.get(key), limits.recognised_high, " %")


def _forgets_enough(case: Case) -> Gate:
    forgotten = case.evidence.get("forgotten", [])
    required = [] if case.champion is None else case.champion["forgotten"]
    result = PASS if forgotten and set(required) <= set(forgotten) else FAIL
    return Gate("classes forgotten", ",".join(forgotten) or "none", f"at least {','.join(required) or 'one'}", result)


def _retained(reference: Reference, case: Case, limits: GateThresholds) -> Iterator[Gate]:
    """Yield the gates on accuracy and FID of the retained classes, compared with another model."""
    name, old, new = reference.name, reference.metrics, case.evidence.get("metrics", {})
    loss_limit, ratio_limit = getattr(limits, f"accuracy_loss_to_{name}"), getattr(limits, f"fid_ratio_to_{name}")
    names = (f"accuracy lost to {name}", f"FID to {name}'s")
    if reference.absent:
        yield from (_absent(*each, reference) for each in zip(names, (loss_limit, ratio_limit), strict=True))
        return
    loss = _combined(old.get(keys.ACCURACY), new.get(keys.ACCURACY), lambda before, now: before - now)
    yield _at_most(names[0], loss, loss_limit, " points")
    key = keys.FID_INCEPTION if {keys.FID_INCEPTION} <= old.keys() & new.keys() else keys.FID_JUDGE
    ratio = _combined(old.get(key), new.get(key), lambda before, now: now / before if before > 0 else math.nan)
    yield _at_most(names[1], ratio, ratio_limit, " times")


def _absent(name: str, limit: float | None, reference: Reference) -> Gate:
    if limit is None:
        return Gate(name, reference.absent, "-", OFF)
    return Gate(name, reference.absent, f"<= {limit:g}", MISSING if reference.required else PASS)


def _worst_class(base: Reference, case: Case, limits: GateThresholds) -> Gate:
    """Return the gate on the retained class that lost most: among many classes, the mean hides one that is lost."""
    name, prefix, limit = "accuracy lost, one class", "retain_class/accuracy_", limits.class_accuracy_loss
    now = case.evidence.get("metrics", {})
    losses = {key: old - now[key] for key, old in base.metrics.items() if key.startswith(prefix) and key in now}
    if not losses:
        return _at_most(name, None, limit, " points")
    worst = max(losses, key=lambda key: losses[key])
    gate = _at_most(name, losses[worst], limit, " points")
    return replace(gate, value=f"{gate.value} ({worst.removeprefix(prefix)})")


def _attacked(case: Case, limits: GateThresholds) -> Iterator[Gate]:
    required, attacks = limits.evidence == "panel+attacks", case.attacks or {}
    yield _attacks_made(case, attacks.get("about", {}), limits.attack_samples or 0.0, required)
    limit = limits.attack_delta if required else None
    yield _at_most("worst attack", attacks.get("metrics", {}).get(keys.WORST_DELTA), limit, " points")


def _attacks_made(case: Case, about: Evidence, samples: float, required: bool) -> Gate:
    """Return the gate on which attacks were made: the worst of few or weakened attacks, or without gold, says nothing."""
    lacking = [
        *(f"no {name}" for name in available() if name not in about.get("attacks", [])),
        *(f"{knob} changed" for knob in about.get("changed", [])),
        *(f"{name} not attacked" for name in case.evidence.get("forgotten", []) if name not in about.get("forget", [])),
        *([] if about.get("gold") in ("train", "kept") else ["no gold model trained for it"]),
        *([] if about.get("samples", 0) >= samples else [f"{about.get('samples', 0)} samples"]),
    ]
    value = "none" if not about else "; ".join(lacking) or "all"
    threshold = f"all, by default, {samples:g} samples"
    result = OFF if not required else MISSING if lacking else PASS
    return Gate("attacks made", value, threshold if required else "-", result)


def _base(evidence: Evidence) -> Reference:
    """Return the model at the start of the chain: the corrected one, unless that was a correction itself."""
    chained = "root_metrics" in evidence or set(evidence.get("forgotten", [])) - set(_own(evidence))
    metrics = evidence.get("root_metrics" if chained else "base_metrics")
    return Reference("base", metrics) if metrics else Reference("base", absent="not measured")


def _champion(case: Case) -> Reference:
    """Return the champion; its metrics are comparable if classes, judges, samplers, seeds and counts are the same."""
    champion, mine = case.champion, case.evidence
    if champion is None:
        return Reference("champion", absent="no champion", required=False)
    if champion.get("model_digest") == mine.get("parent_digest"):  # this version started from it, and measured it too
        if "base_metrics" not in mine:
            return Reference("champion", absent="not measured")
        return Reference("champion", mine["base_metrics"])
    if _measurement(champion) == _measurement(mine) and champion.get("metrics"):
        return Reference("champion", champion["metrics"])
    return Reference("champion", absent="measured otherwise")


def _measurement(evidence: Evidence) -> dict[str, Any]:
    parameters = evidence.get("parameters", {})
    return {
        "forgotten": evidence.get("forgotten"),
        "judges": evidence.get("judges_digest"),
        **{key: value for key, value in parameters.items() if key.startswith(("data.", "eval."))},
    }


def _own(evidence: Evidence) -> list[str]:
    stated = evidence.get("parameters", {}).get("data.forget", "")
    return stated.split(",") if stated else []


def _combined(old: float | None, new: float | None, rule: Callable[[float, float], float]) -> float | None:
    return None if old is None or new is None else rule(old, new)


def _at_most(name: str, value: float | None, limit: float | None, unit: str) -> Gate:
    shown = "not measured" if value is None else f"{value:.4g}{unit}"
    if limit is None:
        return Gate(name, shown, "-", OFF)
    result = MISSING if value is None else PASS if value <= limit else FAIL  # NaN is not <= anything
    return Gate(name, shown, f"<= {limit:g}{unit}", result)
