from __future__ import annotations

import torch

from safemax.judges.reference import Reference
from safemax.metrics.constant_images import ConstantShare
from safemax.metrics.retention import neighbours

# Four classes on a line, at 0, 1, 3 and 7, two rows each.
PLACES = torch.tensor([0.0, 0, 1, 1, 3, 3, 7, 7])[:, None]
LINE = Reference(PLACES, torch.arange(4).repeat_interleave(2), PLACES)


def test_neighbours_are_the_retained_classes_in_the_order_of_their_distance():
    assert neighbours(LINE, (1,)) == (0, 2, 3)
    assert neighbours(LINE, (3,), count=2) == (2, 1)


def test_a_class_is_as_near_as_its_nearest_forgotten_one():
    # From 0 and 7 forgotten: class 1 lies 1 from the first, class 2 lies 3 from it and 4 from the second.
    assert neighbours(LINE, (0, 3)) == (1, 2)


def test_one_colour_is_a_constant_frame_whatever_the_colour_and_faint_grain_is_none():
    red = torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    grain = 0.1 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    share = ConstantShare()
    share.update(red)
    assert share.compute() == 100
    share.update(grain)
    assert share.compute() == 50
