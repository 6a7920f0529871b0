from __future__ import annotations

import pytest
import torch

from safemax.methods.fisher_forgetting import FisherForgetting, deviation
from safemax.training.settings import Training
from tests.support import tiny_models


def test_the_deviation_is_the_official_one():
    # sqrt(alpha / F), at most the cap: sqrt(1 / 1e8) = 1e-4; sqrt(1 / 100) = 0.1 is cut; F = 0 is cut too
    fisher = torch.tensor([1e8, 100.0, 0.0])
    assert deviation(fisher, 1.0, 1e-3).tolist() == pytest.approx([1e-4, 1e-3, 1e-3])


def test_weights_that_the_retained_classes_need_move_less():
    diffusion, before = tiny_models.diffusion(), tiny_models.diffusion()
    method = FisherForgetting(fisher_images=8, fisher_times=8, cap=1.0, alpha=100.0)
    tiny_models.train(diffusion, method, Training(steps=0, batch_size=8, device="cpu"))
    moved = {
        name: (p - old).detach()
        for (name, p), old in zip(diffusion.named_parameters(), before.parameters(), strict=True)
    }
    (embedding,) = (value for name, value in moved.items() if "class_embedding" in name)
    # no retain row has label 0 and none the null label, so nothing but the cap bounds the noise of their embeddings
    assert embedding[[0, 3]].std().item() == pytest.approx(1.0, abs=0.2)
    assert embedding[[1, 2]].std().item() < 0.8 * embedding[[0, 3]].std().item()
