from __future__ import annotations

import pytest
import torch

from safemax.data.batches import Batch, Rows
from safemax.methods.random_label import RandomLabel, anchors, draw_anchors, imitation_loss
from tests.support import tiny_models


def test_the_next_class_is_the_anchor_as_in_the_official_code() -> None:
    choices = anchors(tiny_models.diffusion(), tiny_models.batches(2), "next")
    # (c + 1) % 3 for the forgotten class 2
    assert draw_anchors(choices, torch.tensor([2, 2])).tolist() == [0, 0]


def test_a_forgotten_class_is_never_an_anchor() -> None:
    # 1 and 2 are forgotten: the next retained class of both is 0, past 2 for class 1.
    assert draw_anchors(
        anchors(tiny_models.diffusion(), tiny_models.batches(1, 2), "next"), torch.tensor([1, 2])
    ).tolist() == [0, 0]
    assert anchors(tiny_models.diffusion(), tiny_models.batches(1, 2), "random").unique().tolist() == [0]


def test_a_random_anchor_is_drawn_for_every_row_evenly() -> None:
    torch.manual_seed(0)
    anchor = draw_anchors(
        anchors(tiny_models.diffusion(), tiny_models.batches(0), "random"), torch.zeros(4000, dtype=torch.int64)
    )
    # 4,000 draws of 2 classes: 2,000 +- 32
    assert anchor.bincount(minlength=3).tolist() == pytest.approx([0, 2000, 2000], abs=160)


def test_the_forget_loss_is_the_distance_to_the_anchors_prediction() -> None:
    # eps_pred = c everywhere: labels 0 against anchors 1 and 2 give (1 + 4) / 2.
    diffusion = tiny_models.diffusion()
    diffusion.forward = lambda x_t, t, c: c.float().view(-1, 1, 1, 1).expand_as(x_t)  # type: ignore[method-assign]
    rows = Rows(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
    assert imitation_loss(diffusion, rows, torch.tensor([1, 2])).item() == pytest.approx(2.5)


def test_only_the_own_prediction_has_a_gradient() -> None:
    diffusion, rows = tiny_models.diffusion(), tiny_models.batch(4, 0).forget
    graphs = []
    forward = diffusion.forward
    diffusion.forward = lambda *a: graphs.append(torch.is_grad_enabled()) or forward(*a)  # type: ignore[func-returns-value, method-assign]
    imitation_loss(diffusion, rows, rows.c + 1)
    assert graphs == [False, True]


def test_dropout_is_off_in_the_target_unless_asked_for() -> None:
    diffusion, rows = tiny_models.diffusion().train(), tiny_models.batch(2, 0).forget
    modes = []
    forward = diffusion.forward
    diffusion.forward = lambda *a: modes.append(diffusion.denoiser.training) or forward(*a)  # type: ignore[func-returns-value, method-assign]
    imitation_loss(diffusion, rows, rows.c + 1)
    imitation_loss(diffusion, rows, rows.c + 1, target_dropout=True)
    assert modes == [False, True, True, True]
    assert diffusion.training


def test_the_terms_are_the_imitation_and_the_weighted_denoising() -> None:
    # eps_pred = c: the forget rows (0) imitate their anchor (1, "next") at a distance of 1. With eps_pred = 0 on the retain
    # rows too their loss is E eps^2 = 1, times the weight 3; labels 1 and 2 are set to 0 for it.
    diffusion = tiny_models.diffusion()
    method = RandomLabel(anchor="next", retain_weight=3.0, retain_null_drop=0.0)
    method.prepare(diffusion, tiny_models.batches(0))
    diffusion.forward = lambda x_t, t, c: c.float().view(-1, 1, 1, 1).expand_as(x_t)  # type: ignore[method-assign]
    rows = Rows(torch.zeros(500, 1, 8, 8), torch.zeros(500, dtype=torch.int64))
    torch.manual_seed(0)
    terms = {
        name: value.item() for group in method.losses(diffusion, Batch(rows, rows)) for name, value in group.items()
    }
    assert terms["forget"] == pytest.approx(1.0)
    assert terms["retain"] == pytest.approx(3.0, rel=0.05)
