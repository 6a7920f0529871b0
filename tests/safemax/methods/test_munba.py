from __future__ import annotations

import pytest
import torch

from safemax.data.batches import Batches
from safemax.errors import InputError
from safemax.method_tools import gradients
from safemax.methods.munba import FALLBACK, MUNBa, nash
from tests.support import tiny_models


def bargain(g_r, g_f):
    return nash(g_r @ g_r, g_r @ g_f, g_f @ g_f)


@pytest.mark.parametrize("cosine", [-0.999, -0.5, 0.0, 1e-4, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_closed_form_satisfies_both_nash_equations(cosine, scale):
    torch.manual_seed(0)
    g_r, other = torch.linalg.qr(torch.randn(50, 2, dtype=torch.float64))[0].T
    g_r, g_f = 7 * g_r, scale * (cosine * g_r + (1 - cosine**2) ** 0.5 * other)
    a_r, a_f = bargain(g_r, g_f)
    assert a_r * (g_r @ g_r * a_r + g_r @ g_f * a_f) == pytest.approx(1, abs=1e-9)
    assert a_f * (g_f @ g_f * a_f + g_r @ g_f * a_r) == pytest.approx(1, abs=1e-9)
    assert a_r > 0
    assert a_f > 0


def test_orthogonal_gradients_get_the_inverse_of_their_norms():
    # cos = 0: a = 1 / norm = 1/3 and 1/4, so the step is (1, 1)
    a_r, a_f = bargain(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]))
    assert (a_r.item(), a_f.item()) == pytest.approx((1 / 3, 1 / 4))


def test_it_agrees_with_the_official_expression_where_that_is_stable():
    # the official expression, in float64 where its 1e-8 is lost: a_f = (1 - g1 a_r^2) / (g2 a_r)
    torch.manual_seed(0)
    g_r, g_f = torch.randn(2, 20, dtype=torch.float64)
    g1, g2, g3 = g_r @ g_r, g_r @ g_f, g_f @ g_f
    a_r = ((g1 * g3 - g2 * (g1 * g3).sqrt()) / (g1 * g1 * g3 - g1 * g2 * g2)).sqrt()
    expected = torch.stack([a_r, (1 - g1 * a_r**2) / (g2 * a_r)])
    torch.testing.assert_close(torch.stack(bargain(g_r, g_f)), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("g_f", [[-2.0, 0.0], [0.0, 0.0]])
def test_opposite_or_vanishing_gradients_fall_back(g_f):
    shares = bargain(torch.tensor([1.0, 0.0]), torch.tensor(g_f))
    assert tuple(each.item() for each in shares) == FALLBACK


def prepared(forget=(0,)):
    diffusion, method = tiny_models.diffusion(), MUNBa()
    batches = Batches(tiny_models.split(), forget, forget_size=4, retain_size=4, seed=0)
    method.prepare(diffusion, batches)
    return diffusion, method, batches(0)


def test_the_step_is_the_bargain_of_the_two_losses_gradients():
    diffusion, method, batch = prepared()
    weights = list(diffusion.parameters())
    torch.manual_seed(3)
    separate = [torch.autograd.grad(sum(group.values()), weights) for group in method.losses(diffusion, batch)]
    a_r, a_f = nash(*(gradients.dot(separate[i], separate[j]) for i, j in ((0, 0), (0, 1), (1, 1))))
    torch.manual_seed(3)
    method.backward(method.losses(diffusion, batch), diffusion, lambda loss: loss.backward())
    for p, g_r, g_f in zip(weights, *separate, strict=True):
        torch.testing.assert_close(p.grad, a_r * g_r + a_f * g_f, rtol=1e-5, atol=1e-7)
    # ||a_r g_r + a_f g_f||^2 = (1 + 1 + 2 cos) / (1 + cos) = 2
    assert torch.nn.utils.get_total_norm([p.grad for p in weights]) == pytest.approx(2**0.5, rel=1e-5)


def test_forget_rows_learn_the_prediction_for_the_next_retained_class():
    diffusion, method, batch = prepared(forget=(0, 1))
    seen = []
    forward = diffusion.forward
    diffusion.forward = lambda x_t, t, c: seen.append(c) or forward(x_t, t, c)
    list(method.losses(diffusion, batch))
    _, target, student = seen
    assert (target == 2).all()
    assert torch.equal(student, batch.forget.c)


def test_the_anchors_survive_a_checkpoint():
    _, method, _ = prepared(forget=(0, 1))
    again = MUNBa()
    again.load_state(method.state())
    assert torch.equal(again.state()["anchor"], torch.tensor([2, 2, 2]))


def test_label_drop_without_a_null_label_is_refused_before_any_work():
    with pytest.raises(InputError, match="no null label"):
        MUNBa().validate(tiny_models.diffusion(null=False))
    MUNBa(retain_null_drop=0.0).validate(tiny_models.diffusion(null=False))
