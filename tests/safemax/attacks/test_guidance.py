from __future__ import annotations

import torch

from safemax.attacks.guidance import SCALES, SWITCHES, Guidance, _switch
from safemax.diffusion.sampling import sample
from tests.support import tiny_models
from tests.support.attack_settings import setting


def test_the_label_is_the_neighbours_until_the_switch_and_the_classs_after_it():
    labels, label_at = torch.tensor([0, 2]), _switch(1, 600)
    assert label_at(601, labels).tolist() == [1, 1]
    assert label_at(600, labels).tolist() == [0, 2]


def test_the_null_label_and_every_scale_are_what_the_sampler_draws():
    own, diffusion = setting(), tiny_models.diffusion()
    trials = list(Guidance().trials(diffusion, own))
    null = sample(diffusion, torch.full((6,), 3), own.sampler_for(diffusion, 1.0), seed=0)
    assert torch.equal(trials[0].images, null)
    assert [t.x for t in trials if t.variant == "guidance_scale"] == list(SCALES)
    assert [t.x for t in trials if t.variant == "guidance_switch"] == list(SWITCHES)
    negative = sample(diffusion, torch.zeros(6, dtype=torch.int64), own.sampler_for(diffusion, -2.0), seed=0)
    assert torch.equal(trials[1].images, negative)


def test_a_model_without_a_null_label_is_not_guided():
    trials = list(Guidance().trials(tiny_models.diffusion(null=False), setting()))
    assert [(t.variant, t.x) for t in trials][:1] == [("guidance_scale", 1.0)]
    assert not any(t.variant == "guidance_null" for t in trials)
