from __future__ import annotations

import pytest
import torch

from safemax.methods.msgm import MSGM, moderation_loss
from tests.support import tiny_models


def test_the_forget_term_is_the_official_mean_of_score_times_deviation_times_noise_squared():
    diffusion, rows = tiny_models.diffusion(), tiny_models.batch().forget
    torch.manual_seed(0)
    own = moderation_loss(diffusion, rows)
    torch.manual_seed(0)
    t, z = diffusion.times(len(rows)), torch.randn_like(rows.x0)
    std = (1 - diffusion.alpha_bar[t]).sqrt()
    score = -diffusion(diffusion.diffuse(rows.x0, t, z), t, rows.c) / std[:, None, None, None]
    losses = torch.square(score * (std[:, None, None, None] * z))  # as Jiang et al. write it
    expected = losses.reshape(len(losses), -1).mean(-1).mean()
    assert own.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_forget_term_enters_every_fourth_step():
    diffusion, batch, method = tiny_models.diffusion(), tiny_models.batch(), MSGM()
    seen = []
    for method.steps_done in range(9):
        groups = list(method.losses(diffusion, batch))
        seen.append(len(groups) == 2)
    assert seen == [True, False, False, False, True, False, False, False, True]


def test_the_weights_add_up_to_1():
    diffusion, batch = tiny_models.diffusion(), tiny_models.batch()
    diffusion.forward = lambda x_t, t, c: torch.zeros_like(x_t)
    torch.manual_seed(0)
    retain, forget = MSGM().losses(diffusion, batch)
    assert forget["forget"].item() == 0  # a prediction of 0 is at right angles to every noise
    assert retain["retain"].item() == pytest.approx(0.99, abs=0.2)
