from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from safemax.method_tools import gradients

A = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
B = [torch.tensor([1.0, 2.0]), torch.tensor([[-1.0]])]


def test_the_inner_product_runs_over_all_weights():
    assert gradients.dot(A, B) == 3 * 1 + 0 * 2 + 4 * -1


def test_a_conflict_is_projected_out():
    # A.B = -1 and B.B = 6, so A + B / 6 is left, which is orthogonal to B
    left = gradients.without_conflict(A, B)
    torch.testing.assert_close(left[0], torch.tensor([3 + 1 / 6, 2 / 6]))
    assert gradients.dot(left, B) == pytest.approx(0, abs=1e-6)


def test_what_does_not_conflict_is_left_as_it_is():
    opposite = [-b for b in B]
    assert all(torch.equal(a, b) for a, b in zip(gradients.without_conflict(A, opposite), A, strict=True))


def test_nothing_conflicts_with_zero():
    zero = [torch.zeros_like(b) for b in B]
    assert all(torch.equal(a, b) for a, b in zip(gradients.without_conflict(A, zero), A, strict=True))


def test_groups_get_a_gradient_each_and_grad_is_left_as_it_was():
    w, idle = Parameter(torch.tensor([1.0, 2.0])), Parameter(torch.tensor(1.0))
    w.grad = torch.tensor([10.0, 10.0])
    # d(w.w)/dw = 2 w = (2, 4); d(3 w_0 + w_1)/dw = (3, 1), and the two terms of a group share a backward
    groups = iter([{"square": w.square().sum()}, {"a": 3 * w[0], "b": w[1]}])
    terms, (square, linear) = gradients.separate(groups, [w, idle], lambda loss: loss.backward())
    assert {name: value.item() for name, value in terms.items()} == {"square": 5.0, "a": 3.0, "b": 2.0}
    assert torch.equal(square[0], torch.tensor([2.0, 4.0]))
    assert torch.equal(linear[0], torch.tensor([3.0, 1.0]))
    assert torch.equal(square[1], torch.tensor(0.0))
    assert torch.equal(w.grad, torch.tensor([10.0, 10.0]))
    assert idle.grad is None


def test_a_group_is_made_only_after_the_backward_of_the_one_before():
    w = Parameter(torch.tensor(1.0))
    happened = []

    def groups():
        for name in ("first", "second"):
            happened.append(f"{name} made")
            yield {name: 2 * w}

    def accumulate(loss):
        happened.append("backward")
        loss.backward()

    gradients.separate(groups(), [w], accumulate)
    assert happened == ["first made", "backward", "second made", "backward"]


def test_an_added_gradient_is_summed_with_what_is_there():
    w, bare = Parameter(torch.zeros(2)), Parameter(torch.zeros(1))
    w.grad = torch.ones(2)
    gradients.add([w, bare], [torch.full((2,), 2.0), torch.full((1,), 4.0)])
    assert torch.equal(w.grad, torch.full((2,), 3.0))
    assert torch.equal(bare.grad, torch.full((1,), 4.0))
