"""The member of the front that the user prefers is registered."""

from __future__ import annotations

from typing import Any

import pytest

from hpo.finish import choose
from tests.hpo.conftest import BuildSearch


def scores(forgetting: float, quality: float, **more: float) -> dict[str, float]:
    joint = forgetting + max(0.0, quality / 5)
    return {"forgetting": forgetting, "quality": quality, "joint": joint, "accuracy_drop": 0.0, "minutes": 1.0, **more}


# The base lies 5 from the real images. Distances from the ideal: 0.5, 0.14 (0.1 and 0.5 / 5), 0.4 (2 / 5), 0.001.
FRONT = {
    3: scores(0.5, -0.2),
    5: scores(0.1, 0.5),
    8: scores(1e-4, 2.0, minutes=0.5),
    9: scores(1e-3, 0.0, accuracy_drop=1.5),
}


@pytest.mark.parametrize(("prefer", "winner"), [("knee", 5), ("forgetting", 8), ("quality", 3), ("cost", 8)])
def test_the_preferred_member_wins_among_those_within_the_constraint(
    tiny_search: BuildSearch, prefer: str, winner: int
) -> None:
    assert choose(FRONT, tiny_search(prefer=prefer, accuracy_drop=1.0), unit=5.0) == winner


def test_where_none_is_within_the_constraint_on_fresh_seeds_the_knee_of_all_wins(tiny_search: BuildSearch) -> None:
    assert choose(FRONT, tiny_search(accuracy_drop=2.0), unit=5.0) == 9
    worse: dict[int, Any] = {n: each | {"accuracy_drop": 3.0} for n, each in FRONT.items()}
    assert choose(worse, tiny_search(accuracy_drop=2.0), unit=5.0) == 9


def test_a_member_of_better_quality_than_the_base_is_no_nearer_to_the_ideal(tiny_search: BuildSearch) -> None:
    assert choose({1: scores(0.2, -4.0), 2: scores(0.1, 0.0)}, tiny_search(), unit=5.0) == 2


def test_the_lowest_joint_score_wins_a_joint_study(tiny_search: BuildSearch) -> None:
    # Sums 0.22 and 0.24 against distances of 0.202 and 0.170.
    front = {1: scores(0.2, 0.1), 2: scores(0.12, 0.6)}
    assert choose(front, tiny_search(), unit=5.0) == 2
    assert choose(front, tiny_search(objective="joint"), unit=5.0) == 1
