"""An attack by all processes of a team: the leader hands it out with its model and its judges, and all run it alike.

Each then draws its rows of every sample and trains on its rows of every batch, with the noise that one process would have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from safemax import attacks
from safemax.attacks.base import Attack, AttackResult, Setting
from safemax.data.dataset import Dataset
from safemax.diffusion import team
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Sampler
from safemax.diffusion.team import Job, Team, packed, unpacked
from safemax.judges.classifier import Judge
from safemax.judges.files import load_judge, save

JOB = "attack"
_SAID = ("forget", "neighbour", "samples", "seed")  # of a setting, as they are


def run_shared(name: str, attack: Attack, diffusion: Diffusion, setting: Setting) -> AttackResult:
    """Return `attack.run`, by all processes where this one leads a team.

    Args:
        name: of the attack.
        attack: with its knobs.
        diffusion: the model.
        setting: what the attacker has.
    """
    crew = team.current()
    if crew is None:
        return attack.run(diffusion, setting)
    about = {each: getattr(setting, each) for each in _SAID}
    about |= {"attack": name, "knobs": asdict(attack), "sampler": asdict(setting.sampler)}
    told = packed(diffusion.save, "model:") | _packed_judge(setting.judge, "judge:")
    told |= _packed_judge(setting.helper, "helper:")
    if attack.needs_base and setting.base is not None:
        told |= packed(setting.base.save, "base:")
    crew.hand_out(JOB, told, about)
    with crew.acting_together():
        return attack.run(diffusion, setting)


def attack_along(dataset: Callable[[], Dataset]) -> Job:
    """Return the job of a process that follows, by the name JOB.

    Args:
        dataset: returns the leader's images.
    """

    def run(crew: Team, about: dict[str, Any], told: dict[str, Tensor], device: torch.device) -> None:
        model, base = (unpacked(told, Diffusion.load, prefix) for prefix in ("model:", "base:"))
        judge, helper = (unpacked(told, load_judge, prefix) for prefix in ("judge:", "helper:"))
        assert model is not None
        assert judge is not None
        assert helper is not None
        setting = Setting(
            dataset(), tuple(about["forget"]), judge.to(device), helper.to(device), about["neighbour"],
            None if base is None else base.to(device), about["samples"], about["seed"], Sampler(**about["sampler"]),
        )  # fmt: skip
        with crew.acting_together():
            attacks.find(about["attack"])(**about["knobs"]).run(model.to(device), setting)

    return run


def _packed_judge(judge: Judge, prefix: str) -> dict[str, Tensor]:
    return packed(lambda folder: save(judge, folder), prefix)
