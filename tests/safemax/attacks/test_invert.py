from __future__ import annotations

import torch

from safemax.attacks.invert import Inversion
from safemax.training.settings import Training
from safemax.training.trainer import Trainer
from tests.support import tiny_models
from tests.support.attack_settings import setting

TRAINING = Training(steps=5, batch_size=4, lr=0.1, forget_share=0.0, checkpoint_every=0)


def test_only_the_embedding_of_the_sought_class_moves():
    diffusion, before = tiny_models.diffusion(), tiny_models.diffusion().denoiser.state_dict()
    Trainer(diffusion, Inversion(), setting().known(10), (), TRAINING, hooks=tiny_models.SILENT).fit()
    after = diffusion.denoiser.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"class_embedding.weight"}
    moved = (before["class_embedding.weight"] != after["class_embedding.weight"]).any(1)
    assert moved.tolist() == [True, False, False, False]


def test_the_search_starts_from_the_null_label():
    diffusion = tiny_models.diffusion()
    Trainer(
        diffusion,
        Inversion(),
        setting().known(10),
        (),
        Training(**vars(TRAINING) | {"steps": 0}),
        hooks=tiny_models.SILENT,
    ).fit()
    rows = diffusion.denoiser.class_embedding.weight
    assert torch.equal(rows[0], rows[3])


def test_without_a_null_label_it_starts_from_the_mean_of_all():
    diffusion = tiny_models.diffusion(null=False)
    mean = diffusion.denoiser.class_embedding.weight.detach().mean(0)
    Trainer(
        diffusion,
        Inversion(),
        setting().known(10),
        (),
        Training(**vars(TRAINING) | {"steps": 0}),
        hooks=tiny_models.SILENT,
    ).fit()
    assert torch.equal(diffusion.denoiser.class_embedding.weight[0], mean)
