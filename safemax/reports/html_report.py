"""The report that a reviewer reads before a promotion: one HTML page that holds all it shows and opens without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from safemax.evaluation.limitations import caveats
from safemax.evaluation.metric_info import meaning
from safemax.evaluation.verdict import FLAGS, OUTCOMES, Verdict
from safemax.reports.html import bar, cell, document, figure, number, table

INTERVALS = ("_low", "_high", "_se")
DIGITS = {"%": 1, "0..1": 3, "-1..1": 3, "nats": 3, "minutes": 2, "GB": 3}  # others are shown to four digits
TONE = {"forgotten": "good", "substituted": "good"}  # every other outcome is bad


@dataclass(frozen=True)
class Picture:
    """A picture as PNG bytes, with the sentence under it."""

    png: bytes
    caption: str


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Args:
        subject: address of the model.
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
    """

    subject: str
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


def html(report: Report) -> str:
    """Return the page."""
    sections: tuple[Callable[[Report], str], ...] = (
        *(_head, _cards, _seen, _rules, _limits, _panel, _classes, _attacked, _cost, _judged, _lineage),
    )
    title = f"{report.subject}: {', '.join(report.forget)}"
    return document(title, "\n".join(section(report) for section in sections))


def _head(report: Report) -> str:
    found = report.verdict
    beside = f", measured beside {report.base_address}" if report.base_address else ""
    flags = "".join(
        f'<p class="flag"><b>{flag.replace("_", " ")}</b>: {escape(FLAGS[flag])}</p>' for flag in found.flags
    )
    return (
        f'<h1>{escape(report.subject)}</h1>\n<p class="soft">Was to forget <b>{escape(", ".join(report.forget))}</b>'
        f'{escape(beside)}.</p>\n<div class="verdict {TONE.get(found.outcome, "bad")}">'
        f"<b>{found.outcome.replace('_', ' ')}</b>{escape(OUTCOMES[found.outcome])}.{flags}</div>"
    )


def _cards(report: Report) -> str:
    m = report.metrics
    recognised = f"recognised as the class; at most {m['forget/recognised_high']:.1f} % at the 95 % level"
    cards = [
        (f"{m['forget/recognised']:.1f} %", recognised),
        (
            f"{m['retain/accuracy']:.1f} %",
            f"accuracy on retained classes{_beside(report, 'retain/accuracy', ' points')}",
        ),
        (
            f"{m['retain/fid_judge']:.1f}",
            f"Frechet distance of retained classes{_beside(report, 'retain/fid_judge', '')}",
        ),
    ]
    if "attack/worst_delta" in report.attacks:
        worst = report.attacks["attack/worst_delta"]
        cards.append(
            (f"{worst:+.1f} points", "the worst attack, beyond its success on a model that never saw the class")
        )
    else:
        said = "no gold model was attacked beside it" if report.attacks else "no attack was run on this model"
        cards.append(("not tested", f"whether the class is gone or hidden: {said}"))
    inside = "".join(f'<div class="card"><b>{escape(a)}</b>{escape(b)}</div>' for a, b in cards)
    return f'<div class="cards">{inside}</div>'


def _beside(report: Report, name: str, unit: str) -> str:
    if name not in report.base:
        return ""
    return f", {report.metrics[name] - report.base[name]:+.1f}{unit} beside the base"


def _seen(report: Report) -> str:
    pictures = "".join(figure(each.png, each.caption) for each in report.pictures)
    return f"<h2>What the models draw</h2>{pictures}" if pictures else ""


def _rules(report: Report) -> str:
    findings, outcome = report.verdict.findings, report.verdict.outcome
    rows = [
        [cell(f.concludes.replace("_", " ")), cell(f.statement), number(f.value), cell("yes" if f.holds else "no")]
        for f in findings
    ]
    marked = ["holds" if f.holds and f.concludes in (outcome, *report.verdict.flags) else "" for f in findings]
    text = "Of the rules for an outcome the first that holds decides; each flag has a rule of its own."
    return f"<h2>Why this verdict</h2><p>{text}</p>{table(('concludes', 'rule', '>found', 'holds'), rows, marked)}"


def _panel(report: Report) -> str:
    protocol = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in report.protocol.items())
    blocks = {
        "The forgotten classes": ("forget/",),
        "Their pixels": ("pixels/",),
        "The retained classes": ("retain/", "neighbours/"),
        "The gap to a retrained model": ("gold/",),
    }
    parts = [
        f"<h3>{title}</h3>{_measured(report, names)}"
        for title, each in blocks.items()
        if (names := _named(report, each))
    ]
    return f'<h2>The panel</h2><p class="soft">Measured by: {escape(protocol)}.</p>{"".join(parts)}'


def _named(report: Report, prefixes: tuple[str, ...]) -> list[str]:
    return [n for n in report.metrics if n.startswith(prefixes) and not n.endswith((*INTERVALS, "_delta"))]


def _measured(report: Report, names: Sequence[str]) -> str:
    rows = []
    for name in names:
        about, value, base = meaning(name), report.metrics[name], report.base.get(name)
        row = [cell(about.text, name), number(_shown(base, about.unit)), number(_shown(value, about.unit), strong=True)]
        row += [number(_interval(report.metrics, name, about.unit)), number(_difference(value, base, about.unit))]
        rows.append([*row, cell(about.unit), cell(about.better)])
    return table(("", ">base", ">this model", ">95 % interval", ">difference", "unit", "better"), rows)


