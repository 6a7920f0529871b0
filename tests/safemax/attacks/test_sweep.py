from __future__ import annotations

import torch

from safemax.attacks.sweep import SCALES, Sweep
from tests.support import tiny_models
from tests.support.attack_settings import quick, setting


def test_at_a_guidance_scale_of_0_every_label_draws_what_the_null_label_draws():
    result = quick("sweep", Sweep).run(tiny_models.diffusion(), setting())
    at = {(cell.variant, cell.x): i for i, cell in enumerate(result.cells)}
    assert torch.equal(result.pictures[at["sweep_own", 0.0]], result.pictures[at["sweep_others", 0.0]])
    assert not torch.equal(result.pictures[at["sweep_own", 2.0]], result.pictures[at["sweep_others", 2.0]])


def test_it_covers_what_a_served_model_allows():
    assert (min(SCALES), max(SCALES)) == (-20, 20)
    trials = list(Sweep(sweep_steps_limit=7).trials(tiny_models.diffusion(), setting()))
    assert [trial.x for trial in trials if trial.variant == "sweep_steps"] == [5, 7]


def test_a_model_without_a_null_label_is_swept_unguided():
    trials = list(quick("sweep", Sweep).trials(tiny_models.diffusion(null=False), setting()))
    assert [trial.x for trial in trials if trial.variant == "sweep_own"] == [1.0]
