"""The keys of the metrics that code reads by name, exactly as MLflow stores them.

What each means is in safemax.evaluation.metric_info. A key that only its own metric writes needs no name here.
"""

from __future__ import annotations

from collections.abc import Mapping

# Beside a number: the ends of its 95 % interval, its standard error, its difference from the base.
LOW, HIGH, SE, DELTA = "_low", "_high", "_se", "_delta"
INTERVAL = ("", LOW, HIGH)
UNCERTAINTY = (LOW, HIGH, SE)
# The same key for the base, as in base/forget/ua.
BASE = "base/"
LOSS = "loss/"

FORGET = "forget/"
UA = "forget/ua"
UA_REJECT = "forget/ua_reject"
RECOGNISED = "forget/recognised"
REJECTED = "forget/rejected"
OTHER = "forget/other"
PRESENT = "forget/present"
NOISE_ATTRACTED = "forget/noise_attracted"
ENTROPY = "forget/entropy"
PROBABILITY = "forget/probability"
KID = "forget/kid"
KID_REAL = "forget/kid_real"
KID_NOISE = "forget/kid_noise"
KID_NORMALISED = "forget/kid_normalised"
PRECISION = "forget/precision"
COVERAGE = "forget/coverage"
SECOND_UA_REJECT = "forget/second_ua_reject"
SECOND_RECOGNISED = "forget/second_recognised"
SECOND_REJECT = "forget/second_reject"
SECOND_OTHER = "forget/second_other"
SECOND_PRECISION = "forget/second_precision"

JUDGES = "judges/"
JUDGE_RECALL = "judges/recall"
JUDGE_FALSE_ALARM = "judges/false_alarm"
JUDGE_ACCURACY = "judges/accuracy"
JUDGE_CALIBRATION = "judges/calibration_error"
JUDGE_NOISE = "judges/noise_rejected"

# The samplers that people use, beside the protocol's: their names, and the numbers of each and of the worst.
USER_SAMPLERS = ("clipped", "unguided", "strong")
SAMPLERS = "samplers/"
WORST_SAMPLER_ACCURACY = "samplers/worst_accuracy"
WORST_SAMPLER_RECOGNISED = "samplers/worst_recognised"
WORST_SAMPLER_LOSS = "samplers/worst_loss"

PIXELS = "pixels/"
CONSTANT = "pixels/constant"

RETAIN = "retain/"
ACCURACY = "retain/accuracy"
FID_JUDGE = "retain/fid_judge"
FID_INCEPTION = "retain/fid_inception"
RETAIN_KID = "retain/kid"
NEIGHBOURS = "neighbours/"
RETAIN_CLASS = "retain_class/"

GOLD = "gold/"
GOLD_KID_FORGET = "gold/kid_forget"
GOLD_KID_RETAIN = "gold/kid_retain"
GOLD_ANSWERS_JS = "gold/answers_js"

ATTACK = "attack/"
ASR, DELTA_GOLD, SECONDS = "_asr", "_delta_gold", "_seconds"
WORST_ASR = "attack/worst_asr"
WORST_DELTA = "attack/worst_delta"
RESILIENCE = "attack/resilience"

COST = "cost/"
SETUP_MINUTES = "cost/setup_minutes"
RUNTIME_MINUTES = "cost/runtime_minutes"
EVALUATION_MINUTES = "cost/evaluation_minutes"
SEARCH_MINUTES = "cost/search_minutes"
PEAK_MEMORY_GB = "cost/peak_memory_gb"
IMAGES_SEEN = "cost/images_seen"
SIDE_STATE_GB = "cost/side_state_gb"

# What stays out of a run's charts, and is only in its metrics.json: the base's numbers, those of one class, of classes
# forgotten earlier, of single pixels and of the judges; the ends of intervals; and numbers that explain others.
_DETAIL_GROUPS = (BASE, RETAIN_CLASS, "earlier/", PIXELS, JUDGES)
_DETAILS = frozenset({
    *(REJECTED, OTHER, PRESENT, NOISE_ATTRACTED, PROBABILITY, KID, KID_REAL, KID_NOISE, KID_NORMALISED, COVERAGE),
    *(SECOND_RECOGNISED, SECOND_REJECT, SECOND_OTHER, SECOND_PRECISION, SIDE_STATE_GB, RETAIN_KID, RETAIN_KID + DELTA),
})  # fmt: skip
# MLflow lists metrics in the order in which they were logged.
_READ_FIRST = (UA, UA_REJECT, RECOGNISED, FID_JUDGE, FID_JUDGE + DELTA, ACCURACY, ACCURACY + DELTA)


def charted(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return what a run shows of an evaluation's metrics, what one reads first coming first.

    Six digits are enough to read, and MLflow's tables show every digit that it is given; metrics.json holds all metrics whole.
    """
    ordered = [*(key for key in _READ_FIRST if key in metrics), *(key for key in metrics if key not in _READ_FIRST)]
    return {
        key: _readable(metrics[key])
        for key in ordered
        if key not in _DETAILS and not key.startswith(_DETAIL_GROUPS) and not key.endswith(UNCERTAINTY)
    }


def _readable(value: float) -> float:
    """Return a value of six significant digits; a count stays as it is."""
    return value if float(value).is_integer() else float(f"{value:.6g}")


def of_class(kind: str, name: str) -> str:
    """Return the key of a retained class's own number, such as retain_class/kid_ship.

    Args:
        kind: accuracy, fid, kid or kid_se.
        name: of the class.
    """
    return f"{RETAIN_CLASS}{kind}_{name}"


def of_attack(name: str, number: str) -> str:
    """Return the key of an attack's number, such as attack/invert_asr_gold.

    Args:
        name: of the attack or of one of its variants.
        number: what it is, such as ASR, ASR with "_gold" behind, or SECONDS; it begins with an underscore.
    """
    return f"{ATTACK}{name}{number}"


def of_sampler(name: str, number: str) -> str:
    """Return the key of a number under a sampler that people use, such as samplers/clipped_accuracy.

    Args:
        name: of USER_SAMPLERS.
        number: accuracy or recognised.
    """
    return f"{SAMPLERS}{name}_{number}"
