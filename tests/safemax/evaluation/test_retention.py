from __future__ import annotations

import torch

from safemax.evaluation.retention import neighbours
from safemax.judges.load import Reference
from safemax.metrics.constant_images import constant_share
from safemax.metrics.jackknife import standard_error
from safemax.metrics.retrain_gap import jensen_shannon

# Four classes on a line, at 0, 1, 3 and 7, two rows each.
PLACES = torch.tensor([0.0, 0, 1, 1, 3, 3, 7, 7])[:, None]
LINE = Reference(PLACES, torch.arange(4).repeat_interleave(2), PLACES)


def test_neighbours_are_the_retained_classes_in_the_order_of_their_distance():
    assert neighbours(LINE, (1,)) == (0, 2, 3)
    assert neighbours(LINE, (3,), count=2) == (2, 1)


def test_a_class_is_as_near_as_its_nearest_forgotten_one():
    # From 0 and 7 forgotten: class 1 lies 1 from the first, class 2 lies 3 from it and 4 from the second.
    assert neighbours(LINE, (0, 3)) == (1, 2)


def test_the_jackknifes_error_of_a_mean_is_the_usual_one():
    # Left-out means of 1..10 by tenths are (55 - i) / 9; the jackknife gives s / sqrt(10) = 3.02765 / 3.16228 exactly.
    rows = torch.arange(1.0, 11.0)
    assert abs(standard_error(lambda x: x.mean().item(), rows) - 0.957427) < 1e-5


def test_the_jackknife_takes_no_more_groups_than_rows():
    assert standard_error(lambda x: x.mean().item(), torch.tensor([1.0, 3.0])) == 1.0  # s / sqrt(2) = 1.41421 / 1.41421


def test_one_colour_is_a_constant_frame_whatever_the_colour_and_faint_grain_is_none():
    red = torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    grain = 0.1 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert constant_share(red) == 100
    assert constant_share(torch.cat([red, grain])) == 50


def test_jensen_shannon_is_0_for_equal_ln_2_for_disjoint_and_symmetric():
    p, q = torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double()
    assert jensen_shannon(p, p) == 0
    assert abs(jensen_shannon(p, q) - 0.693147) < 1e-6
    r = torch.tensor([0.2, 0.3, 0.5]).double()
    assert abs(jensen_shannon(p, r) - jensen_shannon(r, p)) < 1e-12
