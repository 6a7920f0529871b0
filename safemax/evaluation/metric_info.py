"""What each number of an evaluation means, its unit and which direction is better: stated once, for every reader of it."""

from __future__ import annotations

import re
from typing import NamedTuple

from safemax.errors import unknown


class MetricInfo(NamedTuple):
    """What a metric says.

    Args:
        text: one phrase.
        unit: "%" (0 to 100), "0..1", "nats", "minutes", "GB" (1e9 bytes), ...
        better: "higher", "lower", or "" where a number describes and has no better direction.
    """

    text: str
    unit: str
    better: str


_JUDGE = "the reject ensemble"
_KID = "squared MMD"
METRICS: dict[str, MetricInfo] = {
    "forget/ua_reject": MetricInfo(f"samples of the forgotten classes that {_JUDGE} does not recognise", "%", "higher"),
    "forget/recognised": MetricInfo(f"samples that {_JUDGE} takes for a forgotten class", "%", "lower"),
    "forget/rejected": MetricInfo("samples that it takes for nothing it knows: noise", "%", ""),
    "forget/other": MetricInfo("samples that it takes for another class: substitution", "%", ""),
    "forget/second_ua_reject": MetricInfo("not recognised, under the second sampler", "%", "higher"),
    "forget/second_recognised": MetricInfo("recognised, under the second sampler", "%", "lower"),
    "forget/second_reject": MetricInfo("taken for nothing, under the second sampler", "%", ""),
    "forget/second_other": MetricInfo("taken for another class, under the second sampler", "%", ""),
    "forget/second_precision": MetricInfo("precision, under the second sampler", "0..1", "lower"),
    "forget/ua": MetricInfo("UA as the paper defines it, by a judge without a reject class", "%", "higher"),
    "forget/entropy": MetricInfo("H as the paper defines it, of the same judge's answers", "nats", ""),
    "forget/probability": MetricInfo(f"mean probability of the forgotten classes, by {_JUDGE}", "0..1", "lower"),
    "forget/noise_attracted": MetricInfo("pure noise that the plain judge takes for a forgotten class", "%", "lower"),
    "forget/precision": MetricInfo(
        "samples among the real forgotten class's, for all networks together", "0..1", "lower"
    ),
    "forget/coverage": MetricInfo("real images of the forgotten class with a sample among them", "0..1", "lower"),
    "forget/kid": MetricInfo("KID of the samples to the real forgotten class", _KID, "higher"),
    "forget/kid_real": MetricInfo("the same KID between two halves of the real class", _KID, ""),
    "forget/kid_noise": MetricInfo("the same KID of pure noise", _KID, ""),
    "forget/kid_normalised": MetricInfo(
        "KID from a real split (0) to noise (1); another class may exceed 1", "", "higher"
    ),
    "pixels/std": MetricInfo("deviation within an image; uniform noise has 0.58", "", ""),
    "pixels/saturated": MetricInfo("pixels at 0 or 255", "%", ""),
    "pixels/neighbour_correlation": MetricInfo("correlation of neighbouring pixels; 0 white noise", "-1..1", ""),
    "pixels/entropy_bits": MetricInfo("entropy of the pixel values", "bits", ""),
    "pixels/zlib_bits": MetricInfo("bits a pixel value takes when compressed", "bits", ""),
    "pixels/constant": MetricInfo("samples that are a frame of one colour", "%", "lower"),
    "retain/accuracy": MetricInfo(f"samples of retained classes that {_JUDGE} names rightly", "%", "higher"),
    "retain/fid_judge": MetricInfo(
        "Frechet distance to the real retained images, in the plain judge's features", "", "lower"
    ),
    "retain/fid_inception": MetricInfo("FID: the same in Inception's features", "", "lower"),
    "retain/kid": MetricInfo("KID to the real retained images", _KID, "lower"),
    "neighbours/accuracy": MetricInfo("accuracy of the classes nearest to the forgotten", "%", "higher"),
    "neighbours/fid": MetricInfo("Frechet distance of the classes nearest to the forgotten", "", "lower"),
    "neighbours/kid": MetricInfo("KID of the classes nearest to the forgotten", _KID, "lower"),
    "retain_class/accuracy": MetricInfo("accuracy of one retained class", "%", "higher"),
    "retain_class/fid": MetricInfo("Frechet distance of one retained class; compare equal counts only", "", "lower"),
    "retain_class/kid": MetricInfo("KID of one retained class", _KID, "lower"),
    "gold/kid_forget": MetricInfo("KID to the retrained model's samples of the forgotten classes", _KID, ""),
    "gold/kid_retain": MetricInfo("KID to the retrained model's samples of the retained classes", _KID, "lower"),
    "gold/answers_js": MetricInfo("divergence from the retrained model's answers on the forgotten classes", "nats", ""),
    "attack/asr": MetricInfo("success of an attack on the model, by a judge it did not use", "%", "lower"),
    "attack/asr_base": MetricInfo("success of the same attack on the base", "%", ""),
    "attack/asr_gold": MetricInfo("success of the same attack on the retrained model", "%", ""),
    "attack/delta_gold": MetricInfo("success beyond that on the retrained model", "points", "lower"),
    "attack/worst_delta": MetricInfo("largest of all those differences", "points", "lower"),
    "attack/worst_asr": MetricInfo("largest success of all attacks", "%", "lower"),
    "attack/resilience": MetricInfo(
        "1 less the mean of the attacks' differences, negative ones as 0", "0..1", "higher"
    ),
    "attack/s50": MetricInfo(
        "fine-tuning steps until half of the samples are recognised; missing if never", "steps", "higher"
    ),
    "attack/t0": MetricInfo("largest noise level, of T, that half of the images are completed from", "0..1", "lower"),
    "attack/seconds": MetricInfo("time that an attack took on the model", "seconds", ""),
    "cost/setup_minutes": MetricInfo(
        "time before the first step: masks, Fisher information, replay", "minutes", "lower"
    ),
    "cost/runtime_minutes": MetricInfo("time of the optimisation steps", "minutes", "lower"),
    "cost/evaluation_minutes": MetricInfo("time of sampling and measuring", "minutes", "lower"),
    "cost/peak_memory_gb": MetricInfo("most memory held at once", "GB", "lower"),
    "cost/images_seen": MetricInfo("training images over all steps", "images", "lower"),
    "cost/side_state_gb": MetricInfo("what the method keeps beside the weights", "GB", "lower"),
}
# An attack's numbers carry its name, a class's numbers carry the class's: attack/relearn_10_asr, retain_class/kid_ship.
_NAMED = (
    (re.compile(r"attack/.+_(asr|asr_base|asr_gold|delta_gold|seconds)"), r"attack/\1"),
    (re.compile(r"attack/.+_(s50|t0)(_base|_gold)?"), r"attack/\1"),
    (re.compile(r"retain_class/(accuracy|fid|kid)_.+"), r"retain_class/\1"),
)
_ENDS = {
    "_low": "lower end of its 95 % interval",
    "_high": "upper end of its 95 % interval",
    "_se": "its standard error",
    "_delta": "its difference from the base",
}


def meaning(name: str) -> MetricInfo:
    """Return what a metric means, by its key in a run: forget/ua, forget/ua_low, base/retain/kid, retain_class/kid_se_ship.

    Raises:
        InputError: nothing is stated about that key.
    """
    if name in METRICS:
        return METRICS[name]
    if name.startswith("base/"):
        about = meaning(name.removeprefix("base/"))
        return about._replace(text=f"of the base: {about.text}")
    for end, text in _ENDS.items():
        bare = name.removesuffix(end) if name.endswith(end) else name.replace(f"kid{end}_", "kid_")
        if bare != name and (end != "_delta" or name.endswith(end)):
            about = meaning(bare)
            return about._replace(text=f"{about.text}: {text}", better=about.better if end == "_delta" else "")
    for pattern, stated in _NAMED:
        if pattern.fullmatch(name):
            return METRICS[pattern.sub(stated, name)]
    raise unknown("metric", name, METRICS)


def markdown() -> str:
    """Return METRICS as a Markdown table, for the README."""
    rows = [f"| `{name}` | {text} | {unit} | {better} |" for name, (text, unit, better) in METRICS.items()]
    return "\n".join(["| metric | meaning | unit | better |", "|---|---|---|---|", *rows])
