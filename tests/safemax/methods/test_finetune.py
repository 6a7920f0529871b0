from __future__ import annotations

import pytest
import torch

from safemax.methods.finetune import Finetune
from safemax.methods.retrain import Retrain
from safemax.training.hooks import Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer
from tests.support import tiny_models


def test_min_snr_weighs_the_steps_as_its_paper_does_for_eps():
    diffusion = tiny_models.diffusion()
    t = torch.arange(diffusion.T)
    snr = diffusion.alpha_bar / (1 - diffusion.alpha_bar)
    expected = torch.minimum(snr, torch.tensor(5.0)) / snr
    torch.testing.assert_close(diffusion.min_snr_weights(t, 5.0), expected)
    assert (expected[:50] < 0.2).all(), "little noise, little weight"
    assert (expected[-500:] == 1).all()


@pytest.mark.parametrize("method", [Finetune, Retrain])
def test_the_loss_is_the_mean_of_the_weighed_rows(method):
    diffusion, batch = tiny_models.diffusion(), tiny_models.batch()

    def loss(gamma):
        torch.manual_seed(0)
        return next(iter(method(null_drop=0.0, min_snr_gamma=gamma).losses(diffusion, batch)))["retain"]

    x0, c = batch.retain.x0, batch.retain.c
    torch.manual_seed(0)
    eps, t = torch.randn_like(x0), diffusion.times(len(x0))
    rows = (diffusion(diffusion.diffuse(x0, t, eps), t, c) - eps).square().mean((1, 2, 3))
    torch.testing.assert_close(loss(5.0), (diffusion.min_snr_weights(t, 5.0) * rows).mean())
    torch.testing.assert_close(loss(0.0), rows.mean())
    torch.testing.assert_close(loss(1e6), loss(0.0), msg="a gamma above every SNR weighs all alike")


def test_an_average_with_warm_up_follows_the_first_steps():
    training = Training(steps=4, batch_size=8, lr=1e-2, forget_share=0.0, ema=0.99, ema_warmup=True, device="cpu")
    model, weights = tiny_models.diffusion(), []
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    hooks = Hooks(
        on_step_end=lambda step: weights.append(torch.cat([p.detach().flatten() for p in model.parameters()])),
        progress=False,
    )
    Trainer(model, Finetune(), tiny_models.split(), (), training, hooks=hooks).fit()
    average = before
    for n, each in enumerate(weights):
        average = torch.lerp(average, each, 1 - (1 + n) / (10 + n))
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in model.parameters()]), average)
    assert training.ema_at(10_000) == 0.99
