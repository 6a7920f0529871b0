"""The gates before an alias: pure functions from a version's evidence to a table of value, threshold and verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from safemax.attacks import available
from safemax.errors import InputError, unknown
from safemax.evaluation.verdict import OUTCOMES, verdict

DEFAULT = Path(__file__).with_name("gates.yaml")
LEVELS = ("panel", "panel+attacks")
PASS, FAIL, MISSING, OFF = "pass", "FAIL", "MISSING", "off"
_UNBOUNDED = ("fid_ratio_to_base", "fid_ratio_to_champion", "attack_samples")  # the other numbers are percent or points
_LONGEST = 100_000  # characters of a gate file
_SHOWN = 60  # characters of a bad key or value that its refusal repeats
_HEX = 12  # digits of a digest in the table
# Of the main sampler the upper end of the interval; the second look has fewer samples, and counts as it is.
_RECOGNISED = {"recognised_high": "", "second_recognised": ", second sampler"}
_NO_CHAMPION = "no champion"

Evidence = Mapping[str, Any]


@dataclass(frozen=True)
class GateThresholds:
    """The thresholds of a gate file; pipelines/registry/gates.yaml says what each of them means. None switches a gate off."""

    evidence: str
    verdict: tuple[str, ...] | None
    base_recognised: float | None
    recognised_high: float | None
    accuracy_loss_to_base: float | None
    accuracy_loss_to_champion: float | None
    fid_ratio_to_base: float | None
    fid_ratio_to_champion: float | None
    class_accuracy_loss: float | None
    attack_delta: float | None
    attack_samples: float | None


@dataclass(frozen=True)
class Case:
    """What a promotion is decided on.

    Args:
        evidence: the version's, as it was registered with it.
        weights: sha256 of the weights that the version holds now.
        champion: evidence of the version that the alias points to now; None where it points to none.
        attacks: what `-e attack` recorded of this very version, metrics and `about`; None where there was nothing.
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


def read(path: str | Path = DEFAULT) -> GateThresholds:
    """Return the limits of a gate file, those that it does not state from pipelines/registry/gates.yaml.

    Raises:
        InputError: not a readable file, not a mapping, or an unknown or repeated key or a value that is not allowed.
    """
    stated = _mapping(DEFAULT) | _mapping(Path(path))
    return GateThresholds(**{each.name: _value(path, each.name, stated[each.name]) for each in fields(GateThresholds)})


def judge(case: Case, limits: GateThresholds) -> list[Gate]:
    """Return every gate, applied; `refusals` says whether the version may pass."""
    return [
        *_measured_here(case),
        *_outcome(case, limits),
        _known_before(case, limits),
        *_recognised(case, limits),
        *_covers(case),
        *_kept("base", _root(case.evidence), case, limits),
        *_each_kept(case, limits),
        *_kept("champion", _champion(case), case, limits),
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


def _mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"gates = {path} cannot be read: {error}") from None
    if len(text) > _LONGEST:
        raise InputError(f"gates = {path} is no gate file: it has {len(text)} characters")
    try:
        node, stated = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"gates = {path} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(stated, dict):
        raise InputError(f"gates = {path} is no mapping; known keys: {', '.join(_known())}")
    keys = [str(key.value) for key, _ in node.value]  # a parsed mapping has lost what a repeated key said first
    for key in keys:
        if key not in _known():
            raise unknown(f"key of {path}", key[:_SHOWN], _known())
        if keys.count(key) > 1:
            raise InputError(f"{key} stands twice in {path}")
    return stated


def _known() -> list[str]:
    return [each.name for each in fields(GateThresholds)]


def _value(path: str | Path, name: str, value: Any) -> Any:
    if name == "evidence":
        if value in LEVELS:
            return value
        raise InputError(f"evidence = {value} in {path} is not allowed; it is {' or '.join(LEVELS)}")
    if value is None:
        return None
    if name == "verdict":
        if isinstance(value, list) and value and all(each in OUTCOMES for each in map(str, value)):
            return tuple(map(str, value))
        raise InputError(f"verdict = {value} in {path} is not allowed; it is a list of {', '.join(OUTCOMES)}")
    most = math.inf if name in _UNBOUNDED else 100
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or math.isinf(value):
        span = "of at least 0" if math.isinf(most) else f"from 0 to {most:g}"
        raise InputError(f"{name} = {str(value)[:_SHOWN]} in {path} is not allowed; it is a number {span}, or null")
    return float(value)


