from __future__ import annotations

import pytest
import torch

from safemax.data.batches import Batch, Rows
from safemax.errors import InputError
from safemax.methods.erasediff import EraseDiff, bome_weight
from safemax.training.settings import Training
from tests.support import tiny_models

TRAINING = Training(steps=3, batch_size=8, lr=1e-2, device="cpu", checkpoint_every=0)


@pytest.mark.parametrize(
    ("conflict", "square", "weight"),
    [
        (0.0, 4.0, 0.1),  # orthogonal: eta
        (-2.0, 4.0, 0.6),  # 0.1 + 2/4
        (0.2, 4.0, 0.05),  # 0.1 - 0.2/4
        (3.0, 4.0, 0.0),  # the retain gradient alone erases fast enough
        (0.0, 0.0, 0.1),  # nothing to erase
    ],
)
def test_the_weight_is_what_the_rate_lacks(conflict, square, weight):
    assert bome_weight(0.1, torch.tensor(conflict), torch.tensor(square)).item() == pytest.approx(weight)


def test_under_the_weight_the_constraint_falls_at_the_rate():
    torch.manual_seed(0)
    for g_r, g_q in torch.randn(50, 2, 4):
        weight = bome_weight(0.3, g_r @ g_q, g_q @ g_q)
        assert (g_r + weight * g_q) @ g_q >= 0.3 * (g_q @ g_q) - 1e-5


def outer(method, reached):
    """Return the gradient of an outer step, and those of its two losses, when the inner loop reached a loss."""
    diffusion, batch = tiny_models.diffusion(), tiny_models.batch()
    weights = list(diffusion.parameters())
    torch.manual_seed(3)
    g_r, g_f = (torch.autograd.grad(sum(group.values()), weights) for group in method.losses(diffusion, batch))
    method._reached = torch.tensor(reached)
    torch.manual_seed(3)
    method.backward(method.losses(diffusion, batch), diffusion, lambda loss: loss.backward())
    return [torch.cat([each.flatten() for each in g]) for g in ([p.grad for p in weights], g_r, g_f)]


def test_the_outer_step_is_retain_plus_the_official_constant_times_forget():
    step, g_r, g_f = outer(EraseDiff(weighting="constant"), reached=0.0)
    torch.testing.assert_close(step, g_r + 0.1 * g_f, rtol=1e-5, atol=1e-7)


def test_the_outer_step_weighs_forget_by_bome():
    step, g_r, g_f = outer(EraseDiff(lmbda=0.5), reached=0.0)
    weight = max(0.0, 0.5 - (g_r @ g_f / (g_f @ g_f)).item())
    torch.testing.assert_close(step, g_r + weight * g_f, rtol=1e-4, atol=1e-7)


def test_where_the_inner_loop_finds_nothing_to_erase_only_a_conflict_is_undone():
    step, g_r, g_f = outer(EraseDiff(lmbda=0.5), reached=1e6)
    undone = max(0.0, -(g_r @ g_f / (g_f @ g_f)).item())
    torch.testing.assert_close(step, g_r + undone * g_f, rtol=1e-4, atol=1e-7)


def test_the_forget_loss_is_the_official_one_with_one_retained_label_a_batch():
    diffusion, batch, method = tiny_models.diffusion(), tiny_models.batch(), EraseDiff()
    method._seed = 11
    (terms,) = method._forget_loss(diffusion, batch)
    torch.manual_seed(11)
    label = batch.retain.c[torch.randint(len(batch.retain), (1,))]
    x0, c = batch.forget.x0, batch.forget.c
    t = diffusion.times(len(c))
    x_t = diffusion.diffuse(x0, t, torch.randn_like(x0))
    target = diffusion(x_t, t, label.expand(len(c))).detach()
    assert terms["forget"].item() == pytest.approx((diffusion(x_t, t, c) - target).square().mean().item(), rel=1e-5)


def test_hand_derived_losses():
    # every prediction is its label, so forgetting 0 for the only retained label 2 costs (0 - 2)^2 = 4
    diffusion = tiny_models.diffusion()
    diffusion.forward = lambda x_t, t, c: c.view(-1, 1, 1, 1).expand_as(x_t).float()
    forget, retain = (Rows(torch.zeros(3, 1, 8, 8), torch.full((3,), c)) for c in (0, 2))
    _, terms = EraseDiff().losses(diffusion, Batch(forget, retain))
    assert terms["forget"].item() == 4.0


def test_every_evaluation_of_a_step_sees_the_same_draw_and_leaves_the_generator_alone():
    diffusion, batch, method = tiny_models.diffusion(), tiny_models.batch(), EraseDiff()
    torch.manual_seed(7)
    (first,) = method._forget_loss(diffusion, batch)
    (second,) = method._forget_loss(diffusion, batch)
    assert torch.equal(first["forget"], second["forget"])
    found = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(found, torch.rand(1))


class Watched(EraseDiff):
    """EraseDiff that notes what an inner loop reached, and the weights before and after it."""

    def _inner_loop(self, diffusion, batch, optimizer_step):
        start = self._value(diffusion, batch)
        before = diffusion.digest()
        reached = super()._inner_loop(diffusion, batch, optimizer_step)
        self.seen.append((start, reached.item(), diffusion.digest() == before))
        return reached

    def _value(self, diffusion, batch):
        with torch.no_grad():
            (terms,) = self._forget_loss(diffusion, batch)
        return terms["forget"].item()


@pytest.mark.parametrize("one_adam", [False, True])
def test_the_inner_loop_lowers_the_forget_loss_and_is_taken_back(one_adam):
    method = Watched(inner_steps=5, inner_lr=1e-2, one_adam=one_adam)
    method.seen = []
    tiny_models.train(tiny_models.diffusion(), method, TRAINING)
    assert len(method.seen) == 3
    assert all(reached < start and restored for start, reached, restored in method.seen)


def trained(**knobs):
    diffusion = tiny_models.diffusion()
    tiny_models.train(diffusion, EraseDiff(weighting="constant", **knobs), TRAINING)
    return diffusion.digest()


def test_under_a_constant_weight_the_inner_loop_leaves_no_trace():
    assert trained(inner_steps=1) == trained(inner_steps=4)


def test_one_adam_lets_the_inner_loops_momentum_into_the_outer_step_as_the_official_code_does():
    assert trained(inner_steps=1, one_adam=True) != trained(inner_steps=4, one_adam=True)


def test_the_paper_preset_has_the_official_label_drop_and_weight():
    method = EraseDiff(**EraseDiff.presets["paper"])
    assert (method.lmbda, method.weighting, method.one_adam) == (0.1, "constant", True)
    assert (method.forget_null_drop, method.retain_null_drop, method.target_dropout) == (0.1, 0.0, True)


@pytest.mark.parametrize("preset", [{}, EraseDiff.presets["paper"]])
def test_the_target_keeps_its_dropout_in_the_paper_preset_only(preset):
    diffusion, method = tiny_models.diffusion(dropout=0.5).train(), EraseDiff(**preset)
    targets = []
    forward = diffusion.forward
    diffusion.forward = lambda *a: targets.append(torch.is_grad_enabled() or diffusion.training) or forward(*a)
    list(method._forget_loss(diffusion, tiny_models.batch()))
    assert targets == [bool(preset), True]


def test_label_drop_without_a_null_label_is_refused_before_any_work():
    with pytest.raises(InputError, match="no null label"):
        EraseDiff().validate(tiny_models.diffusion(null=False))
