"""The gates before an alias: pure functions from a version's evidence to a table of value, threshold and verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from pipelines.registry.evidence_fields import Evidence, forgotten_by_it, mapping, texts
from pipelines.registry.references import Reference, base_of, champion_of
from pipelines.registry.thresholds import GateThresholds
from safemax import metric_keys as keys
from safemax.attacks import available
from safemax.errors import InputError
from safemax.evaluation.verdict import LIMITS, VerdictThresholds, number, verdict

PASS, FAIL, MISSING, OFF = "pass", "FAIL", "MISSING", "off"
_HEX = 12  # digits of a digest in the table
# Of the main sampler the upper end of the interval; the second sampler has fewer samples, so its share counts as it is.
_RECOGNISED = {"recognised_high": "", "second_recognised": ", second sampler"}


@dataclass(frozen=True)
class Case:
    """What a promotion is decided on.

    Args:
        evidence: the version's, as it was registered with it.
        weights: sha256 of the weights that the version holds now.
        champion: evidence of the version that the alias points to now; None where it points to none.
        attacks: what `-e attack` recorded of this very version, `metrics` and `about`; None if it was not attacked.
        classes: the names of the model's classes, each of which is forgotten or must have been measured as retained.
    """

    evidence: Evidence
    weights: str
    champion: Evidence | None = None
    attacks: Evidence | None = None
    classes: Sequence[str] = ()

    @property
    def metrics(self) -> Evidence:
        """The metrics of the version, empty where the evidence has none."""
        return mapping(self.evidence, "metrics")

    @property
    def forgotten(self) -> list[str]:
        """The names of all classes that the version has forgotten, empty where the evidence does not list them."""
        return texts(self.evidence, "forgotten") or []


@dataclass(frozen=True)
class Gate:
    """One gate as it was applied; `verdict` is pass, FAIL, off, or MISSING: no evidence, or no finite number; it refuses too."""

    name: str
    value: str
    threshold: str
    verdict: str


def judge(case: Case, limits: GateThresholds) -> list[Gate]:
    """Return every gate, applied; `refusals` says whether the version may pass."""
    base, champion = base_of(case.evidence), champion_of(case.champion, case.evidence)
    return [
        _measured_on_these_weights(case),
        _judges_know(case, limits),
        _outcome(case, limits),
        _recognised_by_base(base, limits),
        *_recognised(case, limits),
        _forgets_enough(case),
        _at_least("accuracy on retained classes", case.metrics, keys.ACCURACY, limits.retained_accuracy),
        *_retained(base, case, limits),
        _worst_class(base, case, limits),
        _worst_sampler(base, case, limits),
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
    result = MISSING if not stated else PASS if stated == case.weights else FAIL
    return Gate("measured on these weights", str(stated)[:_HEX], f"= {case.weights[:_HEX]}", result)


def _outcome(case: Case, limits: GateThresholds) -> Gate:
    allowed = limits.verdict
    threshold = "any" if allowed is None else " or ".join(allowed)
    try:
        judged = verdict(case.metrics, mapping(case.evidence, "base_metrics"), limits=_rules(limits))
    except InputError as lacking:
        return Gate("verdict", textwrap.shorten(str(lacking), 200), threshold, OFF if allowed is None else MISSING)
    result = OFF if allowed is None else PASS if judged.outcome in allowed else FAIL
    return Gate("verdict", ", ".join([judged.outcome, *judged.flags]), threshold, result)


def _rules(limits: GateThresholds) -> VerdictThresholds:
    """Return the verdict's thresholds, with the gate file's own limit on the judges."""
    return replace(LIMITS, judge_recall=limits.judge_recall or 0.0)


def _judges_know(case: Case, limits: GateThresholds) -> Gate:
    """Return the gate on the judges: who misses half of the real class sees little of it in samples either."""
    return _at_least("judges' recall", case.metrics, keys.JUDGE_RECALL, limits.judge_recall)


def _recognised_by_base(base: Reference, limits: GateThresholds) -> Gate:
    """Return the gate on what there was to forget: a base that never drew the class proves no method."""
    return _at_least("recognised, base", base.metrics, keys.RECOGNISED, limits.base_recognised)


def _recognised(case: Case, limits: GateThresholds) -> Iterator[Gate]:
    """Yield the gates of the classes that this correction forgot, then those of each class forgotten earlier."""
    own = forgotten_by_it(case.evidence)
    shares = {key: case.metrics.get(f"{keys.FORGET}{key}") for key in _RECOGNISED}
    yield from _recognised_by_sampler(",".join(own) or "?", shares, limits)
    earlier = mapping(case.evidence, "earlier")
    for name in case.forgotten:
        if name not in own:
            yield from _recognised_by_sampler(f"{name} (earlier)", mapping(earlier, name), limits)


def _recognised_by_sampler(name: str, shares: Evidence, limits: GateThresholds) -> Iterator[Gate]:
    for key, sampler in _RECOGNISED.items():
        share = number(shares, key)
        gate = _at_most(f"recognised, {name}{sampler}", share, limits.recognised_high, " %")
        is_upper_end = key == "recognised_high" and share is not None
        yield replace(gate, value=f"{gate.value} or less") if is_upper_end else gate


def _forgets_enough(case: Case) -> Gate:
    required = [] if case.champion is None else texts(case.champion, "forgotten")
    if required is None:
        return Gate("classes forgotten", ",".join(case.forgotten) or "none", "at least the champion's", MISSING)
    result = PASS if case.forgotten and set(required) <= set(case.forgotten) else FAIL
    shown = ",".join(case.forgotten) or "none"
    return Gate("classes forgotten", shown, f"at least {','.join(required) or 'one'}", result)


def _retained(reference: Reference, case: Case, limits: GateThresholds) -> Iterator[Gate]:
    """Yield the gates on accuracy and FID of the retained classes, compared with another model."""
    name, old, new = reference.name, reference.metrics, case.metrics
    loss_limit, ratio_limit = getattr(limits, f"accuracy_loss_to_{name}"), getattr(limits, f"fid_ratio_to_{name}")
    names = (f"accuracy lost to {name}", f"FID to {name}'s")
    if reference.absent:
        yield from (_absent(*each, reference) for each in zip(names, (loss_limit, ratio_limit), strict=True))
        return
    loss = _combined(old, new, keys.ACCURACY, lambda before, now: before - now)
    yield _at_most(names[0], loss, loss_limit, " points")
    key = keys.FID_INCEPTION if {keys.FID_INCEPTION} <= old.keys() & new.keys() else keys.FID_JUDGE
    ratio = _combined(old, new, key, lambda before, now: now / before if before > 0 else None)
    yield _at_most(names[1], ratio, ratio_limit, " times")


def _absent(name: str, limit: float | None, reference: Reference) -> Gate:
    if limit is None:
        return Gate(name, reference.absent, "-", OFF)
    return Gate(name, reference.absent, f"<= {limit:g}", MISSING if reference.required else PASS)


def _worst_class(base: Reference, case: Case, limits: GateThresholds) -> Gate:
    """Return the gate on the retained class that lost most: among many classes, the mean hides one that is lost."""
    name, prefix, limit = "accuracy lost, one class", keys.of_class("accuracy", ""), limits.class_accuracy_loss
    wanted = {key for key in (*base.metrics, *case.metrics) if key.startswith(prefix)}
    wanted |= {f"{prefix}{each}" for each in case.classes if each not in case.forgotten}
    losses = {
        key: _combined(base.metrics, case.metrics, key, lambda before, now: before - now) for key in sorted(wanted)
    }
    known = {key: loss for key, loss in losses.items() if loss is not None}
    if not losses or len(known) < len(losses):
        lacking = ", ".join(key.removeprefix(prefix) for key in losses if key not in known)
        gate = _at_most(name, None, limit, " points")
        return replace(gate, value=textwrap.shorten(f"{gate.value} ({lacking or 'no class'})", 100))
    worst = max(known, key=lambda key: known[key])
    gate = _at_most(name, known[worst], limit, " points")
    return replace(gate, value=f"{gate.value} ({worst.removeprefix(prefix)})")


def _worst_sampler(base: Reference, case: Case, limits: GateThresholds) -> Gate:
    """Return the gate on the sampler under which most accuracy was lost: the verdict knows the protocol's alone."""
    losses = [
        _combined(base.metrics, case.metrics, keys.of_sampler(name, "accuracy"), lambda before, now: before - now)
        for name in keys.USER_SAMPLERS
    ]
    worst = max((each for each in losses if each is not None), default=None)
    return _at_most("accuracy lost, any sampler", worst, limits.sampler_accuracy_loss, " points")


