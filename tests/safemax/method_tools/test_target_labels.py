from __future__ import annotations

import torch

from safemax.method_tools.target_labels import next_retained


def test_one_forgotten_class_goes_to_the_next_label_in_a_circle():
    retained = tuple(k for k in range(10) if k != 9)
    assert next_retained(10, retained)[9] == 0
    assert next_retained(10, tuple(k for k in range(10) if k != 3))[3] == 4


def test_no_label_goes_to_a_forgotten_one():
    # 2, 3 and 4 are forgotten, so all three go to 5, and 1 passes over them
    anchors = next_retained(6, (0, 1, 5))
    assert torch.equal(anchors, torch.tensor([1, 5, 5, 5, 5, 0]))
