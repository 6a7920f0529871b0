from __future__ import annotations

import dataclasses

import pytest
import torch

from safemax.attacks.base import Cell
from safemax.attacks.relearn import Relearn, half_way
from safemax.data.dataset import Split
from tests.support import tiny_models
from tests.support.attack_settings import quick, setting


def course(*shares: float) -> list[Cell]:
    return [Cell("relearn_10", 10.0 * i, share, share, share) for i, share in enumerate(shares)]


@pytest.mark.parametrize(
    ("shares", "steps"),
    [
        ((60, 70), 0),  # known from the start
        ((0, 25, 75), 15),  # half of the way from 25 to 75
        ((0, 20, 50), 20),
        ((0, 49, 10), None),
    ],
)
def test_s50_is_where_a_straight_line_first_reaches_half(shares, steps):
    assert half_way(course(*shares)) == steps


def test_a_course_that_never_reaches_half_has_no_s50():
    assert Relearn().numbers([*course(0, 10)]) == {}


def test_each_variant_is_looked_at_from_the_start_to_the_last_step():
    outcome = quick("relearn", Relearn).run(tiny_models.diffusion(), setting())
    for variant in ("relearn_10", "relearn_100", "relearn_retain"):
        assert [cell.x for cell in outcome.cells if cell.variant == variant] == [0, 1, 2, 4, 8]


def test_relearning_from_the_retained_classes_sees_no_image_of_the_forgotten():
    data = tiny_models.dataset()
    black = torch.where(data.train.labels.view(-1, 1, 1, 1) == 0, 0, data.train.images)
    other = dataclasses.replace(data, train=Split(black.to(torch.uint8), data.train.labels))
    drawn = [
        quick("relearn", Relearn).run(tiny_models.diffusion(), setting(dataset=each)).pictures for each in (data, other)
    ]
    assert torch.equal(drawn[0][10:], drawn[1][10:])  # relearn_retain: the last five trials
    assert not torch.equal(drawn[0][:10], drawn[1][:10])


def test_the_attacker_has_as_many_images_as_stated_and_only_of_the_forgotten_classes():
    known = setting(forget=(0, 2)).known(10)
    assert (len(known), set(known.labels.tolist())) == (10, {0, 2})
    assert len(setting().known(1000)) == 20  # all that there are
