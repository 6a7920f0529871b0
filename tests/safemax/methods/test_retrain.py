from __future__ import annotations

import torch

from safemax.diffusion.model import Diffusion
from safemax.methods.retrain import Retrain
from safemax.training.settings import Training
from tests.support import tiny_models


def retrained(start: int, *, seed: int = 0, steps: int = 2) -> Diffusion:
    diffusion = tiny_models.diffusion(start)
    training = Training(steps=steps, batch_size=8, forget_share=0.0, device="cpu", seed=seed)
    tiny_models.train(diffusion, Retrain(), training)
    return diffusion


def test_nothing_of_the_model_given_is_left() -> None:
    assert retrained(1).digest() == retrained(2).digest()


def test_the_seed_draws_the_initial_weights() -> None:
    assert retrained(1, steps=0).digest() != retrained(1, seed=1, steps=0).digest()


def test_the_initial_weights_are_the_networks_own() -> None:
    # group norms start at 1 and their biases at 0, whatever the model had
    weights = dict(retrained(1, steps=0).named_parameters())
    assert torch.equal(weights["denoiser.conv_norm_out.weight"], torch.ones(8))
    assert torch.equal(weights["denoiser.conv_norm_out.bias"], torch.zeros(8))


def test_the_forgotten_label_is_never_seen_and_its_embedding_never_moves() -> None:
    name = "denoiser.class_embedding.weight"
    before, after = (dict(retrained(1, steps=steps).named_parameters())[name] for steps in (0, 4))
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1:3], after[1:3])
