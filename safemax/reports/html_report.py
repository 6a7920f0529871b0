"""The report that a reviewer reads before a promotion: one HTML page that holds all it shows and opens without a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safemax import metric_keys as keys
from safemax.evaluation.limitations import limitations
from safemax.evaluation.metric_info import MetricInfo, meaning
from safemax.evaluation.verdict import FLAGS, OUTCOMES, Verdict
from safemax.reports.html import render
from safemax.reports.numbers import change, percent, quantity

PANEL = {
    "The forgotten classes": (keys.FORGET,),
    "Their pixels": (keys.PIXELS,),
    "The retained classes": (keys.RETAIN, keys.NEIGHBOURS),
    "The gap to a retrained model": (keys.GOLD,),
}


@dataclass(frozen=True)
class Picture:
    """A picture as PNG bytes, with the sentence under it."""

    png: bytes
    caption: str


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Args:
        address: of the model.
        forget: names of the forgotten classes.
        neighbours: names of the retained classes nearest to them.
        verdict: the outcome, flags and rules.
        metrics: of the model.
        protocol: samplers, counts and seeds of the metrics (Evaluation.describe).
        judges: Judges.about.
        base: metrics of the base, and its address; empty and "" where there is none.
        base_address: see base.
        attacks: attack/ metrics, empty where no attack was run.
        pictures: what the models drew.
        attack_pictures: what the attacks drew.
        cost: cost/ metrics of the correction, empty where they are not known.
        lineage: facts about where the model comes from, by name.
        links: addresses of the pages of runs and versions, by the name that the page shows.
        method: that made the model, "" where it is not known.
        written: when the page was.
    """

    address: str
    forget: Sequence[str]
    neighbours: Sequence[str]
    verdict: Verdict
    metrics: Mapping[str, float]
    protocol: Mapping[str, Any]
    judges: Mapping[str, Any]
    base: Mapping[str, float] = field(default_factory=dict)
    base_address: str = ""
    attacks: Mapping[str, float] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    attack_pictures: Sequence[Picture] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    method: str = ""
    written: str = ""


@dataclass(frozen=True)
class MetricRow:
    """A metric as the page writes it; "" where there is no base, interval or difference."""

    key: str
    info: MetricInfo
    value: str
    base: str = ""
    interval: str = ""
    difference: str = ""


def html(report: Report) -> str:
    """Return the page."""
    return render(
        "report.html",
        title=f"{report.address}: {', '.join(report.forget)}",
        report=report,
        tone="good" if report.verdict.is_success else "bad",
        outcomes=OUTCOMES,
        flags=FLAGS,
        cards=list(_cards(report)),
        limitations=list(_limitations(report)),
        panel={title: [_row(report, key) for key in shown] for title, shown in _panel(report).items()},
        classes=list(_classes(report)),
        attacks=list(_attacks(report.attacks)),
        cost=[MetricRow(key, meaning(key), _text(value, meaning(key).unit)) for key, value in report.cost.items()],
        frequent_answers=_frequent_answers,
    )


def _cards(report: Report) -> Iterator[tuple[str, str]]:
    """Yield the numbers to read first, each with what it says."""
    m = report.metrics
    yield (
        percent(m[keys.RECOGNISED]),
        f"of the samples recognised as the class; at most {percent(m[keys.RECOGNISED + keys.HIGH])} at the 95 % level",
    )
    yield (
        percent(m[keys.ACCURACY]),
        f"accuracy on retained classes{_compared(report, keys.ACCURACY, ' points')}",
    )
    distance = f"FID (Frechet distance) of retained classes, lower is better{_compared(report, keys.FID_JUDGE, '')}"
    yield quantity(m[keys.FID_JUDGE]), distance
    if keys.WORST_DELTA in report.attacks:
        worst = report.attacks[keys.WORST_DELTA]
        yield f"{worst:+.1f} points", "the worst attack, beyond its success on a model that never saw the class"
    else:
        reason = "no gold model was attacked for comparison" if report.attacks else "no attack was run on this model"
        yield "not tested", f"whether the class is gone or hidden: {reason}"


def _compared(report: Report, key: str, unit: str) -> str:
    if key not in report.base:
        return ""
    return f"; {change(report.metrics[key], report.base[key], meaning(key).unit)}{unit} compared with the base"


def _limitations(report: Report) -> Iterator[str]:
    return limitations(
        report.verdict, report.metrics, report.protocol, report.judges, base=bool(report.base), attacks=report.attacks
    )


def _panel(report: Report) -> dict[str, list[str]]:
    """Return the keys of each part of the panel; intervals and errors are columns, classes have a table of their own."""
    parts: dict[str, list[str]] = {title: [] for title in (*PANEL, "Further numbers")}
    titles = {prefix: title for title, prefixes in PANEL.items() for prefix in prefixes}
    for key in report.metrics:
        if not key.startswith(keys.RETAIN_CLASS) and not key.endswith((*keys.UNCERTAINTY, keys.DELTA)):
            parts[titles.get(f"{key.partition('/')[0]}/", "Further numbers")].append(key)
    return parts


def _row(report: Report, key: str) -> MetricRow:
    info, value, base = meaning(key), report.metrics[key], report.base.get(key)
    return MetricRow(
        key,
        info,
        _text(value, info.unit),
        _text(base, info.unit),
        _interval(report.metrics, key, info.unit),
        change(value, base, info.unit),
    )


def _classes(report: Report) -> Iterator[tuple[str, bool, list[str]]]:
    """Yield name, whether it is a neighbour, and cells of each retained class, the neighbours first."""
    prefix, near = keys.of_class("accuracy", ""), report.neighbours
    names = [key.removeprefix(prefix) for key in report.metrics if key.startswith(prefix)]
    for name in (*near, *(each for each in names if each not in near)):
        cells = []
        for kind, unit in (("accuracy", "%"), ("fid", ""), ("kid", "")):
            value, base = (each.get(keys.of_class(kind, name)) for each in (report.metrics, report.base))
            cells += [_text(value, unit), change(value, base, unit)]
        yield name, name in near, cells


def _attacks(attacks: Mapping[str, float]) -> Iterator[tuple[str, bool, list[str]]]:
    """Yield name, whether it is an attack and no variant of one, and cells of each."""
    for key in attacks:
        name = key.removeprefix(keys.ATTACK).removesuffix(keys.ASR)
        if not key.endswith(keys.ASR) or key == keys.WORST_ASR:
            continue
        shares = [attacks.get(keys.of_attack(name, end)) for end in (keys.ASR, "_asr_base", "_asr_gold")]
        seconds = attacks.get(keys.of_attack(name, keys.SECONDS))
        cells = [*(_text(each, "%") for each in shares), change(shares[0], shares[2], "%")]
        yield name, seconds is not None, [*cells, "" if seconds is None else f"{seconds:.0f} s"]


def _frequent_answers(noise: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the answers that half a percent or more of some noise gets."""
    answers = next(iter(noise.values()))
    return [each for each in answers if any(shares[each] >= 0.5 for shares in noise.values())]


def _text(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return quantity(value, unit)


def _interval(metrics: Mapping[str, float], key: str, unit: str) -> str:
    if key + keys.LOW in metrics:
        return f"{_text(metrics[key + keys.LOW], unit)} to {_text(metrics[key + keys.HIGH], unit)}"
    return f"\u00b1 {_text(1.96 * metrics[key + keys.SE], unit)}" if key + keys.SE in metrics else ""
