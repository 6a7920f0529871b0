"""A setting for attacks at the smallest size: the tiny model and data, and judges of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from safemax.attacks.base import Attack, Setting
from safemax.attacks.dimra import DiMRA
from safemax.attacks.guided import Guided
from safemax.attacks.invert import Invert
from safemax.attacks.relearn import Relearn
from safemax.attacks.sweep import Sweep
from safemax.diffusion.sampling import Sampler
from safemax.judges.classifier import Judge
from safemax.judges.train import train_judge
from tests.support import tiny_models

QUICK = {
    "relearn": Relearn(relearn_steps=8, relearn_batch_size=4),
    "invert": Invert(invert_steps=3, invert_batch_size=4),
    "guided": Guided(guided_seeds=2),
    "dimra": DiMRA(dimra_steps=8, dimra_batch_size=4),
    "sweep": Sweep(sweep_steps_limit=6),
}


@cache
def judge(*, reject: bool) -> Judge:
    return train_judge(tiny_models.dataset(), reject=reject, steps=60, batch_size=32, progress=False)


def setting(**changed) -> Setting:
    usual = Setting(
        tiny_models.dataset(), (0,), judge(reject=True), judge(reject=False), neighbour=1, base=tiny_models.diffusion(1),
        samples=6, sampler=Sampler("ddim", 2, 1.5),
    )  # fmt: skip
    return replace(usual, **changed)


def quick(name: str, attack: type[Attack]) -> Attack:
    """Return an attack of a few steps."""
    return QUICK.get(name) or attack()
