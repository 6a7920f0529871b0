from __future__ import annotations

import pytest
import torch

from safemax.data.batches import Batch, Rows
from safemax.errors import InputError
from safemax.method_tools import gradients
from safemax.methods.restricted_gradient import RestrictedGradient
from tests.support import tiny_models


def test_an_error_beyond_the_ceiling_is_cut_pixel_by_pixel():
    # abar = 1/2: an error of eps is one of x0 as large. Errors 0.1 and 0.5 with the ceiling 0.1: min(0.01, 0.1) and
    # min(0.25, 0.1), on half of the pixels each: mean 0.055.
    diffusion = tiny_models.diffusion()
    diffusion.alpha_bar[:] = 0.5
    errors = torch.tensor([0.1, 0.5]).repeat(32).view(1, 1, 8, 8)
    diffusion.forward = lambda x_t, t, c: x_t * 2**0.5 + errors  # x0 = 0, so x_t = sqrt(1/2) eps
    rows = Rows(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))
    forget, _ = RestrictedGradient(ceiling=0.1).losses(diffusion, Batch(rows, rows))
    assert forget["forget"].item() == pytest.approx(-0.055, rel=1e-4)


def test_the_forget_loss_is_minus_the_official_one_on_predicted_images():
    # EDM cuts (D - y)^2 at a; 1 / sigma^2 of it, sigma^2 = (1 - abar) / abar, is the weight that the loss of eps has
    diffusion, batch = tiny_models.diffusion(), tiny_models.batch()
    torch.manual_seed(5)
    forget, _ = RestrictedGradient(ceiling=0.3).losses(diffusion, batch)
    torch.manual_seed(5)
    y = batch.forget.x0
    t, eps = diffusion.times(len(y)), torch.randn_like(y)
    abar = diffusion.alpha_bar[t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * y + (1 - abar).sqrt() * eps
    denoised = (x_t - (1 - abar).sqrt() * diffusion(x_t, t, batch.forget.c)) / abar.sqrt()
    sigma2 = (1 - abar) / abar
    expected = -(torch.minimum((denoised - y) ** 2, torch.tensor(0.3)) / sigma2).mean()
    assert 0 < ((denoised - y) ** 2 > 0.3).float().mean() < 1
    assert forget["forget"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_step_is_the_projected_ascent_plus_five_projected_descents():
    diffusion, batch, method = tiny_models.diffusion(), tiny_models.batch(), RestrictedGradient()
    weights = list(diffusion.parameters())
    torch.manual_seed(3)
    g_f, g_r = (torch.autograd.grad(sum(group.values()), weights) for group in method.losses(diffusion, batch))
    flat_f, flat_r = (torch.cat([each.flatten() for each in g]) for g in (g_f, g_r))
    inner = flat_f @ flat_r
    assert inner < 0
    expected = (flat_f - inner / (flat_r @ flat_r) * flat_r) + 5 * (flat_r - inner / (flat_f @ flat_f) * flat_f)
    torch.manual_seed(3)
    method.backward(method.losses(diffusion, batch), diffusion, lambda loss: loss.backward())
    found = torch.cat([p.grad.flatten() for p in weights])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_to_first_order_neither_loss_gets_worse():
    diffusion, batch, method = tiny_models.diffusion(), tiny_models.batch(), RestrictedGradient()
    weights = list(diffusion.parameters())
    torch.manual_seed(3)
    g_f, g_r = (torch.autograd.grad(sum(group.values()), weights) for group in method.losses(diffusion, batch))
    torch.manual_seed(3)
    method.backward(method.losses(diffusion, batch), diffusion, lambda loss: loss.backward())
    step = [p.grad for p in weights]
    assert gradients.dot(step, g_f) > 0
    assert gradients.dot(step, g_r) > 0


def test_label_drop_without_a_null_label_is_refused_before_any_work():
    with pytest.raises(InputError, match="no null label"):
        RestrictedGradient().validate(tiny_models.diffusion(null=False))
