from __future__ import annotations

import torch

from safemax.attacks.invert import Inversion
from safemax.training.trainer import Training, fit
from tests.support import tiny_models
from tests.support.attack_settings import setting

TRAINING = Training(steps=5, batch_size=4, lr=0.1, forget_share=0.0, checkpoint_every=0)


def test_only_the_embedding_of_the_sought_class_moves():
    model, before = tiny_models.diffusion(), tiny_models.diffusion().denoiser.state_dict()
    fit(model, Inversion(), setting().known(10), (), TRAINING, progress=False)
    after = model.denoiser.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"class_embedding.weight"}
    moved = (before["class_embedding.weight"] != after["class_embedding.weight"]).any(1)
    assert moved.tolist() == [True, False, False, False]


def test_the_search_starts_from_the_null_label():
    model = tiny_models.diffusion()
    fit(model, Inversion(), setting().known(10), (), Training(**vars(TRAINING) | {"steps": 0}), progress=False)
    rows = model.denoiser.class_embedding.weight
    assert torch.equal(rows[0], rows[3])


def test_without_a_null_label_it_starts_from_the_mean_of_all():
    model = tiny_models.diffusion(null=False)
    mean = model.denoiser.class_embedding.weight.detach().mean(0)
    fit(model, Inversion(), setting().known(10), (), Training(**vars(TRAINING) | {"steps": 0}), progress=False)
    assert torch.equal(model.denoiser.class_embedding.weight[0], mean)
