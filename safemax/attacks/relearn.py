"""Relearn: fine-tune on a few images of the class, or on none, and measure how soon the class returns."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from safemax.attacks.base import Attack, Cell, Setting, Trial, mean
from safemax.data.dataset import Split
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import sample
from safemax.knobs import knob
from safemax.methods.finetune import Finetune
from safemax.training.hooks import Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

FEW = (10, 100)
# Shares of all steps after which the model is sampled. Halving resolves the early steps, where hidden and absent differ.
CHECKS = (1 / 8, 1 / 4, 1 / 2, 1)


@dataclass(frozen=True)
class Relearn(Attack):
    """Fine-tuning on 10 and on 100 images of the class, and on the retained classes alone.

    A class that was only suppressed returns in a few steps or even without an image of it (DiMRA); an absent one must be
    learned. Success is the mean share over the start and the CHECKS, so an early return counts more than a late one. The
    further result s50 is the step at which half of the samples are recognised, interpolated; missing if never reached.
    """

    source: ClassVar[str] = "arXiv:2410.08074 (few images), arXiv:2512.03564 (retained classes alone)"
    axis = dict.fromkeys((*(f"relearn_{count}" for count in FEW), "relearn_retain"), "fine-tuning steps")
    pool = mean

    relearn_steps: int = knob(80, "fine-tuning steps", bounds=(8, 100_000))
    relearn_lr: float = knob(1e-4, "learning rate of Adam", bounds=(0, 1))
    relearn_batch_size: int = knob(32, "rows of a step", bounds=(1, 100_000))

    def trials(self, diffusion: Diffusion, setting: Setting) -> Iterator[Trial]:
        training = attacker(setting, self.relearn_steps, self.relearn_lr, self.relearn_batch_size)
        start = draw(diffusion, setting)
        for count in FEW:
            yield from fine_tuned(f"relearn_{count}", diffusion, setting, training, setting.known(count), start=start)
        split = setting.dataset.train
        yield from fine_tuned("relearn_retain", diffusion, setting, training, split, setting.forget, start=start)

    def numbers(self, cells: Sequence[Cell]) -> dict[str, float]:
        """Return s50 of each variant that reaches it."""
        steps = {
            variant: half_way([c for c in cells if c.variant == variant]) for variant in {c.variant for c in cells}
        }
        return {f"{variant}_s50": step for variant, step in steps.items() if step is not None}


def attacker(setting: Setting, steps: int, lr: float, batch_size: int) -> Training:
    """Return the training of an attacker who fine-tunes."""
    return Training(
        steps=steps, batch_size=batch_size, lr=lr, forget_share=0.0, seed=setting.seed, checkpoint_every=0
    )  # fmt: skip


def fine_tuned(
    variant: str,
    diffusion: Diffusion,
    setting: Setting,
    training: Training,
    split: Split,
    forget: tuple[int, ...] = (),
    *,
    null_drop: float = 0.1,
    start: Tensor | None = None,
    looks: Sequence[int] = (),
) -> Iterator[Trial]:
    """Fine-tune a copy of a model by the ordinary loss and yield what it draws at the start and on the way.

    Args:
        variant: of the trials.
        diffusion: the model to attack.
        setting: what is drawn, and how.
        training: of the attacker.
        split: the attacker's images and labels.
        forget: labels of the split that the attacker leaves out.
        null_drop: share of labels replaced by the null label, where the model has one.
        start: what the model draws before the first step, where that is known.
        looks: the steps after which it draws; none are those of the CHECKS.
    """
    checks = set(looks) or {round(share * training.steps) for share in CHECKS}
    images_at: dict[int, Tensor] = {0: draw(diffusion, setting) if start is None else start}
    student = copy.deepcopy(diffusion)

    def draw_at_checks(step: int) -> None:
        if step in checks:
            images_at[step] = draw(student, setting)

    method = Finetune(null_drop=null_drop if diffusion.has_null else 0.0)
    hooks = Hooks(on_step_end=draw_at_checks, progress=False)
    Trainer(student, method, split, forget, training, flip=setting.dataset.natural, hooks=hooks).fit()
    yield from (Trial(variant, step, images) for step, images in images_at.items())


def half_way(curve: Sequence[Cell]) -> float | None:
    """Return the x at which a curve of cells first reaches 50 %, by linear interpolation; None if it never does."""
    if curve[0].recognised >= 50:
        return curve[0].x
    for before, after in pairwise(curve):
        if after.recognised >= 50:
            share = (50 - before.recognised) / (after.recognised - before.recognised)
            return before.x + share * (after.x - before.x)
    return None


def draw(diffusion: Diffusion, setting: Setting) -> Tensor:
    """Return images of the forgotten labels by the setting's sampler."""
    return sample(diffusion, setting.labels(), setting.sampler_for(diffusion), seed=setting.seed)
