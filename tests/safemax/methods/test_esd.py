from __future__ import annotations

import pytest
import torch

from safemax.data.batches import Batch, Rows
from safemax.errors import InputError
from safemax.methods.esd import ESD
from safemax.training.settings import Training
from tests.support import tiny_models

ROWS = Training(steps=3, batch_size=4, forget_share=1.0, lr=1e-2, device="cpu", checkpoint_every=0)


def test_the_target_points_away_from_the_class():
    # eps* is 1 for the class and 4 for the null label; eta = 2: 4 - 2 (1 - 4) = 10; the student says 1: (1 - 10)^2 = 81
    diffusion = tiny_models.diffusion()
    diffusion.forward = lambda x_t, t, c: torch.where(c == 3, 4.0, 1.0).view(-1, 1, 1, 1).expand_as(x_t)
    method = ESD(eta=2.0)
    method.prepare(diffusion, tiny_models.batches())
    (terms,) = method.losses(diffusion, tiny_models.batch())
    assert terms["forget"].item() == pytest.approx(81.0)


def test_the_loss_is_the_official_one_with_a_teacher_of_the_first_weights():
    diffusion, teacher, batch = tiny_models.diffusion(), tiny_models.diffusion(), tiny_models.batch()
    method = ESD(eta=1.5)
    method.prepare(diffusion, tiny_models.batches())
    with torch.no_grad():
        for p in diffusion.parameters():
            p.add_(0.05 * torch.randn_like(p))
    torch.manual_seed(5)
    (terms,) = method.losses(diffusion, batch)
    torch.manual_seed(5)
    x0, c = batch.forget.x0, batch.forget.c
    t = diffusion.times(len(c))
    x_t = diffusion.diffuse(x0, t, torch.randn_like(x0))
    null = teacher(x_t, t, torch.full_like(c, 3))
    target = null - 1.5 * (teacher(x_t, t, c) - null)
    assert terms["forget"].item() == pytest.approx((diffusion(x_t, t, c) - target).square().mean().item(), rel=1e-5)


def test_the_student_has_its_own_weights_again_after_the_teachers_pass():
    diffusion, method = tiny_models.diffusion(), ESD()
    method.prepare(diffusion, tiny_models.batches())
    with torch.no_grad():
        next(diffusion.parameters()).add_(1.0)
    before = diffusion.digest()
    diffusion.train()
    list(method.losses(diffusion, tiny_models.batch()))
    assert diffusion.digest() == before
    assert diffusion.training


def test_the_teacher_has_no_dropout_and_the_student_has():
    diffusion, method, modes = tiny_models.diffusion(), ESD(), []
    method.prepare(diffusion, tiny_models.batches())
    forward = diffusion.forward
    diffusion.forward = lambda x_t, t, c: modes.append(diffusion.denoiser.training) or forward(x_t, t, c)
    diffusion.train()
    list(method.losses(diffusion, tiny_models.batch()))
    assert modes == [False, True]


@pytest.mark.parametrize(
    ("subset", "parts"),
    [("label_embedding", ["class_embedding"]), ("conditioning", ["class_embedding", "time_emb_proj"]), ("all", [""])],
)
def test_only_the_subset_moves_even_under_weight_decay(subset, parts):
    diffusion, before = tiny_models.diffusion(), dict(tiny_models.diffusion().named_parameters())
    training = Training(**{**ROWS.__dict__, "weight_decay": 0.1})
    tiny_models.train(diffusion, ESD(subset=subset), training)
    for name, p in diffusion.named_parameters():
        moved = not torch.equal(p, before[name])
        assert moved == any(part in name for part in parts)


def test_of_the_label_table_only_the_forgotten_row_moves():
    diffusion, before = tiny_models.diffusion(), tiny_models.diffusion().denoiser.class_embedding.weight
    tiny_models.train(diffusion, ESD(subset="label_embedding"), ROWS)
    moved = (diffusion.denoiser.class_embedding.weight != before).any(1)
    assert torch.equal(moved, torch.tensor([True, False, False, False]))


def test_the_teacher_kept_for_a_checkpoint_is_no_larger_than_the_subset():
    method = ESD(subset="label_embedding")
    method.prepare(tiny_models.diffusion(), tiny_models.batches())
    (teacher,) = method.state().values()
    assert torch.equal(teacher, tiny_models.diffusion().denoiser.class_embedding.weight)
    again = ESD(subset="label_embedding")
    again.load_state(method.state())
    assert torch.equal(next(iter(again.state().values())), teacher)


def test_no_retain_rows_are_needed():
    rows = tiny_models.batch().forget
    diffusion, method = tiny_models.diffusion(), ESD()
    batch = Batch(rows, Rows(rows.x0[:0], rows.c[:0]))
    method.prepare(diffusion, tiny_models.batches())
    (terms,) = method.losses(diffusion, batch)
    assert terms["forget"].isfinite()


def test_a_model_without_null_label_is_refused_before_any_work():
    with pytest.raises(InputError, match="ESD needs a null label"):
        ESD().validate(tiny_models.diffusion(null=False))
