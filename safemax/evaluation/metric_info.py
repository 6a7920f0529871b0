"""What each number of an evaluation means, its unit and which direction is better: stated once, for every reader of it."""

from __future__ import annotations

import re

from safemax import metric_keys as keys
from safemax import metrics
from safemax.errors import unknown
from safemax.metrics.measurement import MetricInfo

_OF_ATTACKS_AND_COST: dict[str, MetricInfo] = {
    "attack/asr": MetricInfo("success of an attack on the model, by a judge it did not use", "%", "lower"),
    "attack/asr_base": MetricInfo("success of the same attack on the base", "%", ""),
    "attack/asr_gold": MetricInfo("success of the same attack on the retrained model", "%", ""),
    "attack/delta_gold": MetricInfo("success beyond that on the retrained model", "points", "lower"),
    keys.WORST_DELTA: MetricInfo("largest of all those differences", "points", "lower"),
    keys.WORST_ASR: MetricInfo("largest success of all attacks", "%", "lower"),
    keys.RESILIENCE: MetricInfo("1 minus the mean of the attacks' differences, negative ones as 0", "0..1", "higher"),
    "attack/s50": MetricInfo(
        "fine-tuning steps until half of the samples are recognised; missing if never", "steps", "higher"
    ),
    "attack/t0": MetricInfo(
        "largest noise level, as a share of T, from which half of the images are completed", "0..1", "lower"
    ),
    "attack/seconds": MetricInfo("time that an attack took on the model", "seconds", ""),
    keys.SETUP_MINUTES: MetricInfo("time before the first step: masks, Fisher information, replay", "minutes", "lower"),
    keys.RUNTIME_MINUTES: MetricInfo("time of the optimisation steps", "minutes", "lower"),
    keys.EVALUATION_MINUTES: MetricInfo("time of sampling and measuring", "minutes", "lower"),
    keys.SEARCH_MINUTES: MetricInfo("time of the search that chose the knobs, all its trials", "minutes", "lower"),
    keys.PEAK_MEMORY_GB: MetricInfo("most memory held at once", "GB", "lower"),
    keys.IMAGES_SEEN: MetricInfo("training images over all steps", "images", "lower"),
    keys.SIDE_STATE_GB: MetricInfo("what the method stores besides the weights", "GB", "lower"),
}
# An attack's numbers carry its name, a class's numbers carry the class's: attack/relearn_10_asr, retain_class/kid_ship.
_NAMED = (
    (re.compile(r"attack/.+_(asr|asr_base|asr_gold|delta_gold|seconds)"), r"attack/\1"),
    (re.compile(r"attack/.+_(s50|t0)(_base|_gold)?"), r"attack/\1"),
    (re.compile(r"retain_class/(accuracy|fid|kid)_.+"), r"retain_class/\1"),
)
_ENDS = {
    keys.LOW: "lower end of its 95 % interval",
    keys.HIGH: "upper end of its 95 % interval",
    keys.SE: "its standard error",
    keys.DELTA: "its difference from the base",
}


def infos() -> dict[str, MetricInfo]:
    """Return what is stated of every metric, by key: the panel's by the files of safemax.metrics, the others by this one."""
    panel = {key: info for metric in metrics.available().values() for key, info in metric.infos.items()}
    return panel | _OF_ATTACKS_AND_COST


def meaning(name: str) -> MetricInfo:
    """Return what a metric means, by its key in a run: forget/ua, forget/ua_low, base/retain/kid, retain_class/kid_se_ship.

    Raises:
        InputError: nothing is stated about that key.
    """
    known = infos()
    if name in known:
        return known[name]
    if name.startswith(keys.BASE):
        about = meaning(name.removeprefix(keys.BASE))
        return about._replace(text=f"of the base: {about.text}")
    for end, text in _ENDS.items():
        bare = name.removesuffix(end) if name.endswith(end) else name.replace(f"kid{end}_", "kid_")
        if bare != name and (end != keys.DELTA or name.endswith(end)):
            about = meaning(bare)
            return about._replace(text=f"{about.text}: {text}", better=about.better if end == keys.DELTA else "")
    for pattern, stated in _NAMED:
        if pattern.fullmatch(name):
            return known[pattern.sub(stated, name)]
    raise unknown("metric", name, known)


def markdown() -> str:
    """Return `infos` as a Markdown table, for the documentation."""
    rows = [f"| `{name}` | {text} | {unit} | {better} |" for name, (text, unit, better) in infos().items()]
    return "\n".join(["| metric | meaning | unit | better |", "|---|---|---|---|", *rows])
