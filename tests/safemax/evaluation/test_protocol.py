"""The protocols' settings."""

from __future__ import annotations

import pytest

from safemax.diffusion.sampling import Sampler
from safemax.errors import InputError
from safemax.evaluation.protocol import Evaluation


def test_fewer_forget_samples_than_kid_can_take_are_refused_before_any_work():
    with pytest.raises(InputError, match="forget_samples = 3 is not allowed; 4 or more, which KID needs"):
        Evaluation(forget_samples=3)


def test_the_protocols_are_what_the_house_says():
    paper, fast = Evaluation(protocol="paper"), Evaluation()
    assert paper.main_sampler == Sampler("ddpm", 1000, 3.0, 0.0, False)
    assert paper.counts == (500, 5000)
    assert fast.main_sampler == Sampler("ddim", 20, 1.5, 0.0, True)
    assert {paper.second_sampler.name, fast.second_sampler.name} == {"ddim", "ddpm"}
