"""DiMRA: fine-tune at length on data that never names the forgotten class, and see whether the class returns all the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from safemax.attacks.base import Attack, Setting, Trial, mean
from safemax.attacks.relearn import attacker, draw, fine_tuned
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob


@dataclass(frozen=True)
class DiMRA(Attack):
    """The diffusion model relearning attack: the attacker does not know which class was forgotten.

    `dimra_retain` goes on training on the retained classes with their labels; `dimra_auxiliary` on images of all classes
    that the correction never saw (the test images), without labels, under the null label. Success is the mean share over
    the start and an eighth, a quarter, half and all of the steps. The paper's own auxiliary set, steps and learning rate
    could not be read.
    """

    source: ClassVar[str] = "Yuan et al., arXiv:2512.03564"
    axis = dict.fromkeys(("dimra_retain", "dimra_auxiliary"), "fine-tuning steps")
    pool = mean

    dimra_steps: int = knob(400, "fine-tuning steps", bounds=(8, 1_000_000))
    dimra_lr: float = knob(1e-4, "learning rate of Adam", bounds=(0, 1))
    dimra_batch_size: int = knob(64, "rows of a step", bounds=(1, 100_000))

    def trials(self, diffusion: Diffusion, setting: Setting) -> Iterator[Trial]:
        training = attacker(setting, self.dimra_steps, self.dimra_lr, self.dimra_batch_size)
        data, start = setting.dataset, draw(diffusion, setting)
        yield from fine_tuned("dimra_retain", diffusion, setting, training, data.train, setting.forget, start=start)
        if diffusion.has_null:
            yield from fine_tuned(
                "dimra_auxiliary", diffusion, setting, training, data.test, null_drop=1.0, start=start
            )