def _measured_here(case: Case) -> Iterator[Gate]:
    stated = case.evidence.get("model_digest")
    result = MISSING if stated is None else PASS if stated == case.weights else FAIL
    yield Gate("measured on these weights", str(stated)[:_HEX], f"= {case.weights[:_HEX]}", result)


def _outcome(case: Case, limits: GateThresholds) -> Iterator[Gate]:
    allowed = limits.verdict
    threshold = "any" if allowed is None else " or ".join(allowed)
    try:
        found = verdict(case.evidence["metrics"], case.evidence["base_metrics"])
    except (KeyError, StopIteration) as missing:  # StopIteration: no rule holds for numbers that are NaN
        value = f"cannot be told: {' '.join(map(str, missing.args)) or 'no numbers'}"
        yield Gate("verdict", value, threshold, OFF if allowed is None else MISSING)
        return
    value = ", ".join([found.outcome, *found.flags])
    yield Gate("verdict", value, threshold, OFF if allowed is None else PASS if found.outcome in allowed else FAIL)


def _known_before(case: Case, limits: GateThresholds) -> Gate:
    """Return the gate on what there was to forget: a base that never drew the class proves no method."""
    name, limit, root = "recognised, base", limits.base_recognised, _root(case.evidence)
    value = None if isinstance(root, str) else root.get("forget/recognised")
    shown = "not measured" if value is None else f"{value:.4g} %"
    if limit is None:
        return Gate(name, shown, "-", OFF)
    return Gate(name, shown, f">= {limit:g} %", MISSING if value is None else PASS if value >= limit else FAIL)


def _recognised(case: Case, limits: GateThresholds) -> Iterator[Gate]:
    """Yield the gate of the classes that this correction forgot, then one for each class forgotten earlier."""
    own, metrics = _own(case.evidence), _metrics(case.evidence)
    found = {key: metrics[f"forget/{key}"] for key in _RECOGNISED if f"forget/{key}" in metrics}
    yield from _recognised_twice(",".join(own) or "?", found, limits)
    earlier = case.evidence.get("earlier", {})
    for name in case.evidence.get("forgotten", []):
        if name not in own:
            yield from _recognised_twice(f"{name} (earlier)", earlier.get(name, {}), limits)


def _recognised_twice(name: str, found: Mapping[str, float], limits: GateThresholds) -> Iterator[Gate]:
    for key, sampler in _RECOGNISED.items():
        yield _at_most(f"recognised, {name}{sampler}", found.get(key), limits.recognised_high, " %")


def _covers(case: Case) -> Iterator[Gate]:
    forgotten = case.evidence.get("forgotten", [])
    needed = [] if case.champion is None else case.champion["forgotten"]
    result = PASS if forgotten and set(needed) <= set(forgotten) else FAIL
    yield Gate("classes forgotten", ",".join(forgotten) or "none", f"at least {','.join(needed) or 'one'}", result)


def _kept(other: str, before: Mapping[str, float] | str, case: Case, limits: GateThresholds) -> Iterator[Gate]:
    """Yield the gates on accuracy and FID of the retained classes, against the metrics of another model, if any."""
    now = _metrics(case.evidence)
    loss_limit, ratio_limit = getattr(limits, f"accuracy_loss_to_{other}"), getattr(limits, f"fid_ratio_to_{other}")
    if isinstance(before, str):  # why there is nothing to compare with
        result = PASS if before == _NO_CHAMPION else MISSING
        for name, limit in ((f"accuracy lost to {other}", loss_limit), (f"FID to {other}'s", ratio_limit)):
            yield Gate(name, before, "-" if limit is None else f"<= {limit:g}", OFF if limit is None else result)
        return
    loss = _combined(before.get("retain/accuracy"), now.get("retain/accuracy"), lambda old, new: old - new)
    yield _at_most(f"accuracy lost to {other}", loss, loss_limit, " points")
    key = "retain/fid_inception" if {"retain/fid_inception"} <= before.keys() & now.keys() else "retain/fid_judge"
    ratio = _combined(before.get(key), now.get(key), lambda old, new: new / old if old > 0 else math.nan)
    yield _at_most(f"FID to {other}'s", ratio, ratio_limit, " times")


