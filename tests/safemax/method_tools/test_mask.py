from __future__ import annotations

import torch
from torch.nn import Parameter

from safemax.method_tools.mask import Mask

WEIGHTS = [Parameter(torch.tensor([[1.0, -0.0], [3.0, 4.0]])), Parameter(torch.tensor([5.0]))]
MASK = Mask(torch.tensor([True, False, False, True, False]))


def test_only_gradients_of_weights_that_may_move_stay():
    for w in WEIGHTS:
        w.grad = torch.full_like(w, 2.0)
    MASK.zero_gradients(WEIGHTS)
    assert WEIGHTS[0].grad.tolist() == [[2.0, 0.0], [0.0, 2.0]]
    assert WEIGHTS[1].grad.tolist() == [0.0]


def test_weights_that_may_not_move_get_their_values_back_to_the_bit():
    moved = [Parameter(w.detach() + 1) for w in WEIGHTS]
    moved[1].data[:] = torch.nan
    MASK.restore(moved, [w.detach() for w in WEIGHTS])
    assert moved[0].tolist() == [[2.0, 0.0], [3.0, 5.0]]
    assert torch.signbit(moved[0][0, 1]), "-0.0 is not 0.0"
    assert moved[1].tolist() == [5.0]


def test_it_is_kept_in_bits_and_its_parts_are_views_of_it():
    again = Mask.from_state(MASK.state())
    assert MASK.state()["mask"].nbytes == 1
    assert torch.equal(again.flat, MASK.flat)
    parts = again.parts(WEIGHTS)
    assert [part.shape for part in parts] == [w.shape for w in WEIGHTS]
    assert all(a is b for a, b in zip(parts, again.parts(WEIGHTS), strict=True))
    assert parts[0].data_ptr() == again.flat.data_ptr()
