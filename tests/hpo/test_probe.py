"""The probe sees, without sampling, what a model still knows and what it lost."""

from __future__ import annotations

import torch

from hpo.probe import Probe
from safemax.methods import create
from safemax.training.settings import Training
from tests.support import tiny_models


def test_the_probe_finds_all_knowledge_and_no_damage_in_the_base() -> None:
    diffusion, data = tiny_models.diffusion(), tiny_models.dataset()
    tiny_models.train(
        diffusion, create("finetune"), Training(steps=60, batch_size=32, forget_share=0, lr=3e-3), forget=()
    )
    probe = Probe(diffusion, data, [0], seed=0)
    assert probe(diffusion) == (1.0, 0.0)


def test_the_probe_sees_what_unlearning_does() -> None:
    diffusion, data = tiny_models.diffusion(), tiny_models.dataset()
    tiny_models.train(
        diffusion, create("finetune"), Training(steps=60, batch_size=32, forget_share=0, lr=3e-3), forget=()
    )
    probe = Probe(diffusion, data, [0], seed=0)
    tiny_models.train(diffusion, create("gradient_ascent"), Training(steps=20, batch_size=32, forget_share=1, lr=3e-3))
    knowledge, damage = probe(diffusion)
    assert knowledge < 0.5
    assert damage > 0.1


def test_the_probe_leaves_the_mode_of_the_model_and_its_generators_alone() -> None:
    diffusion = tiny_models.diffusion().train()
    probe = Probe(diffusion, tiny_models.dataset(), [0], seed=0)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    probe(diffusion)
    assert torch.equal(torch.rand(3), expected)
    assert diffusion.training
