"""Runs and versions of years are stored under these keys: a constant may get another name, never another value."""

from __future__ import annotations

import math

import pytest

from safemax import metric_keys as keys
from safemax.evaluation import metric_info

STORED = {
    "LOW": "_low",
    "HIGH": "_high",
    "SE": "_se",
    "DELTA": "_delta",
    "BASE": "base/",
    "FORGET": "forget/",
    "UA": "forget/ua",
    "UA_REJECT": "forget/ua_reject",
    "RECOGNISED": "forget/recognised",
    "REJECTED": "forget/rejected",
    "OTHER": "forget/other",
    "PRESENT": "forget/present",
    "NOISE_ATTRACTED": "forget/noise_attracted",
    "ENTROPY": "forget/entropy",
    "PROBABILITY": "forget/probability",
    "KID": "forget/kid",
    "KID_REAL": "forget/kid_real",
    "KID_NOISE": "forget/kid_noise",
    "KID_NORMALISED": "forget/kid_normalised",
    "PRECISION": "forget/precision",
    "COVERAGE": "forget/coverage",
    "SECOND_UA_REJECT": "forget/second_ua_reject",
    "SECOND_RECOGNISED": "forget/second_recognised",
    "SECOND_REJECT": "forget/second_reject",
    "SECOND_OTHER": "forget/second_other",
    "SECOND_PRECISION": "forget/second_precision",
    "SAMPLERS": "samplers/",
    "LOSS": "loss/",
    "WORST_SAMPLER_ACCURACY": "samplers/worst_accuracy",
    "WORST_SAMPLER_RECOGNISED": "samplers/worst_recognised",
    "WORST_SAMPLER_LOSS": "samplers/worst_loss",
    "JUDGES": "judges/",
    "JUDGE_RECALL": "judges/recall",
    "JUDGE_FALSE_ALARM": "judges/false_alarm",
    "JUDGE_ACCURACY": "judges/accuracy",
    "JUDGE_CALIBRATION": "judges/calibration_error",
    "JUDGE_NOISE": "judges/noise_rejected",
    "PIXELS": "pixels/",
    "CONSTANT": "pixels/constant",
    "RETAIN": "retain/",
    "ACCURACY": "retain/accuracy",
    "FID_JUDGE": "retain/fid_judge",
    "FID_INCEPTION": "retain/fid_inception",
    "RETAIN_KID": "retain/kid",
    "NEIGHBOURS": "neighbours/",
    "RETAIN_CLASS": "retain_class/",
    "GOLD": "gold/",
    "GOLD_KID_FORGET": "gold/kid_forget",
    "GOLD_KID_RETAIN": "gold/kid_retain",
    "GOLD_ANSWERS_JS": "gold/answers_js",
    "ATTACK": "attack/",
    "ASR": "_asr",
    "DELTA_GOLD": "_delta_gold",
    "SECONDS": "_seconds",
    "WORST_ASR": "attack/worst_asr",
    "WORST_DELTA": "attack/worst_delta",
    "RESILIENCE": "attack/resilience",
    "COST": "cost/",
    "SETUP_MINUTES": "cost/setup_minutes",
    "RUNTIME_MINUTES": "cost/runtime_minutes",
    "EVALUATION_MINUTES": "cost/evaluation_minutes",
    "SEARCH_MINUTES": "cost/search_minutes",
    "PEAK_MEMORY_GB": "cost/peak_memory_gb",
    "IMAGES_SEEN": "cost/images_seen",
    "SIDE_STATE_GB": "cost/side_state_gb",
}


def test_every_constant_has_the_value_that_is_stored() -> None:
    constants = {name: value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}
    assert constants == STORED


@pytest.mark.parametrize("key", [value for value in STORED.values() if "/" in value and not value.endswith("/")])
def test_every_key_has_a_meaning(key: str) -> None:
    assert metric_info.meaning(key).text


def test_the_keys_of_classes_and_attacks_carry_their_names() -> None:
    assert keys.of_class("kid_se", "ship") == "retain_class/kid_se_ship"
    assert keys.of_attack("relearn_10", keys.ASR + "_gold") == "attack/relearn_10_asr_gold"
    assert keys.of_attack("invert", keys.SECONDS) == "attack/invert_seconds"


def test_what_a_run_shows_begins_with_what_one_reads_first_and_leaves_out_details() -> None:
    measured = {"cost/runtime_minutes": 1.0, "base/forget/ua": 0.0, "judges/recall": 90.0, "forget/present": 1.0}
    measured |= {"forget/entropy": 2.0, "retain/fid_judge": 3.0, "forget/ua_low": 98.0, "forget/ua": 99.0}
    assert list(keys.charted(measured)) == ["forget/ua", "retain/fid_judge", "cost/runtime_minutes", "forget/entropy"]


def test_what_a_run_shows_has_six_digits_and_whole_counts() -> None:
    measured = {keys.UA: 99.80000305175781, keys.FID_JUDGE: 5.190746261552022, keys.IMAGES_SEEN: 45_000_128.0}
    measured |= {keys.ACCURACY: math.nan}
    shown = keys.charted(measured)
    assert (shown[keys.UA], shown[keys.FID_JUDGE], shown[keys.IMAGES_SEEN]) == (99.8, 5.19075, 45_000_128)
    assert math.isnan(shown[keys.ACCURACY])