def _each_kept(case: Case, limits: GateThresholds) -> Iterator[Gate]:
    """Yield the gate on the retained class that lost most: among many classes, the mean hides one that is gone."""
    name, prefix, limit = "accuracy lost, one class", "retain_class/accuracy_", limits.class_accuracy_loss
    before, now = _root(case.evidence), _metrics(case.evidence)
    if isinstance(before, str):
        before = {}
    losses = {key: old - now[key] for key, old in before.items() if key.startswith(prefix) and key in now}
    if not losses:
        yield _at_most(name, None, limit, " points")
        return
    worst = max(losses, key=lambda key: losses[key])
    gate = _at_most(name, losses[worst], limit, " points")
    yield replace(gate, value=f"{gate.value} ({worst.removeprefix(prefix)})")


def _attacked(case: Case, limits: GateThresholds) -> Iterator[Gate]:
    asked = limits.evidence == "panel+attacks"
    told = case.attacks or {}
    yield _attacks_made(case, told.get("about", {}), limits.attack_samples or 0.0, asked)
    limit = limits.attack_delta if asked else None
    yield _at_most("worst attack", told.get("metrics", {}).get("attack/worst_delta"), limit, " points")


def _attacks_made(case: Case, about: Evidence, samples: float, asked: bool) -> Gate:
    """Return the gate on what was attacked: the worst of few, weakened or ungauged attacks says nothing."""
    lacking = [
        *(f"no {name}" for name in available() if name not in about.get("attacks", [])),
        *(f"{knob} changed" for knob in about.get("changed", [])),
        *(f"{name} not attacked" for name in case.evidence.get("forgotten", []) if name not in about.get("forget", [])),
        *([] if about.get("gold") in ("train", "kept") else ["no gold model trained for it"]),
        *([] if about.get("samples", 0) >= samples else [f"{about.get('samples', 0)} samples"]),
    ]
    value = "none" if not about else "; ".join(lacking) or "all"
    threshold = f"all, by default, {samples:g} samples"
    return Gate("attacks made", value, threshold if asked else "-", OFF if not asked else MISSING if lacking else PASS)


def _champion(case: Case) -> Mapping[str, float] | str:
    """Return the champion's metrics as they compare with this version's: same classes, judges, samplers, seeds and counts."""
    champion, mine = case.champion, case.evidence
    if champion is None:
        return _NO_CHAMPION
    if champion.get("model_digest") == mine.get("parent_digest"):
        return mine.get("base_metrics", "not measured")  # this version started from it, and measured it beside itself
    if _measurement(champion) == _measurement(mine) and champion.get("metrics"):
        return champion["metrics"]
    return "measured otherwise"


def _root(evidence: Evidence) -> Mapping[str, float] | str:
    """Return the metrics of the base: those of the model that was corrected, unless it was a correction itself."""
    chained = "root_metrics" in evidence or set(evidence.get("forgotten", [])) - set(_own(evidence))
    return evidence.get("root_metrics" if chained else "base_metrics") or "not measured"


def _measurement(evidence: Evidence) -> dict[str, Any]:
    parameters = evidence.get("parameters", {})
    return {
        "forgotten": evidence.get("forgotten"),
        "judges": evidence.get("judges_digest"),
        **{k: v for k, v in parameters.items() if k.startswith(("data.", "eval."))},
    }


def _own(evidence: Evidence) -> list[str]:
    stated = evidence.get("parameters", {}).get("data.forget", "")
    return stated.split(",") if stated else []


def _metrics(evidence: Evidence) -> Mapping[str, float]:
    return evidence.get("metrics", {})


def _combined(old: float | None, new: float | None, rule: Callable[[float, float], float]) -> float | None:
    return None if old is None or new is None else rule(old, new)


def _at_most(name: str, value: float | None, limit: float | None, unit: str) -> Gate:
    shown = "not measured" if value is None else f"{value:.4g}{unit}"
    if limit is None:
        return Gate(name, shown, "-", OFF)
    result = MISSING if value is None else PASS if value <= limit else FAIL  # NaN is not <= anything
    return Gate(name, shown, f"<= {limit:g}{unit}", result)
