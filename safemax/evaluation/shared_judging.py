"""Judging by all processes of a team: the leader hands out images, and every process judges its rows of them.

The judges are told once, whatever they are made of. Each process judges every n-th image. A judge sees each image for itself, so
that its answer depends on the number of processes by float rounding alone: other images are beside it in a pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safemax.data.batches import to_float
from safemax.diffusion import team
from safemax.diffusion.team import Team
from safemax.judges import classifier
from safemax.judges.classifier import Judge
from safemax.judges.files import load_judge, save
from safemax.judges.load import Judges

JOB = "judge"
ROLES = ("plain", "reject")  # of the judges, as Judges calls them
LEAST = 100  # images a process: telling takes about 10 ms, such as `small` needs for 100 of 8x8, and ResNet-20 for 5 of 32x32


def processes() -> int:
    """Return how many processes judge together."""
    crew = _crew()
    return 1 if crew is None else crew.world


def predict(judges: Judges, images: Tensor, roles: tuple[str, ...] = ROLES) -> list[tuple[Tensor, Tensor]]:
    """Return probabilities and features by each judge, as `classifier.predict`; inside `team.leading`, all share the images.

    Args:
        judges: of the data set.
        images: (N, C, H, W) uint8.
        roles: of the judges that are asked.
    """
    crew = _crew()
    if crew is None or len(images) < LEAST * crew.world:
        return [classifier.predict(getattr(judges, role), to_float(images)) for role in roles]
    crew.is_whole = False  # until all have done their part
    told = crew.once("judges", judges.digest, lambda folder: _save(judges, folder))
    temperatures = {role: getattr(judges, role).temperature for role in roles}
    crew.hand_out(JOB, {"images": images, **told}, {"temperatures": temperatures})
    answers = [_judged(crew, getattr(judges, role), images) for role in roles]
    crew.is_whole = True
    return answers


def judge_along(crew: Team, about: dict[str, Any], told: dict[str, Tensor], device: torch.device) -> None:
    """Judge this process's rows of what the leader judges: the job of a process that follows, by the name JOB."""
    judges = crew.kept("judges", told, _load, device)
    for role, temperature in about["temperatures"].items():
        judge = judges[role]
        assert isinstance(judge, Judge)
        judge.temperature = temperature  # which a judge's files do not hold
        _judged(crew, judge, told["images"])


def _crew() -> Team | None:
    """Return the team that this process leads, and that waits for work."""
    crew = team.current()
    return None if crew is None or crew.together or not crew.is_whole else crew


def _judged(crew: Team, judge: Judge, images: Tensor) -> tuple[Tensor, Tensor]:
    """Judge this process's rows; return probabilities and features of all where this process leads, else of its own."""
    own = torch.cat(classifier.predict(judge, to_float(images[crew.share.rows])), dim=1)
    rows = crew.whole(own, len(images))
    answers = len(judge.answers)
    return rows[:, :answers].contiguous(), rows[:, answers:].contiguous()


def _save(judges: Judges, folder: str) -> None:
    for role in ROLES:
        save(getattr(judges, role), Path(folder) / role)


def _load(folder: str) -> nn.ModuleDict:
    return nn.ModuleDict({role: load_judge(Path(folder) / role) for role in ROLES})
