from __future__ import annotations

import pytest
import torch

from safemax.methods.expected_targets import ExpectedTargets
from safemax.methods.far_targets import FarTargets
from safemax.training.settings import Training
from tests.support import tiny_models


def trained(method):
    diffusion = tiny_models.diffusion()
    tiny_models.train(diffusion, method, Training(steps=3, batch_size=8, lr=1e-3, device="cpu", checkpoint_every=0))
    return diffusion.digest()


def test_at_reach_0_it_is_expected_targets():
    usual = trained(ExpectedTargets(lmbda=0.0))
    assert trained(FarTargets(reach=0.0)) == usual
    assert trained(FarTargets()) != usual


@pytest.mark.parametrize(("reach", "loss"), [(1.0, 4.0), (3.0, 16.0)])
def test_the_target_is_minus_reach_times_the_prediction_before_the_correction(reach, loss):
    # at the start the model predicts e where the target is -reach e: a loss of (1 + reach)^2 e^2, here with e^2 = 1
    diffusion = tiny_models.diffusion()
    method = FarTargets(reach=reach)
    method.prepare(diffusion, tiny_models.batches())
    diffusion.forward = lambda x_t, t, c: torch.ones_like(x_t)
    (terms,) = method.losses(diffusion, tiny_models.batch())
    assert terms["forget"].item() == pytest.approx(loss)
    assert terms["retain"].item() == 0


def test_the_target_stays_that_of_the_frozen_model_while_the_model_moves():
    diffusion = tiny_models.diffusion().eval()
    method = FarTargets()
    method.prepare(diffusion, tiny_models.batches())
    x_t, t, c = torch.randn(4, 1, 8, 8), torch.full((4,), 500), torch.zeros(4, dtype=torch.int64)
    before = diffusion(x_t, t, c).detach()
    with torch.no_grad():
        for p in diffusion.parameters():
            p.add_(0.1)
    assert not torch.allclose(diffusion(x_t, t, c), before)
    torch.testing.assert_close(method._forget_target(diffusion, x_t, t, c), -3 * before)


def test_forget_rows_move_beyond_zero():
    diffusion = tiny_models.diffusion()
    x0, c = torch.rand(16, 1, 8, 8) * 2 - 1, torch.zeros(16, dtype=torch.int64)
    t = torch.full((16,), 700)
    torch.manual_seed(0)
    x_t = diffusion.diffuse(x0, t, torch.randn_like(x0))
    with torch.no_grad():
        before = diffusion.eval()(x_t, t, c)
    tiny_models.train(
        diffusion,
        FarTargets(retain_weight=0.0),
        Training(steps=60, batch_size=16, lr=3e-3, device="cpu", checkpoint_every=0),
    )
    with torch.no_grad():
        assert (diffusion.eval()(x_t, t, c) * before).mean() < 0
