from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from safemax.reports.contest_page import render_contest
from safemax.reports.contest_tables import components, interval, standings


def balanced(*, bases=6, classes=6, seeds=4, evaluations=4, deviations=(3.0, 2.0, 0.0, 1.0, 0.5), seed=0):
    """Return rows whose value is the sum of independent normal parts of these deviations."""
    rng = np.random.default_rng(seed)
    of_base, of_class, of_both, of_seed, noise = deviations
    b, c = rng.normal(0, of_base, bases), rng.normal(0, of_class, classes)
    both = rng.normal(0, of_both, (bases, classes))
    made = []
    for i in range(bases):
        for j in range(classes):
            for s in range(seeds):
                correction = 10 + b[i] + c[j] + both[i, j] + rng.normal(0, of_seed)
                made += [
                    {"base": i, "class": j, "seed": s, "evaluation": e, "fid": correction + rng.normal(0, noise)}
                    for e in range(evaluations)
                ]
    return pd.DataFrame(made)


def test_the_parts_of_the_variance_are_found_apart():
    found = [components(balanced(seed=seed), "fid") for seed in range(30)]
    means = {name: np.mean([getattr(each, name) for each in found]) for name in vars(found[0])}
    expected = {"base": 9, "label": 4, "both": 0, "seed": 1, "evaluation": 0.25}
    assert means == pytest.approx(expected, rel=0.3, abs=0.1)


def test_a_part_with_one_of_a_kind_is_not_told():
    parts = components(balanced(bases=1, seeds=1, evaluations=1), "fid")
    assert np.isnan([parts.base, parts.both, parts.seed, parts.evaluation]).all()
    assert parts.label > 0


@pytest.mark.parametrize("size", [{}, {"bases": 3, "classes": 3, "seeds": 2, "evaluations": 2}])
def test_the_interval_holds_the_mean_of_all_bases_and_classes_in_95_of_100(size):
    hits = 0
    for seed in range(200):
        _, low, high = interval(balanced(seed=seed, **size), "fid")
        hits += low <= 10 <= high
    assert hits >= 182  # 190 +- 3; conservative is allowed


def test_one_correction_has_no_interval():
    mean, low, high = interval(balanced(bases=1, classes=1, seeds=1, evaluations=2), "fid")
    assert np.isnan([low, high]).all()
    assert not np.isnan(mean)


def result(method, variant_values, *, base=0):
    corrections = [
        {"variant": variant, "class": name, "seed": 0, "cost": {}, "attacks": {}, "picture": "",
         "rows": [{"evaluation": 0, "recognised": recognised, "fid": fid, "accuracy": 99.0}]}
        for variant, (recognised, fid) in variant_values.items() for name in ("a", "b")
    ]  # fmt: skip
    contest = {"data": "tiny", "rows": 100, "forget_samples": 100, "classes": ["a", "b"], "sampler": "ddim"}
    return {"contest": contest, "method": method, "base": base, "search": None, "corrections": corrections}


def test_those_that_forgot_come_first_and_the_lowest_fid_leads():
    results = [result("late", {"default": (1.0, 6.0)}), result("best", {"default": (50.0, 1.0), "tuned": (2.0, 5.0)})]
    table = standings(results)
    assert list(zip(table["method"], table["variant"], strict=True)) == [
        ("best", "tuned"), ("late", "default"), ("best", "default"),
    ]  # fmt: skip


def test_tuned_knobs_are_compared_with_the_defaults_pair_by_pair():
    results = [
        result("ours", {"default": (0.0, 5.0), "tuned": (0.0, 4.0)}),
        result("ours", {"default": (0.0, 8.0), "tuned": (0.0, 7.5)}, base=1),
    ]
    tuned, default = standings(results).to_dict("records")
    assert (tuned["variant"], tuned["fid_change"]) == ("tuned", -0.75)
    assert tuned["fid_change_low"] < -0.75 < tuned["fid_change_high"]
    assert math.isnan(default["fid_change"])


def test_no_interval_leaves_what_a_value_can_be():
    results = [result("x", {"default": (0.0, fid)}, base=base) for base, fid in enumerate((1.0, 60.0))]
    for each, accuracy in zip(results, (99.9, 90.0), strict=True):
        for correction in each["corrections"]:
            correction["rows"][0]["accuracy"] = accuracy
    (row,) = standings(results).to_dict("records")
    assert (row["accuracy_high"], row["fid_low"]) == (100.0, 0.0)


def test_a_share_of_0_is_no_surer_than_its_samples():
    (row,) = standings([result("clean", {"default": (0.0, 5.0)})]).to_dict("records")
    assert row["recognised_low"] == 0
    assert 1 < row["recognised_high"] < 3  # Wilson: 0 of 200


def test_the_page_escapes_what_files_say_and_is_whole_without_any():
    page = render_contest([evil := result("<b>x</b>", {"default": (0.0, 5.0)})], standings([evil]))
    assert "<b>x</b>" not in page
    assert "No result files yet" in render_contest([], standings([]))
