"""How judges are trained: a recipe an architecture; a third of every batch are negative images where they may reject."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from tqdm import tqdm

from safemax.data.batches import to_float
from safemax.data.dataset import Dataset
from safemax.errors import InputError, NonFiniteError, unknown
from safemax.judges.classifier import Judge
from safemax.judges.negatives import CLEAR, drowned, negative_images, uniform
from safemax.judges.networks import ResNet34


@dataclass(frozen=True)
class Recipe:
    """How an architecture is trained: optimizer, learning rates of body and head, L2 penalty, passes over the data."""

    optimizer: str
    lr: float
    head_lr: float
    weight_decay: float
    epochs: int
    cosine: bool = True
    shift: bool = True


# ResNet-20 and -56: He et al. 2016, section 4.2, at 20 of their 160 epochs. ResNet-34: SAFEMax's own judge (constant rates,
# no shifts); from random weights it would not converge at those rates, so SCRATCH_GAIN multiplies them.
RECIPES = {
    "small": Recipe("adam", lr=2e-3, head_lr=2e-3, weight_decay=0.0, epochs=3),
    "resnet20": Recipe("sgd", lr=0.1, head_lr=0.1, weight_decay=1e-4, epochs=20),
    "resnet56": Recipe("sgd", lr=0.1, head_lr=0.1, weight_decay=1e-4, epochs=20),
    "resnet34": Recipe("adam", lr=1e-5, head_lr=1e-4, weight_decay=5e-4, epochs=20, cosine=False, shift=False),
}
LEAST_STEPS = 400
SCRATCH_GAIN = 50
REJECT_SHARE = 1 / 3


def train_judge(
    dataset: Dataset,
    arch: str = "small",
    *,
    reject: bool = False,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
    pretrained: str | None = None,
) -> Judge:
    """Train a judge on a data set's real training images; the same arguments give the same weights.

    Args:
        dataset: its train split, class names and image shape are used; flips where it is natural.
        arch: a name of networks.ARCHITECTURES.
        reject: add the class "none of these", trained on a third of every batch (see negative_images).
        steps: optimizer steps; None takes the recipe's epochs, at least 400 steps, and half as many more with reject, so
            that as many real images are seen.
        batch_size: rows a step, negative images among them.
        lr: of the body, the head's in the recipe's proportion; None takes the recipe's.
        seed: of weights, batches and negative images.
        device: where it trains and stays.
        progress: whether to show a bar.
        pretrained: folder or hub id of ImageNet weights, for resnet34 only.

    Raises:
        InputError: unknown arch, or pretrained weights that do not fit it.
        NonFiniteError: training diverged.
    """
    recipe = _recipe(arch, lr, pretrained)
    judge = _untrained(dataset, arch, reject, seed, pretrained).to(device).train()
    total = steps or _steps(recipe, len(dataset.train), batch_size, reject)
    optimizer = _optimizer(judge, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(total) if recipe.cosine else lambda _: 1.0)
    weight = _weight(dataset, device) if reject and dataset.natural else None
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(total), desc=f"judge {arch}", disable=not progress):
        x, y = draw(dataset, batch_size, recipe.shift, reject, generator)
        optimizer.zero_grad()
        F.cross_entropy(judge(x.to(device)), y.to(device), weight).backward()
        optimizer.step()
        schedule.step()
    if not all(p.isfinite().all() for p in judge.parameters()):
        raise NonFiniteError(f"the judge {arch} diverged in {total} steps at lr = {recipe.lr:g}")
    return judge.eval()


def _recipe(arch: str, lr: float | None, pretrained: str | None) -> Recipe:
    if arch not in RECIPES:
        raise unknown("arch", arch, RECIPES)
    recipe = RECIPES[arch]
    if lr is None:
        lr = recipe.lr * (SCRATCH_GAIN if arch == "resnet34" and pretrained is None else 1)
    return replace(recipe, lr=lr, head_lr=lr * recipe.head_lr / recipe.lr)


def _steps(recipe: Recipe, num_images: int, batch_size: int, reject: bool) -> int:
    steps = max(LEAST_STEPS, recipe.epochs * num_images / batch_size)
    return math.ceil(steps / (1 - REJECT_SHARE) if reject else steps)


def _untrained(dataset: Dataset, arch: str, reject: bool, seed: int, pretrained: str | None) -> Judge:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(arch, dataset.class_names, dataset.image_shape, reject=reject)
    if pretrained is None:
        return judge
    if not isinstance(judge.network, ResNet34):
        raise InputError(f"pretrained = {pretrained!r} is for arch resnet34; {arch} trains from random weights")
    judge.network.load_pretrained(pretrained)
    return judge


def _weight(dataset: Dataset, device: str | torch.device) -> Tensor:
    """Return a weight of each answer's loss by which "none of these" counts as one class does, not as a third of all.

    With that third as its prior a ResNet-20 rejects 2 % of real CIFAR-10 images (7 % of airplanes, 5 % of birds), as their
    mixtures look alike; with the prior of one class 0.1 %. Digits lose nothing to the third, which catches more.
    """
    none = (1 - REJECT_SHARE) / (REJECT_SHARE * dataset.num_classes)
    return torch.tensor([1.0] * dataset.num_classes + [none], device=device)


def _optimizer(judge: Judge, recipe: Recipe) -> torch.optim.Optimizer:
    head = list(judge.network.linear.parameters())
    body = [p for name, p in judge.network.named_parameters() if not name.startswith("linear.")]
    groups = [{"params": body, "lr": recipe.lr}, {"params": head, "lr": recipe.head_lr}]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=recipe.weight_decay)
    return torch.optim.Adam(groups, weight_decay=recipe.weight_decay)


def _rate(total: int) -> Callable[[int], float]:
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / total))


def draw(dataset: Dataset, batch_size: int, shift: bool, reject: bool, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return a batch of real images and, with reject, a third of negative ones, (N, C, H, W), with labels (N,), K for none."""
    num_negatives = round(batch_size * REJECT_SHARE) if reject else 0
    rows = torch.randint(len(dataset.train), (batch_size - num_negatives,), generator=generator)
    x0, y = to_float(dataset.train.images[rows]), dataset.train.labels[rows]
    x = _flipped(x0, generator) if dataset.natural else x0
    x = _shifted(x, generator) if shift else x
    if num_negatives == 0:
        return x, y
    x = _hazed(x, generator)
    negatives = negative_images(x0, y, num_negatives, dataset.natural, generator)
    return torch.cat([x, negatives]), torch.cat([y, y.new_full((num_negatives,), dataset.num_classes)])


def _flipped(x: Tensor, generator: Generator) -> Tensor:
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(3), x)


def _shifted(x: Tensor, generator: Generator) -> Tensor:
    """Move each image by up to an eighth of its size; the gap repeats the border."""
    n, _, height, width = x.shape
    reach = max(1, height // 8)
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    down, right = torch.randint(2 * reach + 1, (2, n, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    each = torch.arange(n)[:, None, None]
    return padded.movedim(1, -1)[each, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _hazed(x: Tensor, generator: Generator) -> Tensor:
    """Drown a quarter of the images slightly: without them the judge would reject a class for a little grain."""
    chosen = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.25
    return torch.where(chosen, drowned(x, uniform(CLEAR, 1, len(x), generator), generator), x)
