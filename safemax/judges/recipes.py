"""How each architecture of a judge is trained: its optimizer, rates, batches and passes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from safemax.errors import unknown
from safemax.judges.networks import CIFAR_BLOCKS


@dataclass(frozen=True)
class Recipe:
    """How an architecture is trained.

    Args:
        optimizer: adam or sgd.
        lr, head_lr: of body and head at their highest.
        weight_decay: an L2 penalty.
        epochs: passes over the data.
        schedule: of the rate: cosine to 0, constant, or cycle: up over the first fifth, then down to nearly 0, both linearly.
        shift: move images by up to an eighth of their side.
        momentum, nesterov: of sgd.
        batch_size: rows a step.
        smoothing: of the labels.
        passes: every image once an epoch, mirrored in turn where it may be (arXiv:2404.00498, section 3.6), and images, network
            and randomness on the device, in bf16 where it computes in that; else rows are drawn with replacement on the CPU.
    """

    optimizer: str
    lr: float
    head_lr: float
    weight_decay: float
    epochs: int
    schedule: str = "cosine"
    shift: bool = True
    momentum: float = 0.9
    nesterov: bool = False
    batch_size: int = 128
    smoothing: float = 0.0
    passes: bool = False


# CIFAR ResNets: He et al. 2016, section 4.2, at 20 of their 160 epochs. ResNet-34: SAFEMax's own judge (constant rates,
# no shifts); from random weights it would not converge at those rates, so SCRATCH_GAIN multiplies them. Whitened: airbench's
# rate, momentum and smoothing (arXiv:2404.00498), for a batch of half the size, and its 10 epochs where it is wide; the head's
# rate stands for its division of the logits by 9, since averaged features are smaller than the largest ones that it takes.
_CIFAR = Recipe("sgd", lr=0.1, head_lr=0.1, weight_decay=1e-4, epochs=20)
_WHITENED = Recipe(
    "sgd", lr=0.7, head_lr=0.08, weight_decay=1e-3, epochs=6, schedule="cycle", momentum=0.85, nesterov=True,
    batch_size=512, smoothing=0.2, passes=True,
)  # fmt: skip
RECIPES = {
    "small": Recipe("adam", lr=2e-3, head_lr=2e-3, weight_decay=0.0, epochs=3),
    "whitened": _WHITENED,
    "whitened_wide": replace(_WHITENED, epochs=10),
    **dict.fromkeys(CIFAR_BLOCKS, _CIFAR),
    "resnet34": Recipe("adam", lr=1e-5, head_lr=1e-4, weight_decay=5e-4, epochs=20, schedule="constant", shift=False),
}
LEAST_STEPS = 400
SCRATCH_GAIN = 50
REJECT_SHARE = 1 / 3  # of a batch's rows, negatives, where a judge may reject
WARM_UP, LAST_RATE = 0.2, 0.05  # of the cycle: share of the steps that rise, and of the rate that is left


def recipe_of(arch: str, lr: float | None, pretrained: str | None, batch_size: int | None) -> Recipe:
    """Return an architecture's recipe, with a rate and a batch size of the caller's where they are given.

    Raises:
        InputError: unknown arch.
    """
    if arch not in RECIPES:
        raise unknown("arch", arch, RECIPES)
    recipe = RECIPES[arch]
    if lr is None:
        lr = recipe.lr * (SCRATCH_GAIN if arch == "resnet34" and pretrained is None else 1)
    return replace(recipe, lr=lr, head_lr=lr * recipe.head_lr / recipe.lr, batch_size=batch_size or recipe.batch_size)


def is_smoothed(arch: str) -> bool:
    """Return whether a judge was trained with smoothed labels, heads on it and an ensemble with it included: it doubts too much.

    Args:
        arch: of the judge, such as whitened, whitened-none3 or small+small+small.
    """
    bodies = (member.partition("-none")[0] for member in arch.split("+"))
    return any(body in RECIPES and RECIPES[body].smoothing > 0 for body in bodies)


def planned_steps(recipe: Recipe, num_images: int, reject: bool) -> int:
    """Return the steps of a recipe on a number of images."""
    steps = max(LEAST_STEPS, recipe.epochs * num_images / recipe.batch_size)
    return math.ceil(steps / (1 - REJECT_SHARE) if reject else steps)


def rate(recipe: Recipe, step: int, total: int) -> float:
    """Return the learning rate of a step, of total steps, as a share of its highest."""
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / total))
    if recipe.schedule == "constant":
        return 1.0
    done = step / total
    if done < WARM_UP:
        return WARM_UP + (1 - WARM_UP) * done / WARM_UP
    return 1 - (1 - LAST_RATE) * (done - WARM_UP) / (1 - WARM_UP)
