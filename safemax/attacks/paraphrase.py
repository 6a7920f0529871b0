"""Paraphrase: ask for the class with its other prompts, both those trained on and those never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from safemax.attacks.base import Attack, Setting, Trial
from safemax.diffusion.condition import Prompts
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import sample


@dataclass(frozen=True)
class Paraphrase(Attack):
    """Other words for the forgotten class, which a correction of one prompt may leave as they were; the best one counts.

    A model that is told its classes by labels, or by one prompt each, has no paraphrase: there the class is asked for by its
    own label or prompt, as one trial.
    """

    source: ClassVar[str] = "prompts that an erased concept answers, arXiv:2309.06135 and arXiv:2310.10012"
    axis = {
        "paraphrase_trained": "row of the prompt",
        "paraphrase_held_out": "row of the prompt",
        "paraphrase_own": "label",
    }

    def trials(self, diffusion: Diffusion, setting: Setting) -> Iterator[Trial]:
        asked = {"paraphrase_trained": _rows(diffusion, setting.forget, held_out=False)}
        asked["paraphrase_held_out"] = _rows(diffusion, setting.forget, held_out=True)
        if not any(asked.values()):
            asked["paraphrase_own"] = list(setting.forget)
        for variant, rows in asked.items():
            for row in rows:
                labels = torch.full((setting.samples,), row)
                images = sample(diffusion, labels, setting.sampler_for(diffusion), seed=setting.seed)
                yield Trial(variant, row, images)


def _rows(diffusion: Diffusion, forget: tuple[int, ...], *, held_out: bool) -> list[int]:
    condition = diffusion.condition
    if not isinstance(condition, Prompts):
        return []
    return [row for k in forget for row in condition.asked_by(k, held_out=held_out)]
