"""The scores of a trial, from its metrics and the base's."""

from __future__ import annotations

import pytest

from hpo.objective import scores
from safemax import metric_keys as keys

BASE = {
    keys.PROBABILITY: 0.9,
    keys.UA_REJECT: 10.0,
    keys.ACCURACY: 99.0,
    keys.FID_JUDGE: 8.0,
    keys.RETAIN_KID: 40.0,
}


@pytest.mark.parametrize("of_base", [0.0, -0.02, 0.1])
def test_a_worse_kid_counts_in_units_of_the_bases_standard_error_where_the_bases_own_is_about_0(
    of_base: float,
) -> None:
    base = {**BASE, keys.RETAIN_KID: of_base, keys.RETAIN_KID + keys.SE: 0.25}
    intact, ruined = (scores({**base, keys.RETAIN_KID: of_base + lost}, base, "kid") for lost in (0.0, 50.0))
    assert intact["joint_quality"] == 0
    assert ruined["joint_quality"] == pytest.approx(50 / 0.25)


def test_scores_follow_their_definitions() -> None:
    after = {
        **BASE,
        keys.PROBABILITY: 0.2,
        keys.UA_REJECT: 75.0,
        keys.ACCURACY: 97.5,
        keys.FID_JUDGE: 12.0,
    }
    result = scores(after | {keys.SETUP_MINUTES: 0.5, keys.RUNTIME_MINUTES: 1.0}, BASE, "fid")
    # (100 - 75) / 100 + max(0, 12 / 8 - 1) = 0.25 + 0.5
    terms = {"joint": 0.75, "joint_forgetting": 0.25, "joint_quality": 0.5}
    assert result == {"forgetting": 0.2, "quality": 4.0, **terms, "accuracy_drop": 1.5, "minutes": 1.5}


def test_probabilities_below_a_millionth_score_the_same() -> None:
    result = [scores({**BASE, keys.PROBABILITY: p}, BASE, "fid")["forgetting"] for p in (0.0, 1e-9, 1e-6, 1e-5)]
    assert result == [1e-6, 1e-6, 1e-6, 1e-5]


def test_a_better_quality_than_the_bases_is_not_rewarded_in_the_joint_score() -> None:
    assert scores({**BASE, keys.RETAIN_KID: 30.0}, BASE, "kid")["joint"] == pytest.approx(0.9)
    assert scores({**BASE, keys.RETAIN_KID: 30.0}, BASE, "kid")["quality"] == -10.0
