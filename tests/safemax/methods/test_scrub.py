from __future__ import annotations

import pytest
import torch

from safemax.methods.scrub import SCRUB
from safemax.training.settings import Training
from tests.support import tiny_models


def prepared(**knobs):
    diffusion, method = tiny_models.diffusion(), SCRUB(**knobs)
    method.prepare(diffusion, tiny_models.batches())
    return diffusion, method, tiny_models.batch()


def moved(diffusion):
    with torch.no_grad():
        for p in diffusion.parameters():
            p.add_(0.01)


def test_a_student_that_is_the_teacher_has_no_distance_and_no_slope():
    diffusion, method, batch = prepared()
    (terms,) = method._climb(diffusion, batch)
    terms["forget"].backward()
    assert terms["forget"].item() == pytest.approx(0, abs=1e-10)
    assert max(p.grad.abs().max() for p in diffusion.parameters()) < 1e-6


def test_a_min_step_is_gamma_times_the_task_plus_alpha_times_the_distance():
    # the official loss: gamma * loss_cls + alpha * loss_div
    diffusion, method, batch = prepared(gamma=2.0, alpha=3.0, retain_null_drop=0.0)
    moved(diffusion)
    torch.manual_seed(1)
    (terms,) = method.losses(diffusion, batch)
    torch.manual_seed(1)
    x0, c = batch.retain.x0, batch.retain.c
    t, eps = diffusion.times(len(c)), torch.randn_like(x0)
    x_t = diffusion.diffuse(x0, t, eps)
    own, taught = diffusion(x_t, t, c), tiny_models.diffusion()(x_t, t, c)
    assert terms["retain"].item() == pytest.approx(2 * (own - eps).square().mean().item(), rel=1e-5)
    assert terms["distance"].item() == pytest.approx(3 * (own - taught).square().mean().item(), rel=1e-5)


def test_a_max_step_climbs_until_a_row_is_far_enough():
    diffusion, method, batch = prepared(cap=1e-6)
    moved(diffusion)
    (terms,) = method._climb(diffusion, batch)
    assert terms["forget"].item() == pytest.approx(-1e-6)


@pytest.mark.parametrize("dual", [False, True])
def test_max_steps_end_early_and_the_rest_repairs(dual):
    seen = []

    class Watched(SCRUB):
        def step(self, *args):
            seen.append(super().step(*args))
            return seen[-1]

    method = Watched(climb_share=0.5, dual_adam=dual)
    tiny_models.train(tiny_models.diffusion(), method, Training(steps=4, batch_size=8, lr=1e-3, device="cpu"))
    assert ["forget" in terms for terms in seen] == [True, True, False, False]
    assert all("retain" in terms and "distance" in terms for terms in seen)
    assert any(name.startswith("adam.") for name in method.state()) == dual