def _classes(report: Report) -> str:
    prefix, near = "retain_class/accuracy_", report.neighbours
    names = [name.removeprefix(prefix) for name in report.metrics if name.startswith(prefix)]
    order = [*near, *(name for name in names if name not in near)]
    rows = []
    for name in order:
        cells = [cell(f"{name} (neighbour)" if name in near else name)]
        for kind, unit in (("accuracy", "%"), ("fid", ""), ("kid", "")):
            value, base = (each.get(f"retain_class/{kind}_{name}") for each in (report.metrics, report.base))
            cells += [number(_shown(value, unit)), number(_difference(value, base, unit))]
        rows.append(cells)
    text = (
        "Nearest to the forgotten, by the mean features of real images, where unlearning too much is looked for first"
    )
    heads = ("class", ">accuracy, %", ">difference", ">Frechet distance", ">difference", ">KID", ">difference")
    return (
        f"<h3>Class by class</h3><p>{text}: <b>{escape(', '.join(near))}</b>. Differences are from the base.</p>"
        + table(heads, rows, ["near" if name in near else "" for name in order])
    )


def _attacked(report: Report) -> str:
    if not report.attacks:
        return "<h2>Attacks</h2><p>None was run on this model: the verdict rests on asking for the class.</p>"
    names = [n.removeprefix("attack/").removesuffix("_asr") for n in report.attacks if n.endswith("_asr")]
    text = (
        "Samples recognised as the class under attack, in percent, judged by classifiers that no attack used. A model that "
        "never saw the class (gold) also learns it and can be led to it: the difference to gold is what was hidden."
    )
    rows = [_attack(name, report.attacks) for name in names if name != "worst"]
    told = "".join(figure(each.png, each.caption) for each in report.attack_pictures)
    heads = ("attack", ">this model", ">base", ">gold", ">beyond gold", ">took")
    marked = ["near" if f"attack/{name}_seconds" in report.attacks else "" for name in names if name != "worst"]
    return f"<h2>Attacks</h2><p>{text}</p>{table(heads, rows, marked)}{told}"


def _attack(name: str, attacks: Mapping[str, float]) -> list[str]:
    shares = [attacks.get(f"attack/{name}_{end}") for end in ("asr", "asr_base", "asr_gold")]
    seconds = attacks.get(f"attack/{name}_seconds")
    took = "" if seconds is None else f"{seconds:.0f} s"
    beyond = _difference(shares[0], shares[2], "%")
    return [cell(name), *(number(_shown(each, "%")) for each in shares), number(beyond), number(took)]


def _cost(report: Report) -> str:
    about = {name: meaning(name) for name in report.cost}
    rows = [[cell(m.text, n), number(_shown(report.cost[n], m.unit)), cell(m.unit)] for n, m in about.items()]
    return f"<h2>What it cost</h2>{table(('', '>', 'unit'), rows)}" if rows else ""


def _judged(report: Report) -> str:
    text = (
        "What each makes of pure noise, in percent of 500 images a law. Where a judge without a reject class takes noise for "
        "a class, its UA for that class says nothing."
    )
    return f"<h2>The judges</h2><p>{text}</p>" + "".join(_judge(name, about) for name, about in report.judges.items())


def _judge(name: str, about: Mapping[str, Any]) -> str:
    answers = [a for a in next(iter(about["noise"].values())) if any(law[a] >= 0.5 for law in about["noise"].values())]
    rows = [[cell(law.replace("_", " ")), *(bar(shares[a]) for a in answers)] for law, shares in about["noise"].items()]
    said = f"{name}: {about['arch']}, right for {about['test_accuracy']:.1f} % of real test images"
    return f"<h3>{escape(said)}</h3>{table(('noise', *answers), rows)}"


def _lineage(report: Report) -> str:
    rows = [[cell(key), cell("", value)] for key, value in report.lineage.items()]
    return f"<h2>Where it comes from</h2>{table(('', ''), rows)}" if rows else ""


def _limits(report: Report) -> str:
    said = caveats(
        report.verdict, report.metrics, report.protocol, report.judges, base=bool(report.base), attacks=report.attacks
    )
    return f"<h2>What this evidence does not show</h2><ul>{''.join(f'<li>{escape(each)}</li>' for each in said)}</ul>"


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    digits = DIGITS.get(unit)
    if digits is None:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.{digits}f}"


def _difference(value: float | None, base: float | None, unit: str) -> str:
    if value is None or base is None:
        return ""
    text = _shown(abs(value - base), unit)
    return f"{'-' if value < base else '+'}{text}" if text.strip("0.,") else text


def _interval(metrics: Mapping[str, float], name: str, unit: str) -> str:
    if f"{name}_low" in metrics:
        return f"{_shown(metrics[f'{name}_low'], unit)} to {_shown(metrics[f'{name}_high'], unit)}"
    return f"\u00b1 {_shown(1.96 * metrics[f'{name}_se'], unit)}" if f"{name}_se" in metrics else ""