def _attacked(case: Case, limits: GateThresholds) -> Iterator[Gate]:
    required, attacks = limits.evidence == "panel+attacks", case.attacks or {}
    yield _attacks_made(case, mapping(attacks, "about"), limits.attack_samples or 0.0, required)
    limit = limits.attack_delta if required else None
    worst = number(mapping(attacks, "metrics"), keys.WORST_DELTA)
    yield _at_most("worst attack", worst, limit, " points")


def _attacks_made(case: Case, about: Evidence, samples: float, required: bool) -> Gate:
    """Return the gate on which attacks were made: the worst of few or weakened attacks, or without gold, says nothing."""
    made, attacked, drawn = texts(about, "attacks") or [], texts(about, "forget") or [], number(about, "samples")
    changed = texts(about, "changed")
    lacking = [
        *(f"no {name}" for name in available() if name not in made),
        *(["changed parameters not recorded"] if changed is None else [f"{knob} changed" for knob in changed]),
        *(f"{name} not attacked" for name in case.forgotten if name not in attacked),
        *([] if about.get("gold") in ("train", "kept") else ["no gold model trained for it"]),
        *([] if drawn is not None and drawn >= samples else [f"{about.get('samples', 0)} samples"]),
    ]
    value = "none" if not about else textwrap.shorten("; ".join(lacking), 200) or "all"
    threshold = f"all, by default, {samples:g} samples"
    result = OFF if not required else MISSING if lacking else PASS
    return Gate("attacks made", value, threshold if required else "-", result)


def _combined(old: Evidence, new: Evidence, key: str, rule: Callable[[float, float], float | None]) -> float | None:
    before, now = number(old, key), number(new, key)
    value = None if before is None or now is None else rule(before, now)
    return number({key: value}, key)  # a ratio of finite numbers may overflow


def _at_least(name: str, metrics: Evidence, key: str, limit: float | None) -> Gate:
    value = number(metrics, key)
    shown = "not measured" if value is None else f"{value:.4g} %"
    if limit is None:
        return Gate(name, shown, "-", OFF)
    return Gate(name, shown, f">= {limit:g} %", MISSING if value is None else PASS if value >= limit else FAIL)


def _at_most(name: str, value: float | None, limit: float | None, unit: str) -> Gate:
    """Return a gate on a value that comes from `number`, so that it is finite or None."""
    shown = "not measured" if value is None else f"{value:.4g}{unit}"
    if limit is None:
        return Gate(name, shown, "-", OFF)
    return Gate(name, shown, f"<= {limit:g}{unit}", MISSING if value is None else PASS if value <= limit else FAIL)
