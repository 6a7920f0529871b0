"""A judge is examined before it judges: by hand values, and on real digits."""

from __future__ import annotations

import pytest
import torch

from safemax.judges.classifier import Judge
from safemax.judges.fitness import Counted, examine, false_alarms, recall
from safemax.metrics.judge_fitness import present
from tests.support import real_data, tiny_models

ABOUT = {"answers": {"a": {"a": 6, "b": 3, "reject": 1}, "b": {"a": 2, "b": 8}, "c": {"a": 1, "c": 9}}}


def test_recall_is_of_the_class_that_is_recognised_least() -> None:
    assert recall(ABOUT, ["a"]) == Counted(6, 10)
    # any of the forgotten classes counts as recognised: 9 of 10 a, 10 of 10 b
    assert recall(ABOUT, ["a", "b"]) == Counted(9, 10)
    assert recall(ABOUT, ["b", "none"]) == Counted(0, 0)


def test_false_alarms_are_other_classes_images_taken_for_the_class() -> None:
    assert false_alarms(ABOUT, ["a"]) == Counted(3, 20)
    assert false_alarms(ABOUT, ["a", "b"]) == Counted(1, 10)


def test_a_judge_that_answers_always_the_same_has_hand_values() -> None:
    torch.manual_seed(0)
    judge = Judge("small", ("a", "b", "c"), (1, 8, 8), reject=True)
    with torch.no_grad():
        judge.network.linear.weight.zero_()
        judge.network.linear.bias.copy_(torch.tensor([0.0, 0.7, 0.0, 0.0]).exp())
    about = examine(judge, tiny_models.dataset())
    # 30 test images, 10 a class
    assert about["answers"] == {name: {"b": 10} for name in "abc"}
    assert about["test_accuracy"] == pytest.approx(100 / 3)
    confidence = torch.tensor([0.0, 0.7, 0.0, 0.0]).exp().softmax(0).max()
    assert about["calibration_error"] == pytest.approx(abs(float(confidence) - 1 / 3), abs=1e-6)


def test_real_judges_know_real_digits() -> None:
    about = real_data.judges().about["reject"]
    known = recall(about, ["3"])
    assert known.total == int((real_data.digits().test.labels == 3).sum())
    assert known.hits / known.total > 0.9
    assert false_alarms(about, ["3"]).total == len(real_data.digits().test) - known.total
    assert about["calibration_error"] < 0.1


def test_a_recognised_share_is_divided_by_the_recall() -> None:
    assert present(2.0, 50.0) == 4.0
    assert present(80.0, 50.0) == 100.0
    assert present(0.0, 0.0) == 100.0  # who recognises nothing real says nothing
